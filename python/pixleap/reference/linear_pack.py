from __future__ import annotations

import numpy as np

PANEL = 16  # output features per panel


def round_to_bfloat16(x: np.ndarray) -> np.ndarray:
    """Nearest bfloat16, ties to even, of finite numbers."""
    bits = x.astype(np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return (rounded << np.uint32(16)).view(np.float32).astype(np.float64)


def linear_pack(weight: np.ndarray, *, dtype: str | None = None) -> np.ndarray:
    """Weights as panels of 16 output features; see `pixleap.ops.linear_pack`."""
    weight = np.asarray(weight, np.float64)
    n, k = weight.shape
    pairs = 2 if dtype == "bfloat16" else 1
    panels, steps = -(-n // PANEL), -(-k // pairs)
    padded = np.zeros((panels * PANEL, steps * pairs))
    padded[:n, :k] = round_to_bfloat16(weight) if dtype == "bfloat16" else weight
    packed = padded.reshape(panels, PANEL, steps, pairs).transpose(0, 2, 1, 3)
    return packed if dtype == "bfloat16" else packed[..., 0]
