from __future__ import annotations

from .. import _native
from .._arrays import Array, empty, shape


def speculative_accept(
    target: Array,
    draft: Array,
    tokens: Array,
    *,
    mode: str = "token",
    seed: int = 0,
    offset: int = 0,
    first_sample: int = 0,
    seeds: Array | None = None,
    out: tuple[Array, Array, Array] | None = None,
) -> tuple[Array, Array, Array]:
    """Exact verification of drafted tokens: what comes out is distributed as the target.

    `tokens` were drawn from the draft's distributions q; p are the target's, of the model that
    counts. A row p or q is divided by its sum (in float64), so rows need not be normalised.

    mode "token": positions are independent, given what was drawn before (a scale of a next-scale
        model). Each drafted token stays with probability min(1, p / q), else it is replaced by a
        draw from the residual (p - q)+. A position stays with probability 1 - TV(p, q).
    mode "joint": all L tokens of a sample stay, with probability min(1, prod_l p_l / q_l), or all
        are replaced by a draw from the joint residual (P - Q)+ of the product distributions.
        A sample stays with probability 1 - TV(P, Q), which is at least prod_l (1 - TV_l).
    mode "chain": position l is conditional on those before it (raster autoregression). Tokens stay
        as in "token" up to the first rejection, which is replaced; what follows is void.

    Args:
        target: (B, L, V) float32 probabilities, unit last stride; in mode "chain" also
            (B, L + 1, V), with the row that follows all L tokens.
        draft: (B, L, V) float32 probabilities, as filtered when the tokens were drawn from them.
        tokens: (B, L) int64 in [0, V).
        seed, offset: key of the random stream (Philox4x32-10); one that `tokens` were not drawn by.
        first_sample: index of the first sample in a larger batch. Position l of sample b takes
            group (first_sample + b) * (L + 1) + l of the stream, so that a sample alone equals the
            same one in the batch.
        seeds: (B,) int64 where `target` is, in the place of `seed`: sample b draws from the stream
            of seeds[b] and takes the groups of sample first_sample, as if it were drawn alone with
            that seed. Or (B, 2): sample b draws from the stream of seeds[b, 0] and takes the
            groups of sample first_sample + seeds[b, 1]. The kernel reads them, so that a captured
            CUDA graph draws by what they hold when it is replayed.
        out: (tokens, accepted, accepted_length) to write, contiguous.

    Returns:
        tokens: (B, L) int64, or (B, L + 1) if `target` has L + 1 rows. Modes "token" and "joint":
            all of them valid. Mode "chain": the accepted ones, one from the target (the
            replacement, or after L accepted ones the bonus token of row L + 1), then -1.
        accepted: (B, L) bool, which drafted tokens stayed: in mode "joint" all of a sample or none,
            in mode "chain" none after the first rejection.
        accepted_length: (B,) int64, the number of accepted tokens before the first rejected one.

    Raises:
        ValueError: an unknown mode; a token outside [0, V); a row of probabilities with a negative,
            NaN or infinite number or with nothing above 0 (on a GPU, where nothing waits for the
            result, such positions get token -1 and are not accepted; mode "chain" does not read
            what follows a rejection); shapes or strides that do not fit.
        TypeError: dtypes or devices that do not fit.

    A drafted token with q = 0 cannot have been drawn: it is rejected. A residual that is zero
    throughout (p = q, to rounding) has nothing to draw from: p is taken instead. Decisions are
    float64, the same for every ISA and thread count.

    Source: Leviathan et al., arXiv:2211.17192; Chen et al., arXiv:2302.01318. "joint" is the
    maximal coupling of the product distributions; its residual is drawn by rejection from P, with
    P(reject) E[tries | reject] = TV / TV = 1 try expected per call, or fewer.
    """
    if out is None:
        out = accept_outputs("speculative_accept", target, draft, mode)
    result, accepted, accepted_length = out
    _native.speculative_accept(
        result, accepted, accepted_length, target, draft, tokens, mode, seed, offset, first_sample,
        seeds,
    )  # fmt: skip
    return result, accepted, accepted_length


def accept_outputs(op: str, target: Array, draft: Array, mode: str) -> tuple[Array, Array, Array]:
    """Tokens, accepted and accepted_length of both ops that verify drafts."""
    batch, length, _ = shape(draft, op, "draft", 3)
    rows = shape(target, op, "target", 3)[1] if mode == "chain" else length
    return (
        empty(draft, (batch, rows), "int64"),
        empty(draft, (batch, length), "bool"),
        empty(draft, (batch,), "int64"),
    )
