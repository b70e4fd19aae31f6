from __future__ import annotations

from .. import _native
from .._arrays import Array, empty, shape


def sample_tokens(
    logits: Array,
    *,
    uncond: Array | None = None,
    guidance_scale: float = 1.0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    offset: int = 0,
    first_sample: int = 0,
    out: Array | None = None,
) -> Array:
    """One token per position: guidance, temperature, top-k, top-p and a categorical draw.

    Args:
        logits: (B, L, V) float32, bfloat16 or float16, unit last stride.
        uncond: logits without the condition, like `logits`. The logits used are then
            guidance_scale * logits + (1 - guidance_scale) * uncond. VAR's (1 + t) cond - t uncond
            is guidance_scale = 1 + t.
        guidance_scale: used with `uncond` only.
        temperature: divides the logits; 0 takes the largest one (the lowest index on ties).
        top_k: keeps the values that are not below the k-th largest, ties with it included; 0 keeps
            all.
        top_p: in (0, 1], applied to the softmax of what top_k left. From the least likely token
            upwards, tokens go while the probability removed is at most 1 - top_p; among equal
            tokens the lower indices go first, and the largest always stays. 1 keeps all.
        seed, offset: key of the random stream (Philox4x32-10).
        first_sample: index of the first sample in a larger batch. Token v of position l of sample b
            takes word ((first_sample + b) * L + l) * V + v of the stream, so that a sample drawn
            alone equals the same one drawn in the batch.
        out: (B, L) int64 to write.

    Returns:
        (B, L) int64 tokens.

    Raises:
        ValueError: top_p outside (0, 1], top_k outside [0, V], a temperature that is negative or
            not finite, a guidance_scale that is not finite, shapes or strides that do not fit.
        TypeError: dtypes or devices that do not fit.

    A NaN counts as -inf. A row with no value above -inf gives token 0; in a row with +inf the first
    such token is taken.

    The filters are those of Visual Autoregressive Modeling (Tian et al., 2024); the draw is the
    Gumbel-max trick.
    """
    if out is None:
        out = empty(logits, shape(logits, "sample_tokens", "logits", 3)[:2], "int64")
    _native.sample_tokens(
        out, logits, uncond, guidance_scale, temperature, top_k, top_p, seed, offset, first_sample
    )
    return out
