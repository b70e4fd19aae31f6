from __future__ import annotations

from typing import Any

from .. import _native
from .._arrays import Array, empty, shape


def kv_append(
    qkv: Array,
    k_cache: Array,
    v_cache: Array,
    position: int,
    *,
    q_scale: Array | None = None,
    norm: str | None = None,
    q_weight: Array | None = None,
    k_weight: Array | None = None,
    eps: float = 1e-6,
    rope: tuple[Array, Array] | None = None,
    rope_positions: Array | None = None,
    rope_interleaved: bool = True,
    k_scale: Array | None = None,
    v_scale: Array | None = None,
    out: Array | None = None,
) -> tuple[Any, ...]:
    """Splits a fused projection: keys and values go into their caches, queries come back. On the
    way q and k may be normalised and then rotated, and what is cached rounded to int8; one pass in
    float32 with one rounding at the end.

    Args:
        qkv: (B, L, 3, H, D) float32, bfloat16 or float16; any strides with a last one of 1.
        k_cache, v_cache: (B, H, Lmax, D) of qkv's dtype or int8, written at [position,
            position + L).
        position: how many tokens the caches hold already.
        q_scale: (H,). If given, q and k are divided by their l2 norm over D (at least 1e-12) and
            q[:, h] is multiplied by q_scale[h]: the attention of VAR, where q_scale is
            exp(min(log_scale, ln 100)). Parameters, weights and tables are float32 or of qkv's
            dtype.
        norm: "l2", which q_scale implies; "rms": q and k are divided by the root of their mean
            square over D plus eps and multiplied by their weights, as `torch.nn.RMSNorm` does
            (Zhang and Sennrich 2019); None.
        q_weight, k_weight: (D,) or (H, D), of norm="rms"; default 1.
        eps: of norm="rms".
        rope: (cos, sin), rotary position embedding of q and k (Su et al., RoFormer, 2021): tables
            (positions, R) such as `pixleap.rope` makes, of which token l uses the row position + l,
            or tables per token, (B or 1, L, R). R up to D / 2; the numbers after the first 2 R stay
            as they are.
        rope_positions: (L,) or (B or 1, L) int64 on qkv's device, to use these rows of the tables
            instead. On a GPU, where they cannot be checked, a row that does not exist gives NaN.
        rope_interleaved: angle i rotates the numbers 2 i and 2 i + 1 (RoFormer, LLaMA, FLUX);
            False: i and i + R (GPT-NeoX, Hugging Face's LLaMA).
        k_scale, v_scale: (B, H, Lmax) float32, with int8 caches, written at the same positions.
            Each token of a head is rounded to the nearest of 255 steps, ties to even: scale =
            max|x| / 127, x about scale * int8 within max|x| / 254. A row of zeros has scale 0; one
            with NaN or infinity has scale NaN, so that what reads it becomes NaN.
        out: (B, H, L, D), to write q to.

    Returns:
        (q, k_cache, v_cache), or (q, k_cache, v_cache, k_scale, v_scale), all but q being the
        arguments.

    Raises:
        ValueError, TypeError: shapes, dtypes, strides or devices that do not fit; a negative
            position or more tokens than the caches hold; rows that `rope` does not have. The caches
            are unchanged then.
    """
    if out is None:
        batch, length, _, heads, dim = shape(qkv, "kv_append", "qkv", 5)
        out = empty(qkv, (batch, heads, length, dim))
    scales = tuple(s for s in (k_scale, v_scale) if s is not None)
    _native.kv_append(
        out, k_cache, v_cache, scales, qkv, position, q_scale, norm or "", q_weight, k_weight, eps,
        () if rope is None else rope, rope_positions, rope_interleaved,
    )  # fmt: skip
    return (out, k_cache, v_cache, *scales)
