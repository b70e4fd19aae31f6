from __future__ import annotations

from typing import Any

import numpy as np

from .. import masks


def attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    *,
    mask: Any = None,
    k_scale: np.ndarray | None = None,
    v_scale: np.ndarray | None = None,
    scale: float | None = None,
    return_lse: bool = False,
) -> Any:
    """softmax(scale * q k^T + mask) v; see `pixleap.ops.attention`."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    if k_scale is not None and v_scale is not None:
        k, v = k * k_scale[..., None], v * v_scale[..., None]
    batch, heads, queries, dim = q.shape
    groups, keys = heads // k.shape[1] if heads else 1, k.shape[2]
    k, v = np.repeat(k, groups, axis=1), np.repeat(v, groups, axis=1)
    scores = q @ k.swapaxes(-1, -2) * (dim**-0.5 if scale is None else scale)
    i, j = np.arange(queries)[:, None], np.arange(keys)
    hidden = np.zeros((batch, 1, queries, keys), bool)
    if isinstance(mask, masks.causal):
        hidden |= j > keys - queries + i
    elif isinstance(mask, masks.block_causal):
        block = np.repeat(np.arange(len(mask.lengths)), mask.lengths)
        prefix = np.full(keys - queries, -1)  # which all see
        hidden |= np.concatenate([prefix, block])[j] > block[i]
    elif isinstance(mask, masks.key_lengths):
        hidden |= j >= np.asarray(mask.lengths)[:, None, None, None]
    elif isinstance(mask, masks.identity):
        hidden |= j != i
    elif isinstance(mask, masks.window):
        _, _, *size, down, right = mask.numbers(queries)
        grid = np.mgrid[: mask.height, : mask.width]
        rolled = (grid - np.reshape((down, right), (2, 1, 1))) % [[[mask.height]], [[mask.width]]]
        of = (rolled // np.reshape(size, (2, 1, 1))).reshape(2, queries)  # a token's window
        hidden |= (of[:, :, None] != of[:, None, :]).any(axis=0)
    elif mask is not None:
        scores = scores + np.asarray(mask, np.float64)
    scores = np.where(hidden, -np.inf, scores)
    top = scores.max(axis=-1, keepdims=True, initial=-np.inf)
    top = np.where(np.isfinite(top), top, 0.0)
    weights = np.exp(scores - top)
    total = weights.sum(axis=-1, keepdims=True)
    empty = total == 0
    out = weights / np.where(empty, 1.0, total) @ v
    if not return_lse:
        return out
    lse = np.where(empty, -np.inf, top + np.log(np.where(empty, 1.0, total)))
    return out, lse[..., 0]
