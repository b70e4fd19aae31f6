"""Sampling loops on the native ops: next-scale (VAR), Gauss-Seidel-Jacobi (TarFlow), diffusion,
masked diffusion over tokens, raster-scan autoregression."""

from .collaborative import CollaborativeDecoder, collaborative
from .continuous import ContinuousBatcher
from .diffusion import diffusion, noise_schedule
    DistilledResult,
    DistilledStudent,
    DistilledTeacher,
    NoiseMapping,
    distilled,
)
from .distilled import (
from .draft_plan import DraftPlan
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
from .speculative import SpeculativeDecoder, speculative
from .speculative_run import SpeculativeResult
from .token_draws import TokenSampling

__all__ = [
    "Ancestral",
    "CollaborativeDecoder",
    "ContinuousBatcher",
    "DistilledResult",
    "DistilledStudent",
    "DistilledTeacher",
    "DraftPlan",
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
    "SpeculativeDecoder",
    "SpeculativeResult",
    "TokenSampling",
    "collaborative",
    "diffusion",
    "distilled",
    "gs_jacobi",
    "masked_diffusion",
    "next_scale",
    "noise_schedule",
    "raster",
    "speculative",
]
