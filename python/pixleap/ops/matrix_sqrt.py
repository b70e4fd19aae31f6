from __future__ import annotations

from .. import _native
from .._arrays import Array, empty, shape


def matrix_sqrt(a: Array, *, out: Array | None = None) -> Array:
    """The principal square root of symmetric positive semi-definite matrices, of any rank.

    Args:
        a: (..., d, d) float32 or float64, any strides, d < 32768.
        out: like `a`; may be `a` itself.

    Returns:
        (..., d, d), exactly symmetric: V sqrt(w) V^T of the eigenvalues w (those below zero by
        rounding count as zero) and vectors V, computed in float64 by LAPACK. Never complex, and
        nothing is added to the diagonal. Matrices up to 192 x 192 are computed one per thread, and
        their bits do not depend on the thread count; larger ones take all threads each.

    Raises:
        ValueError: shapes that do not fit; NaN or infinity; a matrix that is not symmetric or has
            an eigenvalue clearly below zero (then `out` holds no result).
        TypeError: dtypes or devices that do not fit.
    """
    if out is None:
        out = empty(a, shape(a, "matrix_sqrt", "a"))
    _native.matrix_sqrt(out, a)
    return out
