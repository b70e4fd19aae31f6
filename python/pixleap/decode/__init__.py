"""Sampling loops on the native ops: next-scale (VAR), Gauss-Seidel-Jacobi (TarFlow), diffusion."""

from .collaborative import CollaborativeDecoder, collaborative
from .diffusion import diffusion, noise_schedule
from .draft_plan import DraftPlan
from .gs_jacobi import FlowDecoder, FlowResult, Frontier, Sequential, gs_jacobi
from .next_scale import NextScaleDecoder, next_scale
from .speculative import SpeculativeDecoder, SpeculativeResult, speculative

__all__ = [
    "CollaborativeDecoder",
    "DraftPlan",
    "FlowDecoder",
    "FlowResult",
    "Frontier",
    "NextScaleDecoder",
    "Sequential",
    "SpeculativeDecoder",
    "SpeculativeResult",
    "collaborative",
    "diffusion",
    "gs_jacobi",
    "next_scale",
    "noise_schedule",
    "speculative",
]
