"""Sampling loops on the native ops: next-scale (VAR), Gauss-Seidel-Jacobi (TarFlow), diffusion."""

from .collaborative import CollaborativeDecoder, collaborative
from .diffusion import diffusion, noise_schedule
from .gs_jacobi import FlowDecoder, FlowResult, Frontier, Sequential, gs_jacobi
from .next_scale import NextScaleDecoder, next_scale

__all__ = [
    "CollaborativeDecoder",
    "FlowDecoder",
    "FlowResult",
    "Frontier",
    "NextScaleDecoder",
    "Sequential",
    "collaborative",
    "diffusion",
    "gs_jacobi",
    "next_scale",
    "noise_schedule",
]
