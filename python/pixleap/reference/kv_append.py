from __future__ import annotations

import numpy as np


def kv_append(
    qkv: np.ndarray,
    k_cache: np.ndarray,
    v_cache: np.ndarray,
    position: int,
    *,
    q_scale: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Split of a fused projection into q and the caches; see `pixleap.ops.kv_append`. The caches
    that come back are copies."""
    q, k, v = np.asarray(qkv, np.float64).transpose(2, 0, 3, 1, 4)
    if q_scale is not None:
        q = q / np.maximum(np.linalg.norm(q, axis=-1, keepdims=True), 1e-12)
        k = k / np.maximum(np.linalg.norm(k, axis=-1, keepdims=True), 1e-12)
        q = q * np.asarray(q_scale, np.float64)[:, None, None]
    keys, values = np.array(k_cache, np.float64), np.array(v_cache, np.float64)
    end = position + q.shape[2]
    if position < 0 or end > keys.shape[2]:
        raise ValueError(f"kv_append: positions {position} to {end} of {keys.shape[2]}")
    keys[:, :, position:end] = k
    values[:, :, position:end] = v
    return q, keys, values
