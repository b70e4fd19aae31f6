"""Sampling loops on the native ops: next-scale (VAR), Gauss-Seidel-Jacobi (TarFlow), diffusion,
masked diffusion over tokens, raster-scan autoregression, continuous tokens (MAR, FlowAR), Distilled
Decoding."""

from .collaborative import CollaborativeDecoder, collaborative
from .continuous import ContinuousBatcher
from .denoising import Head, SpeculativeDenoising
from .diffusion import diffusion, noise_schedule
from .distilled import (
    DistilledResult,
    DistilledStudent,
    DistilledTeacher,
    NoiseMapping,
    distilled,
)
from .draft_plan import DraftPlan
from .flow_ar import FlowARHead, FlowARModel, FlowARResult, flow_ar
from .flow_metrics import BlockMetrics, FlowMetrics, flow_metrics
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
from .speculative import SpeculativeDecoder, speculative
from .speculative_jacobi import SpeculativeJacobi, speculative_jacobi
from .speculative_run import SpeculativeResult
from .token_draws import TokenSampling

__all__ = [
    "Ancestral",
    "BlockMetrics",
    "CollaborativeDecoder",
    "ContinuousBatcher",
    "DistilledResult",
    "DistilledStudent",
    "DistilledTeacher",
    "DraftPlan",
    "FirstHitting",
    "FlowARHead",
    "FlowARModel",
    "FlowARResult",
    "FlowDecoder",
    "FlowMetrics",
    "FlowResult",
    "Frontier",
    "Head",
    "Jacobi",
    "MARModel",
    "MARResult",
    "MaskGIT",
    "MaskedDiffusionResult",
    "NextScaleDecoder",
    "NoiseMapping",
    "RasterModel",
    "RasterResult",
    "Sequential",
    "Speculative",
    "SpeculativeDecoder",
    "SpeculativeDenoising",
    "SpeculativeJacobi",
    "SpeculativeResult",
    "TokenSampling",
    "collaborative",
    "diffusion",
    "distilled",
    "flow_ar",
    "flow_metrics",
    "group_sizes",
    "gs_jacobi",
    "mar",
    "masked_diffusion",
    "next_scale",
    "noise_schedule",
    "raster",
    "speculative",
    "speculative_jacobi",
]
