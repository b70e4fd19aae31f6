from __future__ import annotations

from .. import _native
from .._arrays import Array, empty, pair_workspace, shape


def pairwise_topk(
    x: Array, y: Array | None = None, *, k: int, out: tuple[Array, Array] | None = None
) -> tuple[Array, Array]:
    """The k nearest neighbours of every row of x, without the distance matrix.

    float32 matrix products choose k + 8 candidates per row; their distances are then computed from
    the rows in float64, and a row where rounding could have hidden a neighbour is searched again in
    float64. So the distances are those of a float64 brute force, and equal rows have distance 0.

    Args:
        x: (N, d) float32, bfloat16 or float16; stride 1 along d.
        y: (M, d) of x's dtype, or None: the other rows of x (a row is not its own neighbour).
        k: 1 to 64, at most M (N - 1 without y).
        out: (distances, indices).

    Returns:
        distances (N, k) float64: squared Euclidean distances, ascending.
        indices (N, k) int64: the rows of y (of x) they belong to; of equal distances inside the
        result the lower row comes first. Where NaN leaves fewer than k: infinity and -1.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit, k out of range.

    Used by `pixleap.metrics.prdc`; also finds the training sample nearest to a generated one.
    """
    if out is None:
        size = (shape(x, "pairwise_topk", "x", 2)[0], max(k, 0))
        out = empty(x, size, "float64"), empty(x, size, "int64")
    distances, indices = out
    rows = shape(x, "pairwise_topk", "x", 2)[0]
    # On a GPU: lists of k + 8 candidates, for several parts of the columns where rows are few.
    lists = min(16, max(1, 2 * 132 * 128 // max(rows, 1)))
    scratch = pair_workspace("pairwise_topk", x, y, max(k + 8, 0) * lists)
    _native.pairwise_topk(distances, indices, scratch, x, y, k)
    return distances, indices
