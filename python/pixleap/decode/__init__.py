"""Sampling loops on the native ops: next-scale (VAR), Gauss-Seidel-Jacobi (TarFlow), diffusion."""

from .diffusion import diffusion, noise_schedule
from .gs_jacobi import FlowDecoder, FlowResult, Frontier, Sequential, gs_jacobi
from .next_scale import NextScaleDecoder, next_scale

__all__ = [
    "FlowDecoder",
    "FlowResult",
    "Frontier",
    "NextScaleDecoder",
    "Sequential",
    "diffusion",
    "gs_jacobi",
    "next_scale",
    "noise_schedule",
]
