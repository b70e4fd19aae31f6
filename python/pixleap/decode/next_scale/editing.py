"""Which tokens of an image are drawn anew when a part of it is edited."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def draw_masks(
    mask: Tensor, batch: int, sides: Sequence[int], coverage: float, keep_scales: int
) -> list[Tensor]:
    """Reduces a mask (B, h, w) or (h, w) to (B, n_k) bool per scale: True where the mask covers at
    least the share `coverage` of a token's cell, nowhere in the first `keep_scales` scales."""
    finest = sides[-1]
    size = tuple(mask.shape)
    fits = len(size) in (2, 3) and size[-1] == size[-2] and size[-1] > 0
    if not fits or size[-1] % finest or (len(size) == 3 and size[0] != batch):
        raise ValueError(
            f"edit: argument 'mask' expected shape ({batch}, h, h) or (h, h) with h a multiple of "
            f"{finest}, got {size}"
        )
    if mask.dtype != torch.bool:
        raise TypeError(f"edit: argument 'mask' expected torch.bool, got {mask.dtype}")
    if not 0 < coverage <= 1:
        raise ValueError(f"edit: argument 'coverage' expected a number in (0, 1], got {coverage}")
    if not 0 <= keep_scales <= len(sides):
        raise ValueError(
            f"edit: argument 'keep_scales' expected 0 to {len(sides)}, got {keep_scales}"
        )
    area = mask.expand(batch, *size[-2:])[:, None].double()
    out = []
    for scale, side in enumerate(sides):
        share = F.interpolate(area, size=(side, side), mode="area").flatten(1)
        # Sums of float64 ones: the slack only absorbs the division's rounding.
        out.append((share >= coverage - 1e-9) & (scale >= keep_scales))
    return out
