from __future__ import annotations

from .. import _native
from .._arrays import Array, empty, shape


def gumbel_softmax(
    logits: Array,
    *,
    uncond: Array | None = None,
    guidance_scale: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    logit_scale: float = 1.0,
    temperature: float = 1.0,
    seed: int = 0,
    offset: int = 0,
    first_sample: int = 0,
    seeds: Array | None = None,
    out: Array | None = None,
) -> Array:
    """softmax((logit_scale * x + gumbel) / temperature) of guided and filtered logits x.

    The product of the weights with a codebook mixes codes where `sample_tokens` picks one: what VAR
    does for smoother pictures (more_smooth). At logit_scale 1 the largest weight is at the token
    that `sample_tokens` draws with the same key at temperature 1.

    Args:
        logits, uncond, guidance_scale, top_k, top_p: as for `sample_tokens`, at temperature 1.
        logit_scale: multiplies the logits after the filters, >= 0; VAR: 1 + k / (S - 1) at scale k.
        temperature: of the softmax, > 0; VAR: max(0.27 (1 - 0.95 k / (S - 1)), 0.005).
        seed, offset, first_sample, seeds: the noise, word for word that of `sample_tokens`.
        out: (B, L, V) float32 to write, unit last stride.

    Returns:
        (B, L, V) float32 weights, zero where filtered; each row sums to 1.

    Raises:
        ValueError: numbers out of range, shapes or strides that do not fit.
        TypeError: dtypes or devices that do not fit.

    Rows without a distribution (no value above -inf, +inf) have weight 1 at the token that
    `sample_tokens` takes. Jang et al. 2017, arXiv:1611.01144; Tian et al. 2024, arXiv:2404.02905.
    """
    if out is None:
        out = empty(logits, shape(logits, "gumbel_softmax", "logits", 3), "float32")
    _native.gumbel_softmax(
        out, logits, uncond, guidance_scale, top_k, top_p, logit_scale, temperature, seed, offset,
        first_sample, seeds,
    )  # fmt: skip
    return out
