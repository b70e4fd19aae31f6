from __future__ import annotations

from .. import _native
from .._arrays import Array, shape, workspace


def feature_moments(features: Array, second: Array, first: Array) -> tuple[Array, Array]:
    """Adds the raw first and second moments of rows to exact totals, in place.

    Args:
        features: (N, d) float32, float64, bfloat16 or float16, unit last stride.
        second: (d (d + 1) / 2, 2) int64: the lower triangle, row by row, of sum x_i x_j.
        first: (d, 2) int64: sum x_i.

    Returns:
        (second, first). Each total is a 128-bit integer (low and high half) in units of 2^-74, so
        that totals can be added in any order, on any machine, with the same bits. Rows are taken in
        equal blocks of at most 2048 of one call, centred about their float32 mean; products of
        float32, bfloat16 and float16 features are added in float32 over at most 128 rows and in
        float64 from there, those of float64 in float64; moments about zero are then formed in twice
        that precision. Results depend on how rows are split into calls, not on threads.

    Raises:
        ValueError: shapes that do not fit; NaN or infinity (the row is named); sums of squares of
            2^52 and more (a column is named). Nothing was added then. On a GPU, where nothing waits
            for the result, nothing is added and the totals are marked: `feature_covariance` of
            them, and of all that is added to them, is NaN.
        TypeError: dtypes or devices that do not fit.

    Features of a standard deviation below about 1e-6 should be scaled up: 2^-74 is 5e-23.
    """
    n, d = shape(features, "feature_moments", "features", 2)
    scratch = workspace(features, 4 * -(-n // 2048) * d + 1)
    _native.feature_moments(second, first, scratch, features)
    return second, first
