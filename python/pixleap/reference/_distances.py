from __future__ import annotations

import numpy as np


def squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(N, M) float64 squared distances, by differences: exact 0 for equal rows."""
    rows = [((np.asarray(y, np.float64) - row) ** 2).sum(axis=1) for row in x.astype(np.float64)]
    return np.stack(rows) if rows else np.zeros((0, len(y)))
