from __future__ import annotations

import math

from .. import _native
from .._arrays import Array, empty, shape


def attention_varlen(
    q: Array,
    k: Array,
    v: Array,
    offsets: Array,
    lengths: Array,
    *,
    k_scale: Array | None = None,
    v_scale: Array | None = None,
    slots: Array | None = None,
    causal: bool = True,
    scale: float | None = None,
    out: Array | None = None,
) -> Array:
    """Attention of n sequences with different numbers of queries and of cached keys, in one call.

    Args:
        q: (R, H, D) float32, bfloat16 or float16, the queries of all sequences one after the
            other; D from 1 to 256. Any strides with a last one of 1, as for k and v.
        k, v: (S, Hkv, T, D) of q's dtype or int8: whole caches such as `KVCache.buffers`. Hkv
            divides H, and head h reads h // (H / Hkv).
        offsets: (n + 1,) int64 on the host, from 0 up to R: rows offsets[i] to offsets[i + 1] - 1
            are sequence i's. It may have none.
        lengths: (n,) int64 on the host, 0 to T: sequence i has the first lengths[i] keys of its
            slot; the rest is not read.
        k_scale, v_scale: (S, Hkv, T) float32, beside int8 k and v: what their integers count in.
        slots: (n,) int64 on the host: the slot, 0 to S - 1, whose keys and values sequence i reads.
            Several may read the same one. Default: sequence i reads slot i.
        causal: the last query of sequence i sees lengths[i] keys, and each one before it one less
            than the next; else all see all of them.
        scale: default 1 / sqrt(D).
        out: like q, to write; may be q itself.

    Returns:
        (R, H, D). A query that sees no key gets zeros.

    Raises:
        ValueError, TypeError: shapes, dtypes, strides or devices that do not fit; offsets, lengths
            or slots out of their range; fewer keys than queries with `causal`.

    A sequence has the bits that `attention` gives for it alone, whatever the others are.
    """
    size = shape(q, "attention_varlen", "q", 3)
    if out is None:
        out = empty(q, size)
    if scale is None:
        scale = 1.0 / math.sqrt(size[2] or 1)
    _native.attention_varlen(out, q, k, v, k_scale, v_scale, offsets, lengths, slots, causal, scale)
    return out
