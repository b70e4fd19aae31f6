from __future__ import annotations

from .. import _native
from .._arrays import Array, empty, shape


def nuclear_norm(a: Array, b: Array | None = None, *, out: Array | None = None) -> Array:
    """Sum of the singular values of each matrix a, or of each product a b^T.

    Args:
        a: (..., m, n) float32 or float64, any strides, m and n < 32768.
        b: (..., k, n) of the same dtype.
        out: (...) float64.

    Returns:
        (...) float64. The eigenvalues of the smaller Gram matrix give it where an estimate of their
        rounding stays below 1e-11 of the result, else the singular values themselves.

    Raises:
        ValueError: shapes that do not fit; NaN or infinity.
        TypeError: dtypes or devices that do not fit.
    """
    if out is None:
        out = empty(a, shape(a, "nuclear_norm", "a")[:-2], "float64")
    _native.nuclear_norm(out, a, b)
    return out
