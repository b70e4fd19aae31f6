from __future__ import annotations

from itertools import pairwise
from typing import Any

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
    norm: str | None = None,
    q_weight: np.ndarray | None = None,
    k_weight: np.ndarray | None = None,
    eps: float = 1e-6,
    rope: tuple[np.ndarray, np.ndarray] | None = None,
    rope_positions: np.ndarray | None = None,
    rope_interleaved: bool = True,
    k_scale: np.ndarray | None = None,
    v_scale: np.ndarray | None = None,
) -> tuple[np.ndarray, ...]:
    """Appends every sequence by itself; see `pixleap.ops.kv_append_varlen`. The caches that come
    back are copies, int8 ones as floats."""
    qkv = np.asarray(qkv, np.float64)
    given = [c for c in (k_cache, v_cache, k_scale, v_scale) if c is not None]
    caches = [np.array(c, np.float64) for c in given]
    q = np.zeros((len(qkv), *qkv.shape[2:]))
    shared: dict[str, Any] = {
        "q_scale": q_scale, "norm": norm, "q_weight": q_weight, "k_weight": k_weight, "eps": eps,
        "rope_interleaved": rope_interleaved,
    }  # fmt: skip
    for i, (begin, end) in enumerate(pairwise(offsets)):
        slot = i if slots is None else slots[i]
        if not (0 <= begin <= end <= len(qkv) and 0 <= slot < len(caches[0])):
            raise ValueError(f"kv_append_varlen: rows {begin} to {end}, slot {slot}")
        keys, values, *scales = (c[slot, None] for c in caches)
        shared.update(zip(("k_scale", "v_scale"), scales, strict=False))
        if rope is not None:
            shared["rope"] = tuple(x if x.ndim == 2 else x[:, begin:end] for x in rope)
        if rope_positions is not None:
            shared["rope_positions"] = rope_positions.reshape(-1)[begin:end]
        one, *own = kv_append(qkv[None, begin:end], keys, values, positions[i], **shared)
        for cache, new in zip(caches, own, strict=True):
            cache[slot, None] = new
        q[begin:end] = one[0].swapaxes(0, 1)
    return q, *caches
