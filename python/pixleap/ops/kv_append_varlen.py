from __future__ import annotations

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
    out: Array | None = None,
) -> tuple[Array, Array, Array]:
    """`kv_append` for n sequences of different lengths, each at its own position of a cache.

    Args:
        qkv: (R, 3, H, D) float32, bfloat16 or float16, the tokens of all sequences one after the
            other; any strides with a last one of 1.
        k_cache, v_cache: (S, H, T, D) of qkv's dtype: whole caches such as `KVCache.buffers`.
            Sequence i of m tokens writes slot slots[i] at [positions[i], positions[i] + m).
        offsets: (n + 1,) int64 on the host, from 0 up to R: rows offsets[i] to offsets[i + 1] - 1
            are sequence i's. It may have none.
        positions: (n,) int64 on the host.
        slots: (n,) int64 on the host, 0 to S - 1; default: sequence i writes slot i. Two sequences
            may share a slot if what they write does not overlap.
        q_scale: (H,) float32 or qkv's dtype. If given, q and k are divided by their l2 norm over D
            (at least 1e-12) and q[:, h] is multiplied by q_scale[h], as in `kv_append`.
        out: (R, H, D), to write q to.

    Returns:
        (q, k_cache, v_cache), the caches being the arguments.

    Raises:
        ValueError, TypeError: shapes, dtypes, strides or devices that do not fit; offsets,
            positions or slots out of their range; two sequences that write the same place. The
            caches are unchanged then.

    All numbers have the bits that `kv_append` gives for a sequence alone.
    """
    if out is None:
        rows, _, heads, dim = shape(qkv, "kv_append_varlen", "qkv", 4)
        out = empty(qkv, (rows, heads, dim))
    _native.kv_append_varlen(out, k_cache, v_cache, qkv, offsets, positions, slots, q_scale)
    return out, k_cache, v_cache
