"""Samplers of others, re-implemented in plain torch on pixleap's models for side-by-side runs."""

from .gs_jacobi_official import OfficialResult, gs_jacobi_official, strategy_lists
from .tarflow_official import tarflow_official

__all__ = ["OfficialResult", "gs_jacobi_official", "strategy_lists", "tarflow_official"]
