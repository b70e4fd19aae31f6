"""Feature forecasting and block caching for diffusion samplers.

Neighbouring steps of a sampler compute nearly the same features. `FeatureRing` keeps the last few
and forecasts the next by one linear combination; `apply_cache` puts it, or another of the
configurations here, around the blocks of a transformer:

    with px.caching.apply_cache(transformer, px.caching.Forecast(interval=4)) as cache:
        for prompt in prompts:
            cache.reset()
            sample(transformer, prompt)

Weights and rings work on NumPy arrays and torch tensors; `apply_cache` needs torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .config import DeltaCache, FirstBlockCache, Forecast
from .ring import FeatureRing
from .weights import lagrange_weights, taylor_weights

if TYPE_CHECKING:
    from .handle import CacheHandle, Statistics, apply_cache

__all__ = [
    "CacheHandle",
    "DeltaCache",
    "FeatureRing",
    "FirstBlockCache",
    "Forecast",
    "Statistics",
    "apply_cache",
    "lagrange_weights",
    "taylor_weights",
]

_NEED_TORCH = ("CacheHandle", "Statistics", "apply_cache")


def __getattr__(name: str) -> Any:
    if name in _NEED_TORCH:
        from . import handle

        return getattr(handle, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_NEED_TORCH])
