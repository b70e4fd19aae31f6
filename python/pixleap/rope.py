"""Tables of angles for rotary position embedding, as `pixleap.ops.kv_append` takes them.

Every function returns (cos, sin), float32 of shape (tokens, R), made in float64: R angles rotate
2 R numbers of a head. How numbers are paired is up to who applies them (`rope_interleaved`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def tables(length: int, dim: int, base: float = 10000.0) -> tuple[np.ndarray, np.ndarray]:
    """Angle k of position p is p * base^(-2 k / dim): Su et al., "RoFormer: Enhanced Transformer
    with Rotary Position Embedding" (2021), equation 15.

    Args:
        length: positions, from 0 on.
        dim: numbers of a head to rotate, even; less than the head dimension for partial rotation
            (GPT-NeoX).
        base: 10000 in RoFormer and LLaMA.

    Returns:
        cos, sin: (length, dim / 2).

    Raises:
        ValueError: a negative length, an odd or negative dim, a base that is not positive.
    """
    return from_positions(np.arange(_count("tables", "length", length)), (dim,), base)


def axial(
    height: int, width: int, dim: int, base: float = 10000.0
) -> tuple[np.ndarray, np.ndarray]:
    """A grid in rows: the first half of the angles turns with the row, the second with the column,
    each as `tables(..., dim / 2, base)` (Fang et al., EVA-02, 2023; Heo et al., "Rotary Position
    Embedding for Vision Transformer", 2024, "axial").

    Args:
        height, width: tokens of the grid; token y * width + x is at row y and column x.
        dim: numbers of a head to rotate, divisible by 4.
        base: 10000 in EVA-02, 100 in Heo et al.

    Returns:
        cos, sin: (height * width, dim / 2).

    Raises:
        ValueError: negative sizes, a dim that 4 does not divide, a base that is not positive.
    """
    sizes = _count("axial", "height", height), _count("axial", "width", width)
    if dim < 0 or dim % 4:
        raise ValueError(
            f"rope.axial: argument 'dim' expected a number >= 0 that 4 divides, got {dim}"
        )
    return from_positions(np.indices(sizes).reshape(2, -1).T, (dim // 2, dim // 2), base)


def from_positions(
    positions: Any, dims: Sequence[int], base: float = 10000.0
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens anywhere on one or more axes: dims[a] numbers of a head turn with axis a, those of
    axis 0 first. FLUX's image tokens are positions (0, y, x) with dims (16, 56, 56), its text
    tokens (0, 0, 0) (black-forest-labs/flux, `EmbedND`).

    Args:
        positions: (tokens,) or (tokens, axes), numbers of any kind, fractions and negative ones
            included.
        dims: one even number per axis.
        base: of every axis.

    Returns:
        cos, sin: (tokens, sum(dims) / 2).

    Raises:
        ValueError: positions of another shape or not finite, dims that are odd or negative, a base
            that is not positive.
    """
    at = np.asarray(positions, np.float64)
    if at.ndim == 1:
        at = at[:, None]
    if at.ndim != 2 or at.shape[1] != len(dims):
        raise ValueError(
            f"rope: argument 'positions' expected shape (tokens, {len(dims)}), one number for each "
            f"of 'dims', got {np.shape(positions)}"
        )
    if not np.isfinite(at).all():
        raise ValueError("rope: argument 'positions' expected finite numbers, got NaN or infinity")
    for dim in dims:
        if dim < 0 or dim % 2:
            raise ValueError(f"rope: argument 'dim' expected an even number >= 0, got {dim}")
    if not (base > 0 and np.isfinite(base)):
        raise ValueError(f"rope: argument 'base' expected a number above 0, got {base}")
    angles = np.concatenate(
        [
            at[:, a, None] * float(base) ** (-np.arange(0, dim, 2) / max(dim, 1))
            for a, dim in enumerate(dims)
        ]
        or [np.zeros((len(at), 0))],
        axis=1,
    )
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def _count(function: str, name: str, value: int) -> int:
    if value < 0:
        raise ValueError(f"rope.{function}: argument '{name}' expected a size >= 0, got {value}")
    return value
