from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .philox import normal


def lincomb(
    inputs: Sequence[np.ndarray],
    coefficients: Sequence[Sequence[float]] | np.ndarray,
    *,
    clamp: float | None = None,
    noise_scale: Sequence[float] | None = None,
    seed: int = 0,
    offset: int = 0,
) -> list[np.ndarray]:
    """Linear combinations of n arrays into m arrays; see `pixleap.ops.lincomb`."""
    matrix = np.asarray(coefficients, np.float64)
    stacked = np.stack([np.asarray(x, np.float64) for x in inputs])
    results = np.tensordot(matrix, stacked, axes=1)
    if noise_scale is not None:
        noise = normal(stacked.shape[1:], seed, offset)
        results = results + np.multiply.outer(np.asarray(noise_scale, np.float64), noise)
    if clamp is not None:
        results = np.clip(results, -clamp, clamp)
    return list(results)
