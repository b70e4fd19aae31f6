from __future__ import annotations

from .. import _native
from .._arrays import Array, empty, pair_workspace, shape


def pairwise_kernel_sum(
    x: Array,
    y: Array | None = None,
    *,
    kernel: str,
    gamma: float,
    coef0: float = 1.0,
    degree: int = 3,
    out: Array | None = None,
) -> Array:
    """Row sums of a kernel matrix that is never stored.

    Args:
        x: (N, d) float32, bfloat16 or float16; stride 1 along d.
        y: (M, d) of x's dtype, or None: x with itself, without the pairs of a row with itself;
            only half of the matrix is then computed.
        kernel: "polynomial", (gamma a.b + coef0)^degree, or "gaussian", exp(-gamma |a - b|^2).
        gamma: a number >= 0.
        coef0, degree: of the polynomial kernel; degree 1 to 16.
        out: (N,) float64.

    Returns:
        (N,) float64: sum over j of k(x_i, y_j). Kernel values are float32, their sums float64.
        Gaussian values are summed as k - 1, so that wide kernels keep their digits; their
        distances are of centred rows and wrong by about d 2^-24 of the squared norms at most.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit, parameters out of range.

    Used by `pixleap.metrics.kernel_distance` and `cmmd`.
    """
    if out is None:
        out = empty(x, shape(x, "pairwise_kernel_sum", "x", 2)[:1], "float64")
    columns = shape(x if y is None else y, "pairwise_kernel_sum", "y", 2)[0]
    scratch = pair_workspace("pairwise_kernel_sum", x, y, max(1, min(64, -(-columns // 64))))
    _native.pairwise_kernel_sum(out, scratch, x, y, kernel, gamma, coef0, degree)
    return out
