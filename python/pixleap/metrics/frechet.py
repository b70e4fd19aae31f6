from __future__ import annotations

from typing import Any, Literal, overload

import numpy as np

from .. import ops
from ._features import to_numpy

_METHODS = ("auto", "cholesky", "pivoted", "eigh", "polar", "compat")
_NATIVE = {1: "cholesky", 2: "pivoted", 3: "eigh"}


@overload
def frechet_distance(
    mu1: Any,
    sigma1: Any,
    mu2: Any,
    sigma2: Any,
    *,
    method: str = ...,
    return_info: Literal[False] = ...,
) -> float: ...
@overload
def frechet_distance(
    mu1: Any, sigma1: Any, mu2: Any, sigma2: Any, *, method: str = ..., return_info: Literal[True]
) -> tuple[float, dict[str, Any]]: ...


def frechet_distance(
    mu1: Any,
    sigma1: Any,
    mu2: Any,
    sigma2: Any,
    *,
    method: str = "auto",
    return_info: bool = False,
) -> float | tuple[float, dict[str, Any]]:
    """Frechet distance of two Gaussians, as in FID (Heusel et al. 2017).

    |mu1 - mu2|^2 + tr sigma1 + tr sigma2 - 2 tr (sigma1 sigma2)^(1/2), in float64. The last trace
    is the nuclear norm of S1^T S2 with sigma = S S^T: real for positive semi-definite matrices of
    any rank. It is never complex, and nothing is added to a diagonal.

    Args:
        mu1, mu2: (d,) means.
        sigma1, sigma2: (d, d) covariances, symmetric positive semi-definite.
        method: "auto", "cholesky", "pivoted" or "eigh" as in `pixleap.ops.trace_sqrt_product`;
            "polar": Cholesky factors and a Newton-Schulz iteration, matrix products only, for torch
            tensors on any device; "compat": what pytorch-fid 0.3 computes (scipy's sqrtm of the
            product, 1e-6 added to the diagonals where that fails), for comparisons; needs scipy.
        return_info: also return what was done.

    Returns:
        The distance, which rounding can leave at about -1e-15 times the traces where both
        Gaussians are the same; and where asked for a dict: `method` taken, `mean_term`,
        `trace_sqrt`, and of the native methods `rank1`, `rank2`, `error` (estimate, of the
        distance) and `residual1`, `residual2` (max |sigma - S S^T| / max |sigma|).

    Raises:
        ValueError: shapes that do not fit; NaN or infinity; a covariance that is not symmetric or
            has an eigenvalue clearly below zero; an unknown method.
        ImportError: method "compat" without scipy, "polar" without torch.
    """
    if method not in _METHODS:
        raise ValueError(
            f"frechet_distance: argument 'method' expected one of {', '.join(_METHODS)}, "
            f"got {method!r}"
        )
    m1, m2 = mean("mu1", mu1), mean("mu2", mu2)
    d = len(m1)
    if len(m2) != d:
        raise ValueError(f"frechet_distance: argument 'mu2' expected shape ({d},), got {m2.shape}")
    for name, sigma in (("sigma1", sigma1), ("sigma2", sigma2)):
        if tuple(np.shape(sigma)) != (d, d):
            raise ValueError(
                f"frechet_distance: argument '{name}' expected shape ({d}, {d}), "
                f"got {tuple(np.shape(sigma))}"
            )
    info: dict[str, Any] = {"method": method, "mean_term": float(np.sum((m1 - m2) ** 2))}
    if method == "polar":
        from .polar import trace_sqrt_product_polar

        info["trace_sqrt"] = trace_sqrt_product_polar(sigma1, sigma2)
    c1, c2 = to_float64("sigma1", sigma1), to_float64("sigma2", sigma2)
    if method == "compat":
        info["trace_sqrt"] = _trace_by_sqrtm(c1, c2)
    elif method != "polar":
        info |= trace_sqrt_with_info(c1, c2, method)
    distance = info["mean_term"] + float(np.trace(c1) + np.trace(c2)) - 2.0 * info["trace_sqrt"]
    return (distance, info) if return_info else distance


def to_float64(name: str, x: Any) -> np.ndarray:
    return np.asarray(to_numpy("frechet_distance", name, x), np.float64)


def mean(name: str, mu: Any) -> np.ndarray:
    m = to_float64(name, mu)
    if m.ndim != 1:
        raise ValueError(f"frechet_distance: argument '{name}' expected shape (d,), got {m.shape}")
    if not np.isfinite(m).all():
        raise ValueError(f"frechet_distance: argument '{name}' has NaN or infinity")
    return m


def trace_sqrt_with_info(c1: np.ndarray, c2: np.ndarray, method: str) -> dict[str, Any]:
    try:
        trace, row = ops.trace_sqrt_product(c1, c2, method=method, return_info=True)
    except ValueError as error:  # in the words of the caller's arguments
        text = str(error).replace("trace_sqrt_product:", "frechet_distance:", 1)
        raise ValueError(text.replace("'c1'", "'sigma1'").replace("'c2'", "'sigma2'")) from None
    return {
        "method": _NATIVE.get(int(row[0]), method),
        "trace_sqrt": float(trace),
        "rank1": int(row[1]),
        "rank2": int(row[2]),
        "error": 2.0 * float(row[3]),
        "residual1": float(row[4]),
        "residual2": float(row[5]),
    }


def _trace_by_sqrtm(c1: np.ndarray, c2: np.ndarray) -> float:
    """As pytorch-fid: sqrtm of the product, with 1e-6 I added to both where it is singular."""
    from scipy import linalg

    root = np.asarray(linalg.sqrtm(c1 @ c2))
    if not np.isfinite(root).all():
        offset = 1e-6 * np.eye(len(c1))
        root = np.asarray(linalg.sqrtm((c1 + offset) @ (c2 + offset)))
    if np.iscomplexobj(root):
        imaginary = np.abs(np.diagonal(root).imag).max(initial=0.0)
        if imaginary > 1e-3:
            raise ValueError(f"frechet_distance: imaginary component {imaginary:g} (method compat)")
        root = root.real
    return float(np.trace(root))
