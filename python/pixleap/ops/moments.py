from __future__ import annotations

from .. import _native
from .._arrays import Array, empty, shape


def moments(a: Array, b: Array, *, out: Array | None = None) -> Array:
    """Per-sample sums that guidance rules and error norms need, in one pass over two arrays.

    Args:
        a, b: (B, ...) float32, bfloat16, float16 or float64; each sample contiguous.
        out: (B, 6) float64.

    Returns:
        (B, 6) float64: sum a, sum b, sum a*a, sum b*b, sum a*b, max |a - b| over all but the first
        axis. float32 lanes add blocks of 512 elements, float64 takes over from there (and does all
        of it for float64 arrays), in a fixed order: the same bits for any thread count and batch.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit.

    Used by APG's projection, CFG-rescale, Adaptive Guidance's cosine and adaptive solvers.
    """
    if out is None:
        out = empty(a, (*shape(a, "moments", "a")[:1], 6), "float64")
    _native.moments(out, a, b)
    return out
