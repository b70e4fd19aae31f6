from __future__ import annotations

from typing import Any

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
    first_position: int = 0,
    length: int = 0,
    noise_dtype: str = "float32",
    seeds: Array | None = None,
    return_log_prob: bool = False,
    return_probabilities: bool = False,
    out: Any = None,
) -> Any:
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
        first_position, length: the positions given are l = first_position, first_position + 1, ...
            of samples of `length` positions, which is then the L of the words: a window drawn alone
            equals the same one drawn with the rest. length 0: that of `logits`.
        noise_dtype: "float32" makes the Gumbel noise of uniforms of 23 bits, so that it never
            exceeds 16.6: over many draws from large vocabularies this acts as a temperature below
            1 (Zheng et al. 2024, arXiv:2409.02908). "float64" adds bits to the same uniforms, 52 in
            all, and takes both logarithms in float64; it costs next to nothing and seldom draws
            another token.
        seeds: (B,) int64 where `logits` is, in the place of `seed`: sample b draws from the stream
            of seeds[b] and takes the words of sample first_sample, as if it were drawn alone with
            that seed. Or (B, 2): sample b draws from the stream of seeds[b, 0] and takes the
            words of sample first_sample + seeds[b, 1]. The kernel reads them, so that a captured
            CUDA graph draws by what they hold when it is replayed.
        return_log_prob: also the logarithm of the probability of each token drawn.
        return_probabilities: also the whole distributions drawn from.
        out: (B, L) int64 to write; with return_log_prob or return_probabilities a tuple of what is
            returned.

    Returns:
        (B, L) int64 tokens, followed by, where asked for, (B, L) float32 log-probabilities and
        (B, L, V) float32 probabilities, both after guidance, temperature and filters, renormalised
        (`token_probabilities` gives them without a draw).

    Raises:
        ValueError: top_p outside (0, 1], top_k outside [0, V], a temperature that is negative or
            not finite, a guidance_scale that is not finite, an unknown noise_dtype, a window that
            `length` has no room for, shapes or strides that do not fit.
        TypeError: dtypes or devices that do not fit.

    A NaN counts as -inf. A row with no value above -inf gives token 0; in a row with +inf the first
    such token is taken. The probability of these, and of the token that temperature 0 takes, is 1.

    The filters are those of Visual Autoregressive Modeling (Tian et al., 2024); the draw is the
    Gumbel-max trick.
    """
    size = shape(logits, "sample_tokens", "logits", 3)
    wanted = [True, bool(return_log_prob), bool(return_probabilities)]
    count = sum(wanted)
    if out is None:
        kinds = (("int64", 2), ("float32", 2), ("float32", 3))
        outs = [
            empty(logits, size[:ndim], dtype)
            for want, (dtype, ndim) in zip(wanted, kinds, strict=True)
            if want
        ]
    elif count == 1:
        outs = [out]
    else:
        outs = list(out) if isinstance(out, (list, tuple)) else [out]
        if len(outs) != count:
            raise ValueError(
                f"sample_tokens: argument 'out' expected {count} arrays, got {len(outs)}"
            )
    log_prob = outs[1:2] if wanted[1] else []
    probabilities = outs[-1:] if wanted[2] else []
    _native.sample_tokens(
        outs[0], log_prob, probabilities, logits, uncond, guidance_scale, temperature, top_k, top_p,
        seed, offset, first_sample, first_position, length, noise_dtype, seeds,
    )  # fmt: skip
    return outs[0] if count == 1 else tuple(outs)
