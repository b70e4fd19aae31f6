from __future__ import annotations

import numpy as np


def frechet_distance(
    mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray, sigma2: np.ndarray
) -> float:
    """Frechet distance of two Gaussians, as in FID (Heusel et al. 2017).

    |mu1 - mu2|^2 + tr(sigma1 + sigma2 - 2 (sigma1 sigma2)^(1/2)), in float64. The trace of the
    square root is the nuclear norm of S1^T S2 with sigma = S S^T, so it is real for any positive
    semi-definite input, of any rank, and nothing is added to a diagonal.

    Args:
        mu1, mu2: (d,).
        sigma1, sigma2: (d, d), symmetric positive semi-definite.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, a matrix that is not
            symmetric or has an eigenvalue clearly below 0.
    """
    mu1, mu2 = np.asarray(mu1, np.float64), np.asarray(mu2, np.float64)
    d = mu1.shape[0] if mu1.ndim == 1 else -1
    if d < 0 or mu2.shape != (d,):
        raise ValueError(f"frechet_distance: means of shapes {mu1.shape} and {mu2.shape}")
    roots = []
    traces = 0.0
    for name, matrix in (("sigma1", sigma1), ("sigma2", sigma2)):
        s = np.asarray(matrix, np.float64)
        if s.shape != (d, d):
            raise ValueError(
                f"frechet_distance: argument '{name}' expected shape ({d}, {d}), got {s.shape}"
            )
        if not np.isfinite(s).all():
            raise ValueError(f"frechet_distance: argument '{name}' has NaN or infinity")
        if np.abs(s - s.T).max(initial=0.0) > 1e-8 * np.abs(s).max(initial=0.0):
            raise ValueError(f"frechet_distance: argument '{name}' is not symmetric")
        values, vectors = np.linalg.eigh(s)
        if values.min(initial=0.0) < -1e-6 * np.abs(values).max(initial=0.0):
            raise ValueError(
                f"frechet_distance: argument '{name}' is not positive semi-definite "
                f"(eigenvalue {values.min():g})"
            )
        roots.append(vectors * np.sqrt(values.clip(min=0)))
        traces += float(np.trace(s))
    nuclear = np.linalg.svd(roots[0].T @ roots[1], compute_uv=False).sum()
    return float(np.sum((mu1 - mu2) ** 2) + traces - 2.0 * nuclear)
