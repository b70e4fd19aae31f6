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
from .flow import FlowDecoder, FlowResult, gs_jacobi
from .flow_ar import FlowARHead, FlowARModel, FlowARResult, flow_ar
from .flow_metrics import BlockMetrics, FlowMetrics, flow_metrics
from .flow_segments import Segments
from .mar import MARModel, MARResult, group_sizes, mar
from .masked_diffusion import (
    Ancestral,
    FirstHitting,
    MaskedDiffusionResult,
    MaskGIT,
    masked_diffusion,
)
from .next_scale import NextScaleDecoder, next_scale
from .raster import RasterSystem, Speculative, raster
from .raster_run import RasterModel, RasterResult, RowAbove
from .speculative import SpeculativeDecoder, speculative
from .speculative_jacobi import SpeculativeJacobi
from .speculative_run import SpeculativeResult
from .token_draws import TokenSampling
from .triangular import DenseSystem, TriangularResult, TriangularSystem
from .triangular_solvers import Frontier, GSJacobi, Jacobi, Sequential, solve_triangular

__all__ = [
    "Ancestral",
    "BlockMetrics",
    "CollaborativeDecoder",
    "ContinuousBatcher",
    "DenseSystem",
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
    "GSJacobi",
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
    "RasterSystem",
    "RowAbove",
    "Segments",
    "Sequential",
    "Speculative",
    "SpeculativeDecoder",
    "SpeculativeDenoising",
    "SpeculativeJacobi",
    "SpeculativeResult",
    "TokenSampling",
    "TriangularResult",
    "TriangularSystem",
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
    "solve_triangular",
    "speculative",
]
