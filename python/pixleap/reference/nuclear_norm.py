from __future__ import annotations

import numpy as np


def nuclear_norm(a: np.ndarray, b: np.ndarray | None = None) -> np.ndarray:
    """Sum of singular values; see `pixleap.ops.nuclear_norm`."""
    matrix = np.asarray(a, np.float64)
    if b is not None:
        matrix = matrix @ np.swapaxes(np.asarray(b, np.float64), -1, -2)
    return np.linalg.svd(matrix, compute_uv=False).sum(axis=-1)
