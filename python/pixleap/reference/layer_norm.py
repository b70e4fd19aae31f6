from __future__ import annotations

import numpy as np


def layer_norm(
    x: np.ndarray,
    *,
    weight: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    scale: np.ndarray | None = None,
    shift: np.ndarray | None = None,
    eps: float = 1e-6,
) -> np.ndarray:
    """Layer norm with affine map and modulation; see `pixleap.ops.layer_norm`."""
    x = np.asarray(x, np.float64)
    channels = max(x.shape[-1], 1)
    centred = x - x.sum(axis=-1, keepdims=True) / channels
    y = centred / np.sqrt((centred**2).sum(axis=-1, keepdims=True) / channels + eps)
    if weight is not None:
        y = y * weight
    if bias is not None:
        y = y + bias
    if scale is not None:
        y = y * (1.0 + np.asarray(scale, np.float64)[:, None, :])
    if shift is not None:
        y = y + np.asarray(shift, np.float64)[:, None, :]
    return y
