from __future__ import annotations

from .. import _native
from .._arrays import Array, empty, pair_workspace, shape


def pairwise_count(
    x: Array,
    y: Array,
    x_radii: Array,
    y_radii: Array,
    *,
    out: tuple[Array, Array] | None = None,
) -> tuple[Array, Array]:
    """Which points of one set lie inside balls around the points of the other, counted per point.

    A pair is decided by a float32 matrix product where that leaves no doubt, and from its two rows
    in float64 where the distance is within the rounding error of a radius: the counts are those of
    a float64 brute force.

    Args:
        x, y: (N, d), (M, d) float32, bfloat16 or float16; stride 1 along d.
        x_radii, y_radii: (N,), (M,) float64, contiguous: squared radii of the balls. A ball does
            not contain its boundary, so radius 0 holds nothing; infinity holds everything.
        out: (x_counts, y_counts).

    Returns:
        x_counts (N, 2) int64: [:, 0] points of y in the ball of x_i, [:, 1] balls of y that
        contain x_i.
        y_counts (M, 2) int64: [:, 0] points of x in the ball of y_j, [:, 1] balls of x that
        contain y_j.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit.

    Used by `pixleap.metrics.prdc`.
    """
    if out is None:
        rows, columns = (shape(v, "pairwise_count", name, 2)[0] for v, name in ((x, "x"), (y, "y")))
        out = empty(x, (rows, 2), "int64"), empty(x, (columns, 2), "int64")
    x_counts, y_counts = out
    scratch = pair_workspace("pairwise_count", x, y)
    _native.pairwise_count(x_counts, y_counts, scratch, x, y, x_radii, y_radii)
    return x_counts, y_counts
