from __future__ import annotations

import math

from .. import _native
from .._arrays import Array, empty, shape


def trace_sqrt_product(
    c1: Array,
    c2: Array,
    *,
    method: str = "auto",
    out: Array | None = None,
    return_info: bool = False,
) -> Array | tuple[Array, Array]:
    """tr (c1 c2)^(1/2) of symmetric positive semi-definite matrices, as the Frechet distance needs.

    It equals the nuclear norm of S1^T S2 with c = S S^T: real for every input of any rank.

    Args:
        c1, c2: (..., d, d) float32 or float64, any strides, d < 32768.
        method: "cholesky": by the eigenvalues of L1^T c2 L1, for positive definite c1.
            "pivoted": by pivoted Cholesky factors of both, which end at the numerical rank.
            "eigh": by factors from the eigenvectors of both.
            "auto": "cholesky" where its estimated rounding is below 1e-11, else "pivoted".
        out: (...) float64.
        return_info: also return what was done.

    Returns:
        (...) float64, and where asked for (..., 6) float64: the method taken (1 cholesky,
        2 pivoted, 3 eigh), the ranks of c1 and c2, the estimated error with what rounding of the
        input explains, and max |c - S S^T| / max |c| of both (0 for method 1).

    Raises:
        ValueError: shapes or a method that do not fit; NaN or infinity; a matrix that is not
            symmetric, or has an eigenvalue clearly below zero; method "cholesky" with a c1 that is
            not positive definite.
        TypeError: dtypes or devices that do not fit.

    Source: Bjorck and Hammarling 1983 for the square root; Heusel et al. 2017 for its use in FID.
    """
    batch = shape(c1, "trace_sqrt_product", "c1")[:-2]
    if out is None:
        out = empty(c1, batch, "float64")
    info = empty(c1, (math.prod(batch), 6), "float64")
    _native.trace_sqrt_product(out, info, c1, c2, method)
    return (out, info.reshape((*batch, 6))) if return_info else out
