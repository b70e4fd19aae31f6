from __future__ import annotations

from .. import _native
from .._arrays import Array
from .speculative_accept import accept_outputs


def relaxed_accept(
    target: Array,
    draft: Array,
    tokens: Array,
    *,
    rule: str,
    mode: str = "token",
    epsilon: float = 0.09,
    delta: float = 0.3,
    neighbours: Array | None = None,
    tolerance: float = 0.1,
    seed: int = 0,
    offset: int = 0,
    first_sample: int = 0,
    out: tuple[Array, Array, Array] | None = None,
) -> tuple[Array, Array, Array]:
    """APPROXIMATE verification of drafted tokens: more of them stay than the target's law allows.

    What comes out does not follow the target; use `speculative_accept` where it must. Everything
    but the decision is that op's: rows are divided by their sums, a rejected token is replaced by a
    draw from (p - q)+, numbers come from the same places of the stream.

    rule "typical": a token stays if p > min(epsilon, delta * exp(-H(p))), H being the entropy in
        nats; no random number and no q decides. Medusa's posterior_threshold and posterior_alpha
        are epsilon and delta. It favours likely tokens: tails of p are lost, and what the draft
        prefers among likely tokens stays preferred.
    rule "neighbourhood": p of the token is raised by those of its nearest tokens in the codebook,
        as many of them, nearest first, as sum to at most delta; it stays with probability
        min(1, p' / q). Each token is judged by a distribution within total variation delta of p;
        tokens are judged by different ones, so that the output may be further from p than delta.
    rule "tolerance": a token stays with probability min(1, p / q + tolerance). At most tolerance
        times the draft's probability where q > p is kept in excess, so that the output is within
        total variation tolerance of p at every position, towards q.

    Args:
        target, draft, tokens: as `speculative_accept` takes them.
        rule: "typical", "neighbourhood" or "tolerance".
        mode: "token" or "chain", as in `speculative_accept`.
        epsilon, delta: >= 0; "typical" and, for delta, "neighbourhood". LANTERN's delta is 0.05
            to 0.4.
        neighbours: (V, K) int64, the tokens nearest to each token, nearest first ("neighbourhood"
            only); the token itself does not count where it is listed.
        tolerance: >= 0 ("tolerance" only).
        seed, offset, first_sample: as in `speculative_accept`.
        out: (tokens, accepted, accepted_length) to write, contiguous.

    Returns:
        tokens, accepted and accepted_length, as `speculative_accept` returns them.

    Raises:
        ValueError: an unknown rule or mode; numbers below 0 or not finite; neighbours missing, not
            wanted or outside [0, V) in the row of a drafted token; rows, tokens, shapes or strides
            that `speculative_accept` refuses.
        TypeError: dtypes or devices that do not fit.

    Source: "typical": Medusa, arXiv:2401.10774; "neighbourhood": LANTERN, arXiv:2410.03355, whose
    code sets p of the neighbours to 0 before it draws a replacement, where this op draws from the
    exact residual; "tolerance": the additive form of EARS, arXiv:2512.13194, with a constant.
    """
    if out is None:
        out = accept_outputs("relaxed_accept", target, draft, mode)
    result, accepted, accepted_length = out
    _native.relaxed_accept(
        result, accepted, accepted_length, target, draft, tokens, neighbours, rule, mode, epsilon,
        delta, tolerance, seed, offset, first_sample,
    )  # fmt: skip
    return result, accepted, accepted_length
