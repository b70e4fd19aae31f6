from __future__ import annotations

import math
from typing import Any

from .. import _native, masks
from .._arrays import Array, empty, shape, workspace


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    mask: Array | masks.Mask | None = None,
    k_scale: Array | None = None,
    v_scale: Array | None = None,
    scale: float | None = None,
    out: Any = None,
    return_lse: bool = False,
) -> Any:
    """Scaled dot-product attention, softmax(scale * q k^T + mask) v, without the score matrix.

    Args:
        q: (B, H, L, D) float32, bfloat16 or float16; D from 1 to 256.
        k, v: (B, Hkv, S, D) of q's dtype, or int8; Hkv divides H, and head h reads h // (H / Hkv).
            All three may have any strides with a last one of 1.
        mask: None, one of `pixleap.masks`, or an array that broadcasts to (B, H, L, S), float32 or
            q's dtype, added to the scaled scores; -inf hides a key.
        k_scale, v_scale: (B, Hkv, S) float32, beside int8 k and v: what their integers count in.
        scale: default 1 / sqrt(D).
        out: like q, to write; may be q itself. With return_lse a pair, the second (B, H, L) and
            float32.
        return_lse: also return the log-sum-exp of every query's masked scores.

    Returns:
        (B, H, L, D), or a pair with the (B, H, L) float32 log-sum-exp. A query that sees no key
        gets zeros and -inf.

    Raises:
        ValueError, TypeError: shapes, dtypes, strides or devices that do not fit; a causal mask
            with fewer keys than queries.

    Sums are in float32 with an online softmax (Milakov and Gimelshein 2018; Dao et al. 2022). Keys
    and values that a mask from `pixleap.masks` hides are not read.
    """
    size = shape(q, "attention", "q", 4)
    shape(k, "attention", "k", 4)
    if return_lse:
        outputs = out or (empty(q, size), empty(q, size[:3], "float32"))
    else:
        outputs = (empty(q, size) if out is None else out,)
    window: tuple[int, ...] = ()
    added, visible = mask, None
    causal = isinstance(mask, masks.causal)
    if causal:
        added = None
    elif isinstance(mask, (masks.window, masks.neighbourhood, masks.identity)):
        added, window = None, mask.numbers(size[2])
    elif isinstance(mask, (masks.block_causal, masks.key_lengths)):
        added, visible = None, masks.visible_keys(mask, q, k)
    if scale is None:
        scale = 1.0 / math.sqrt(size[3] or 1)
    _native.attention(
        outputs, _scratch(q, k), q, k, v, k_scale, v_scale, added, visible, window, causal, scale
    )
    return tuple(outputs) if return_lse else outputs[0]


def _scratch(q: Array, k: Array) -> list[Array]:
    """On a GPU, of what the blocks that share a query's keys, 256 each, leave to be added; none
    where there are queries enough to fill the GPU. Results do not depend on it."""
    batch, heads, queries, dim = q.shape
    chunks = -(-k.shape[2] // 256)
    if queries > 4 or chunks < 2 or batch * heads * queries >= 528:
        return []
    return workspace(q, batch * heads * queries * chunks * (dim + 2) // 2 + 1)
