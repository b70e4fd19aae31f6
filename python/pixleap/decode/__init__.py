"""Decoding loops on the native ops: next-scale (VAR) and Gauss-Seidel-Jacobi (TarFlow)."""

from .gs_jacobi import FlowDecoder, FlowResult, Frontier, Sequential, gs_jacobi
from .next_scale import NextScaleDecoder, next_scale

__all__ = [
    "FlowDecoder",
    "FlowResult",
    "Frontier",
    "NextScaleDecoder",
    "Sequential",
    "gs_jacobi",
    "next_scale",
]
