from __future__ import annotations

from typing import Any

import numpy as np

PANEL = 16  # output features per panel
STEPS = {"bfloat16": 2, "int8": 4}  # of K that lie side by side


def round_to_bfloat16(x: np.ndarray) -> np.ndarray:
    """Nearest bfloat16, ties to even, of finite numbers."""
    bits = x.astype(np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return (rounded << np.uint32(16)).view(np.float32).astype(np.float64)


def quantise(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows as integers in [-127, 127], and their float32 scales."""
    weight = weight.astype(np.float32)
    scales = np.abs(weight).max(1, initial=0.0) / np.float32(127)
    bad = ~np.isfinite(weight).all(1)
    divisors = np.where(bad | (scales == 0), np.float32(1), scales)
    finite = np.where(bad[:, None], np.float32(0), weight)
    integers = np.rint(finite / divisors[:, None]).clip(-127, 127)
    return integers.astype(np.int8), np.where(bad, np.float32(np.nan), scales)


def linear_pack(weight: np.ndarray, *, dtype: str | None = None) -> Any:
    """Weights as panels of 16 output features; see `pixleap.ops.linear_pack`."""
    weight = np.asarray(weight, np.float64)
    scales = None
    if dtype == "bfloat16":
        weight = round_to_bfloat16(weight)
    elif dtype == "int8":
        weight, scales = quantise(weight)
    n, k = weight.shape
    side = STEPS.get(dtype or "", 1)
    panels, steps = -(-n // PANEL), -(-k // side)
    padded = np.zeros((panels * PANEL, steps * side), weight.dtype)
    padded[:n, :k] = weight
    packed = padded.reshape(panels, PANEL, steps, side).transpose(0, 2, 1, 3)
    packed = packed[..., 0] if side == 1 else packed
    return packed if scales is None else (packed, scales)
