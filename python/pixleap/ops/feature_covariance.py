from __future__ import annotations

from .. import _native
from .._arrays import Array, empty, shape


def feature_covariance(
    second: Array, first: Array, count: int, *, out: tuple[Array, Array] | None = None
) -> tuple[Array, Array]:
    """Mean and covariance from the totals of `feature_moments`.

    Args:
        second: (d (d + 1) / 2, 2) int64. first: (d, 2) int64.
        count: rows that were added, at least 2.
        out: float64 arrays of shapes (d,) and (d, d).

    Returns:
        mean (d,) and covariance (d, d) with the divisor count - 1, float64, exactly symmetric. The
        difference of the moments is taken in 106 bits: nothing cancels where means are large.
        NaN where a GPU was given features that `feature_moments` refuses.

    Raises:
        ValueError, TypeError: shapes, dtypes, devices or a count that do not fit.
    """
    if out is None:
        d = shape(first, "feature_covariance", "first", 2)[0]
        out = empty(first, (d,), "float64"), empty(first, (d, d), "float64")
    _native.feature_covariance(*out, second, first, count)
    return out
