from __future__ import annotations

import numpy as np


def matrix_sqrt(a: np.ndarray) -> np.ndarray:
    """V sqrt(w) V^T; see `pixleap.ops.matrix_sqrt`."""
    values, vectors = np.linalg.eigh(np.asarray(a, np.float64))
    return (vectors * np.sqrt(values.clip(min=0.0))[..., None, :]) @ np.swapaxes(vectors, -1, -2)
