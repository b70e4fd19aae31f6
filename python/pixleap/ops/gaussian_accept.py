from __future__ import annotations

from .. import _native
from .._arrays import Array, empty, shape


def gaussian_accept(
    target_mean: Array,
    target_std: Array,
    draft_mean: Array,
    draft_std: Array,
    x: Array,
    *,
    seed: int,
    offset: int = 0,
    first_sample: int = 0,
    out: tuple[Array, Array] | None = None,
) -> tuple[Array, Array]:
    """Exact verification of drafted continuous tokens: what comes out follows the target.

    x was drawn from q = N(draft_mean, draft_std^2), channels being independent; the target is
    p = N(target_mean, target_std^2). A position stays with probability min(1, p(x) / q(x)), in all
    with 1 - TV(p, q), else it is replaced by a draw from the residual (p - q)+.

    Args:
        target_mean, draft_mean, x: (B, L, D) float32, unit last stride.
        target_std, draft_std: (B, L, D) or (B, L, 1) float32, >= 0.
        seed, offset: key of the random stream (Philox4x32-10); one that x was not drawn by.
        first_sample: index of the first sample in a larger batch. Position l of sample b takes
            group (first_sample + b) * L + l of the stream, so that a sample alone equals the same
            one in the batch.
        out: (out, accepted) to write; `out` with unit last stride may be x itself.

    Returns:
        out (B, L, D) float32: x, or its replacement; accepted (B, L) bool.

    Raises:
        ValueError: a number that is not finite or a negative deviation (on a GPU, where nothing
            waits for the result, such a position gets NaN and is not accepted); shapes or strides
            that do not fit.
        TypeError: dtypes or devices that do not fit.

    Where all deviations of a position are equal, a rejected x is mirrored in the plane half way
    between the means (in units of the deviations): that is the residual's law, without a loop. Else
    the residual is drawn by rejection until one stays, under an envelope that keeps tries few where
    p and q are close. A deviation of 0 is the limit: where one of the two is 0, or both at
    different means, p and q share nothing, and a draw from p replaces x; so does it where x is not
    what a draft without deviation gives. Log densities are float64.

    Source: continuous speculative decoding, arXiv:2411.11925 (this op keeps the target's law, see
    the op's README); reflection coupling: Bou-Rabee, Eberle and Zimmer, arXiv:1805.00452.
    """
    if out is None:
        size = shape(x, "gaussian_accept", "x", 3)
        out = empty(x, size), empty(x, size[:2], "bool")
    result, accepted = out
    _native.gaussian_accept(
        result, accepted, target_mean, target_std, draft_mean, draft_std, x, seed, offset,
        first_sample,
    )  # fmt: skip
    return result, accepted
