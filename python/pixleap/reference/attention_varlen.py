from __future__ import annotations

from itertools import pairwise

import numpy as np

from .. import masks
from .attention import attention


def attention_varlen(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    offsets: np.ndarray,
    lengths: np.ndarray,
    *,
    k_scale: np.ndarray | None = None,
    v_scale: np.ndarray | None = None,
    slots: np.ndarray | None = None,
    causal: bool = True,
    scale: float | None = None,
) -> np.ndarray:
    """Attention of every sequence by itself; see `pixleap.ops.attention_varlen`."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    if k_scale is not None and v_scale is not None:
        k, v = k * k_scale[..., None], v * v_scale[..., None]
    out = np.zeros_like(q)
    for i, (begin, end) in enumerate(pairwise(offsets)):
        slot, keys = i if slots is None else slots[i], lengths[i]
        if not (0 <= begin <= end <= len(q) and 0 <= slot < len(k) and keys <= k.shape[2]):
            raise ValueError(f"attention_varlen: rows {begin} to {end}, slot {slot}, {keys} keys")
        if keys < (end - begin if causal else 0):
            raise ValueError(f"attention_varlen: {keys} keys for {end - begin} queries")
        queries = q[begin:end].swapaxes(0, 1)[None]  # (1, H, m, D)
        result = attention(
            queries,
            k[slot, None, :, :keys],
            v[slot, None, :, :keys],
            mask=masks.causal() if causal else None,
            scale=scale,
        )
        out[begin:end] = result[0].swapaxes(0, 1)
    return out
