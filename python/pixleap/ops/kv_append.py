from __future__ import annotations

from .. import _native
from .._arrays import Array, empty, shape


def kv_append(
    qkv: Array,
    k_cache: Array,
    v_cache: Array,
    position: int,
    *,
    q_scale: Array | None = None,
    out: Array | None = None,
) -> tuple[Array, Array, Array]:
    """Splits a fused projection: keys and values go into their caches, queries come back.

    Args:
        qkv: (B, L, 3, H, D) float32, bfloat16 or float16; any strides with a last one of 1.
        k_cache, v_cache: (B, H, Lmax, D) of qkv's dtype, written at [position, position + L).
        position: how many tokens the caches hold already.
        q_scale: (H,) float32 or qkv's dtype. If given, q and k are divided by their l2 norm over D
            (at least 1e-12) and q[:, h] is multiplied by q_scale[h]: the attention of VAR, where
            q_scale is exp(min(log_scale, ln 100)).
        out: (B, H, L, D), to write q to.

    Returns:
        (q, k_cache, v_cache), the caches being the arguments.

    Raises:
        ValueError, TypeError: shapes, dtypes, strides or devices that do not fit; a negative
            position or more tokens than the caches hold. The caches are unchanged then.
    """
    if out is None:
        batch, length, _, heads, dim = shape(qkv, "kv_append", "qkv", 5)
        out = empty(qkv, (batch, heads, length, dim))
    _native.kv_append(out, k_cache, v_cache, qkv, position, q_scale)
    return out, k_cache, v_cache
