from __future__ import annotations

from typing import Any

import numpy as np


def kv_append(
    qkv: np.ndarray,
    k_cache: np.ndarray,
    v_cache: np.ndarray,
    position: int,
    *,
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
    """Split of a fused projection into q and the caches; see `pixleap.ops.kv_append`. The caches
    that come back are copies, int8 ones as floats."""
    q, k, v = np.asarray(qkv, np.float64).transpose(2, 0, 3, 1, 4)
    if norm == "l2" or q_scale is not None:
        q, k = (x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12) for x in (q, k))
    if norm == "rms":
        q, k = (x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) for x in (q, k))
    if q_scale is not None:
        q = q * np.asarray(q_scale, np.float64)[:, None, None]
    q, k = (
        x if w is None else x * (w if w.ndim == 1 else w[:, None])
        for x, w in ((q, q_weight), (k, k_weight))
    )
    end = position + q.shape[2]
    if rope is not None:
        rows = slice(position, end) if rope_positions is None else rope_positions
        cos, sin = (np.asarray(x if x.ndim == 3 else x[rows], np.float64) for x in rope)
        q, k = (rotated(x, cos, sin, rope_interleaved) for x in (q, k))
    caches: list[Any] = [np.array(c, np.float64) for c in (k_cache, v_cache)]
    if position < 0 or end > caches[0].shape[2]:
        raise ValueError(f"kv_append: positions {position} to {end} of {caches[0].shape[2]}")
    if k_scale is not None and v_scale is not None:
        scales = [np.array(s, np.float64) for s in (k_scale, v_scale)]
        (k, scales[0][:, :, position:end]), (v, scales[1][:, :, position:end]) = (
            quantised(k),
            quantised(v),
        )
        caches += scales
    caches[0][:, :, position:end] = k
    caches[1][:, :, position:end] = v
    return q, *caches


def rotated(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, interleaved: bool) -> np.ndarray:
    """x (B, H, L, D) with its first 2 R numbers rotated by tables (L, R) or (B, L, R)."""
    pairs = cos.shape[-1]
    cos, sin = (t if t.ndim == 2 else t[:, None] for t in (cos, sin))
    first, second = (
        (slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2))
        if interleaved
        else (slice(0, pairs), slice(pairs, 2 * pairs))
    )
    y = x.copy()
    y[..., first] = x[..., first] * cos - x[..., second] * sin
    y[..., second] = x[..., second] * cos + x[..., first] * sin
    return y


def quantised(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers from -127 to 127 and the scale of each row."""
    scale = np.abs(x).max(-1, initial=0.0) / 127
    scale = np.where(np.isfinite(x).all(-1), scale, np.nan)
    divisor = np.where(scale > 0, scale, np.inf)  # rows of zeros, and those with NaN, become 0
    return np.rint(np.where(np.isfinite(x), x, 0.0) / divisor[..., None]), scale
