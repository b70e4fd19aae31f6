from __future__ import annotations

from .. import _native
from .._arrays import Array, empty, shape


def systematic_resample(
    log_weights: Array,
    *,
    seed: int,
    offset: int = 0,
    first_row: int = 0,
    out: Array | None = None,
) -> Array:
    """Systematic resampling of particles: ancestors in proportion to their weights.

    With w the softmax of a row and one uniform u per row, entry k is the least index i with
    w[0] + ... + w[i] > (u + k) / K. Index i comes up floor(K w[i]) or ceil(K w[i]) times.

    Args:
        log_weights: (..., K) float32 or float64, contiguous, of any common offset per row.
        seed, offset: key of the random stream (Philox4x32-10).
        first_row: index of the first row in a larger batch. Row r (counted over the leading axes)
            takes words 0 and 1 of group first_row + r of the stream, so that a row drawn alone
            equals the same one drawn in the batch.
        out: (..., K) int64 to write.

    Returns:
        (..., K) int64 indices, never falling along a row.

    Raises:
        ValueError: a row with NaN or +inf, or with nothing above -inf (on a GPU, where nothing
            waits for the result, such a row gets -1 throughout); shapes that do not fit.
        TypeError: dtypes or devices that do not fit.

    Weights and sums are float64. Used by particle samplers such as Feynman-Kac correctors.

    Source: Kitagawa, "Monte Carlo filter and smoother for non-Gaussian nonlinear state space
    models" (1996); Douc and Cappe, "Comparison of resampling schemes for particle filtering"
    (2005).
    """
    if out is None:
        out = empty(log_weights, shape(log_weights, "systematic_resample", "log_weights"), "int64")
    _native.systematic_resample(out, log_weights, seed, offset, first_row)
    return out
