from __future__ import annotations

import numpy as np


def trace_sqrt_product(
    c1: np.ndarray, c2: np.ndarray, *, method: str = "auto", return_info: bool = False
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """Nuclear norm of S1^T S2 with S = V sqrt(w); see `pixleap.ops.trace_sqrt_product`. Whichever
    method is asked for, there is one here."""
    roots, ranks, residuals = [], [], []
    for c in (np.asarray(c1, np.float64), np.asarray(c2, np.float64)):
        values, vectors = np.linalg.eigh(c)
        least = c.shape[-1] * np.finfo(np.float64).eps * values.max(axis=-1, initial=0.0)
        values = np.where(values > least[..., None], values, 0.0)
        root = vectors * np.sqrt(values)[..., None, :]
        left = np.abs(c - root @ np.swapaxes(root, -1, -2)).max(axis=(-1, -2), initial=0.0)
        roots.append(root)
        ranks.append((values > 0).sum(axis=-1))
        residuals.append(left / np.abs(c).max(axis=(-1, -2), initial=1e-300))
    singular = np.linalg.svd(np.swapaxes(roots[0], -1, -2) @ roots[1], compute_uv=False)
    trace = singular.sum(axis=-1)
    error = np.finfo(np.float64).eps * c1.shape[-1] * trace
    info = np.stack(np.broadcast_arrays(3.0, *ranks, error, *residuals), axis=-1)
    return (trace, info) if return_info else trace
