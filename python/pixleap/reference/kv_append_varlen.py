from __future__ import annotations

from itertools import pairwise

import numpy as np

from .kv_append import kv_append


def kv_append_varlen(
    qkv: np.ndarray,
    k_cache: np.ndarray,
    v_cache: np.ndarray,
    offsets: np.ndarray,
    positions: np.ndarray,
    *,
    slots: np.ndarray | None = None,
    q_scale: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Appends every sequence by itself; see `pixleap.ops.kv_append_varlen`. The caches that come
    back are copies."""
    qkv = np.asarray(qkv, np.float64)
    keys, values = np.array(k_cache, np.float64), np.array(v_cache, np.float64)
    q = np.zeros((len(qkv), *qkv.shape[2:]))
    for i, (begin, end) in enumerate(pairwise(offsets)):
        slot = i if slots is None else slots[i]
        if not (0 <= begin <= end <= len(qkv) and 0 <= slot < len(keys)):
            raise ValueError(f"kv_append_varlen: rows {begin} to {end}, slot {slot}")
        one, keys[slot, None], values[slot, None] = kv_append(
            qkv[None, begin:end],
            keys[slot, None],
            values[slot, None],
            positions[i],
            q_scale=q_scale,
        )
        q[begin:end] = one[0].swapaxes(0, 1)
    return q, keys, values
