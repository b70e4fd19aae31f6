from __future__ import annotations

import math

import numpy as np

_erf = np.vectorize(math.erf, otypes=[np.float64])


def activate(x: np.ndarray, name: str) -> np.ndarray:
    if name == "gelu":
        return 0.5 * x * (1.0 + _erf(x / math.sqrt(2.0)))
    if name == "gelu_tanh":
        return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
    if name == "silu":
        return x / (1.0 + np.exp(-x))
    return x


def linear(
    x: np.ndarray,
    packed: np.ndarray,
    out_features: int,
    *,
    scales: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    activation: str = "none",
    gate: np.ndarray | None = None,
    residual: np.ndarray | None = None,
) -> np.ndarray:
    """residual + gate * activation(x W^T + bias); see `pixleap.ops.linear`."""
    x, packed = np.asarray(x, np.float64), np.asarray(packed, np.float64)
    if packed.ndim == 3:  # float32 layout: pairs of one
        packed = packed[..., None]
    panels, steps, width, pairs = packed.shape
    weight = packed.transpose(0, 2, 1, 3).reshape(panels * width, steps * pairs)
    y = x @ weight[:out_features, : x.shape[-1]].T
    if scales is not None:
        y = y * np.asarray(scales, np.float64)
    if bias is not None:
        y = y + bias
    y = activate(y, activation)
    if gate is not None:
        y = y * np.asarray(gate, np.float64)[:, None, :]
    return y if residual is None else y + residual
