from __future__ import annotations

from typing import Any

import numpy as np


def dynamic_threshold(
    x: np.ndarray,
    *,
    ratio: float = 0.995,
    max_value: float = 1.0,
    min_value: float = 1.0,
    return_scale: bool = False,
) -> Any:
    """Clamp to a quantile of the magnitudes; see `pixleap.ops.dynamic_threshold`."""
    x = np.asarray(x, np.float64)
    flat = np.sort(np.abs(x.reshape(len(x), int(np.prod(x.shape[1:])))), axis=1)  # NaN last
    position = ratio * (flat.shape[1] - 1)
    rank = min(int(position), flat.shape[1] - 1)
    low, high = flat[:, rank], flat[:, min(rank + 1, flat.shape[1] - 1)]
    with np.errstate(invalid="ignore"):
        between = low + (position - rank) * (high - low)
        scale = np.where((position == rank) | (low == high), low, between)
        scale = np.clip(scale, min_value, max_value)
        scale = np.where(np.isnan(flat[:, -1]), np.nan, scale) if len(x) else scale
        s = scale.reshape((len(x),) + (1,) * (x.ndim - 1))
        out = np.clip(x, -s, s) / s
    return (out, scale) if return_scale else out
