from __future__ import annotations

from typing import Any

from .. import _native
from .._arrays import Array, empty, shape


def kv_append_varlen(
    qkv: Array,
    k_cache: Array,
    v_cache: Array,
    offsets: Array,
    positions: Array,
    *,
    slots: Array | None = None,
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
    """`kv_append` for n sequences of different lengths, each at its own position of a cache.

    Args:
        qkv: (R, 3, H, D) float32, bfloat16 or float16, the tokens of all sequences one after the
            other; any strides with a last one of 1.
        k_cache, v_cache: (S, H, T, D) of qkv's dtype or int8: whole caches such as
            `KVCache.buffers`. Sequence i of m tokens writes slot slots[i] at [positions[i],
            positions[i] + m).
        offsets: (n + 1,) int64 on the host, from 0 up to R: rows offsets[i] to offsets[i + 1] - 1
            are sequence i's. It may have none.
        positions: (n,) int64 on the host.
        slots: (n,) int64 on the host, 0 to S - 1; default: sequence i writes slot i. Two sequences
            may share a slot if what they write does not overlap.
        q_scale, norm, q_weight, k_weight, eps, rope_interleaved: as in `kv_append`.
        rope: (cos, sin), as in `kv_append`: tables (positions, P), of which token r of sequence i
            uses the row positions[i] + r, or tables per token, (1, R, P).
        rope_positions: (R,) int64 on qkv's device, to use these rows of the tables instead.
        k_scale, v_scale: (S, H, T) float32, with int8 caches, as in `kv_append`.
        out: (R, H, D), to write q to.

    Returns:
        (q, k_cache, v_cache), or (q, k_cache, v_cache, k_scale, v_scale), all but q being the
        arguments.

    Raises:
        ValueError, TypeError: shapes, dtypes, strides or devices that do not fit; offsets,
            positions or slots out of their range; two sequences that write the same place; rows
            that `rope` does not have. The caches are unchanged then.

    All numbers have the bits that `kv_append` gives for a sequence alone.
    """
    if out is None:
        rows, _, heads, dim = shape(qkv, "kv_append_varlen", "qkv", 4)
        out = empty(qkv, (rows, heads, dim))
    scales = tuple(s for s in (k_scale, v_scale) if s is not None)
    _native.kv_append_varlen(
        out, k_cache, v_cache, scales, qkv, offsets, positions, slots, q_scale, norm or "",
        q_weight, k_weight, eps, () if rope is None else rope, rope_positions, rope_interleaved,
    )  # fmt: skip
    return (out, k_cache, v_cache, *scales)
