"""The Frechet distance straight from features: low ranks never become d x d matrices, and the
gradient is exact."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import ops
from .._arrays import is_torch
from ._features import to_numpy

SAFE_PIVOT = 1e-6  # smaller Cholesky pivots may be rounding noise


def frechet_distance_from_features(x: Any, y: Any, *, differentiable: bool = False) -> Any:
    """Frechet distance of the Gaussians fitted to two sets of features.

    Args:
        x: (n1, d) features, y: (n2, d), floating point, at least 2 rows each.
        differentiable: take torch tensors and return a 0-dimensional float64 tensor through which
            gradients flow, on the CPU.

    Returns:
        float. Where a set has no more than d rows its factor is the centred rows themselves: with
        n1, n2 rows only an (n1, n2) matrix is decomposed. Covariances have the divisor n - 1.

    Raises:
        ValueError: fewer than 2 rows, NaN or infinity, different d.
        TypeError: `differentiable` with what is no torch tensor.

    The gradient of tr (C1 C2)^(1/2) is that of a nuclear norm, U V^T of its singular vectors, which
    also holds where C1 and C2 are singular.
    """
    if differentiable:
        for name, features in (("x", x), ("y", y)):
            if not is_torch(features):
                raise TypeError(
                    f"frechet_distance_from_features: argument '{name}' expected a torch tensor "
                    f"where differentiable, got {type(features).__name__}"
                )
        from .frechet_gradient import differentiable_distance

        return differentiable_distance(x, y)
    (first, mu1), (second, mu2) = check_features(x, y)
    mean_term = float(np.sum((mu1 - mu2) ** 2))
    d = len(mu1)
    if len(first) > d and len(second) > d:
        c1, c2 = covariance(first - mu1), covariance(second - mu2)
        trace_sqrt: Any = ops.trace_sqrt_product(c1, c2)
        return mean_term + float(np.trace(c1) + np.trace(c2) - 2.0 * trace_sqrt)
    s1, s2 = factor(first, mu1), factor(second, mu2)
    traces = np.einsum("ij,ij->", s1, s1) + np.einsum("ij,ij->", s2, s2)
    return mean_term + float(traces - 2.0 * ops.nuclear_norm(s1, s2))


Set = tuple[np.ndarray, np.ndarray]  # rows as they came, their mean in float64


def check_features(x: Any, y: Any) -> tuple[Set, Set]:
    sets = []
    for name, features in (("x", x), ("y", y)):
        f = to_numpy("frechet_distance_from_features", name, features)
        if f.ndim != 2 or len(f) < 2 or f.dtype.kind != "f":
            raise ValueError(
                f"frechet_distance_from_features: argument '{name}' expected floating-point "
                f"features of shape (n, d) with n of at least 2, got {f.dtype} {f.shape}"
            )
        mu = f.mean(axis=0, dtype=np.float64)
        if not np.isfinite(mu).all():
            row = int((~np.isfinite(f).all(axis=1)).argmax())
            raise ValueError(
                f"frechet_distance_from_features: argument '{name}' has NaN or infinity in row "
                f"{row}"
            )
        sets.append((f, mu))
    d1, d2 = (len(mu) for _, mu in sets)
    if d1 != d2:
        raise ValueError(
            f"frechet_distance_from_features: argument 'y' expected {d1} features as 'x', got {d2}"
        )
    return sets[0], sets[1]


def covariance(a: np.ndarray) -> np.ndarray:
    """Of centred rows."""
    return a.T @ a / (len(a) - 1)


def factor(x: np.ndarray, mu: np.ndarray) -> np.ndarray:
    """(r, d) S with S^T S the covariance of the rows x with mean mu, and r at most d."""
    n, d = x.shape
    if n <= d:
        # The reflection that takes (1, ..., 1) to the first axis leaves n - 1 rows; centred rows
        # would keep a direction without variance, which costs accuracy.
        shift = mu - (x[0] - mu) / (np.sqrt(n) - 1)
        rows = x[1:] - shift
        rows *= 1.0 / np.sqrt(n - 1)
        return rows
    return centred_factor(x - mu)


def centred_factor(a: np.ndarray) -> np.ndarray:
    """(d, d) upper triangular S with S^T S the covariance of more than d centred rows."""
    try:
        root = np.linalg.cholesky(covariance(a)).T
        pivots = np.diagonal(root)
        if pivots.min() > SAFE_PIVOT * pivots.max():
            return root
    except np.linalg.LinAlgError:
        pass
    return np.linalg.qr(a, mode="r") / np.sqrt(len(a) - 1)
