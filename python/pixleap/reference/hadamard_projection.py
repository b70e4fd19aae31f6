from __future__ import annotations

import numpy as np


def hadamard_projection(x: np.ndarray, flips: np.ndarray, *, count: int) -> np.ndarray:
    """Projections onto random orthogonal directions; see `pixleap.ops.hadamard_projection`."""
    size = flips.shape[1]
    h = np.ones((1, 1))
    while len(h) < size:
        h = np.block([[h, h], [h, -h]]) / np.sqrt(2)
    values = np.zeros((size, len(x)))
    values[: x.shape[1]] = np.asarray(x, np.float64).T
    for flip in flips:
        values = h @ (np.where(flip, -1.0, 1.0)[:, None] * values)
    return np.sqrt(size / x.shape[1]) * values[:count]
