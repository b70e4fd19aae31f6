from __future__ import annotations

import numpy as np

from .philox import philox


def systematic_resample(
    log_weights: np.ndarray, *, seed: int, offset: int = 0, first_row: int = 0
) -> np.ndarray:
    """Systematic resampling; see `pixleap.ops.systematic_resample`."""
    x = np.asarray(log_weights, np.float64)
    count = x.shape[-1]
    rows = x.reshape(-1, count) if x.size else x.reshape(0, max(count, 1))
    if not np.all(np.isfinite(rows.max(axis=1, initial=-np.inf))):
        raise ValueError("systematic_resample: a row has NaN, +inf or no weight above -inf")
    words = philox(first_row + np.arange(len(rows)), seed, offset)[:, :2].astype(np.uint64)
    bits = (words[:, 0] << np.uint64(32)) | words[:, 1]
    u = ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    result = np.empty(rows.shape, np.int64)
    for row, number, indices in zip(rows, u, result, strict=True):
        weights = np.exp(row - row.max())
        sums = np.cumsum(weights)
        positions = (number + np.arange(count)) * sums[-1]
        last = np.flatnonzero(np.diff(sums, prepend=0.0) > 0)[-1]
        indices[:] = np.minimum(np.searchsorted(sums * count, positions, side="right"), last)
    return result.reshape(x.shape)
