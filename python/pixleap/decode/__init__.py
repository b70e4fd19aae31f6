"""Sampling loops on the native ops: next-scale (VAR), Gauss-Seidel-Jacobi (TarFlow), diffusion,
masked diffusion over tokens, raster-scan autoregression."""

from .diffusion import diffusion, noise_schedule
from .distilled import (
    DistilledResult,
    DistilledStudent,
    DistilledTeacher,
    NoiseMapping,
    distilled,
)
from .gs_jacobi import FlowDecoder, FlowResult, Frontier, Sequential, gs_jacobi
from .masked_diffusion import (
    Ancestral,
    FirstHitting,
    MaskedDiffusionResult,
    MaskGIT,
    masked_diffusion,
)
from .next_scale import NextScaleDecoder, next_scale
from .raster import Jacobi, RasterModel, RasterResult, Speculative, raster
from .token_draws import TokenSampling

__all__ = [
    "Ancestral",
    "DistilledResult",
    "DistilledStudent",
    "DistilledTeacher",
    "FirstHitting",
    "FlowDecoder",
    "FlowResult",
    "Frontier",
    "Jacobi",
    "MaskGIT",
    "MaskedDiffusionResult",
    "NextScaleDecoder",
    "NoiseMapping",
    "RasterModel",
    "RasterResult",
    "Sequential",
    "Speculative",
    "TokenSampling",
    "diffusion",
    "distilled",
    "gs_jacobi",
    "masked_diffusion",
    "next_scale",
    "noise_schedule",
    "raster",
]
