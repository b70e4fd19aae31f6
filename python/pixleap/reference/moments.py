from __future__ import annotations

import numpy as np


def moments(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Per-sample sums of two arrays; see `pixleap.ops.moments`."""
    x, y = (np.asarray(v, np.float64).reshape(len(v), int(np.prod(v.shape[1:]))) for v in (a, b))
    sums = [v.sum(axis=1) for v in (x, y, x * x, y * y, x * y)]
    return np.stack([*sums, np.abs(x - y).max(axis=1, initial=0.0)], axis=1)
