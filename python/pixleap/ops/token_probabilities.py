from __future__ import annotations

from .. import _native
from .._arrays import Array, empty, shape


def token_probabilities(
    logits: Array,
    *,
    tokens: Array | None = None,
    uncond: Array | None = None,
    guidance_scale: float = 1.0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    log: bool = False,
    out: Array | None = None,
) -> Array:
    """The distribution that `sample_tokens` draws from: of all tokens, or at given ones.

    Args:
        logits, uncond, guidance_scale, temperature, top_k, top_p: as for `sample_tokens`.
        tokens: (B, L) int64, each from 0 to V - 1, to look up in place of whole distributions.
        log: natural logarithms; -inf where a filter removed the token.
        out: to write, of the shape returned.

    Returns:
        float32 (B, L, V), zero where filtered, or (B, L) with `tokens`.

    Raises:
        ValueError: a token that is none of the vocabulary (on the CPU; on CUDA its result is that
            of a filtered token), numbers that `sample_tokens` refuses, shapes or strides that do
            not fit.
        TypeError: dtypes or devices that do not fit.

    Speculative decoding needs whole distributions (Leviathan et al. 2023, arXiv:2211.17192), scores
    of given tokens need the logarithms. Rows without a distribution (no value above -inf, +inf,
    temperature 0) have probability 1 at the token that `sample_tokens` takes.
    """
    if out is None:
        size = shape(logits, "token_probabilities", "logits", 3)
        out = empty(logits, size if tokens is None else size[:2], "float32")
    _native.token_probabilities(
        out, logits, tokens, uncond, guidance_scale, temperature, top_k, top_p, log
    )
    return out
