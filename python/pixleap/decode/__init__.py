"""Sampling loops on the native ops: next-scale (VAR), Gauss-Seidel-Jacobi (TarFlow), diffusion,
masked diffusion over tokens, raster-scan autoregression, continuous tokens (MAR, FlowAR)."""

from .denoising import Head, SpeculativeDenoising
from .diffusion import diffusion, noise_schedule
from .flow_ar import FlowARHead, FlowARModel, FlowARResult, flow_ar
from .gs_jacobi import FlowDecoder, FlowResult, Frontier, Sequential, gs_jacobi
from .mar import MARModel, MARResult, group_sizes, mar
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
    "FirstHitting",
    "FlowARHead",
    "FlowARModel",
    "FlowARResult",
    "FlowDecoder",
    "FlowResult",
    "Frontier",
    "Head",
    "Jacobi",
    "MARModel",
    "MARResult",
    "MaskGIT",
    "MaskedDiffusionResult",
    "NextScaleDecoder",
    "RasterModel",
    "RasterResult",
    "Sequential",
    "Speculative",
    "SpeculativeDenoising",
    "TokenSampling",
    "diffusion",
    "flow_ar",
    "group_sizes",
    "gs_jacobi",
    "mar",
    "masked_diffusion",
    "next_scale",
    "noise_schedule",
    "raster",
]
