from __future__ import annotations

import numpy as np

from ._distances import squared_distances


def pairwise_kernel_sum(
    x: np.ndarray,
    y: np.ndarray | None = None,
    *,
    kernel: str,
    gamma: float,
    coef0: float = 1.0,
    degree: int = 3,
) -> np.ndarray:
    """Row sums of a kernel matrix; see `pixleap.ops.pairwise_kernel_sum`."""
    other = x if y is None else y
    if kernel == "gaussian":
        values = np.exp(-gamma * squared_distances(x, other))
    else:
        values = (gamma * (x.astype(np.float64) @ other.astype(np.float64).T) + coef0) ** degree
    if y is None:
        np.fill_diagonal(values, 0.0)
    return values.sum(axis=1)
