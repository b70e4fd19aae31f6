"""Philox4x32-10 (Salmon et al., SC 2011) and the numbers drawn from it.

Element e of a stream is lane e % 4 of the block with counter (e // 4, offset) and key `seed`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_MASK = np.uint64(0xFFFFFFFF)


def philox(groups: np.ndarray, seed: int, offset: int) -> np.ndarray:
    """Raw 32-bit words (len(groups), 4) of the blocks with the given counters."""
    groups = groups.astype(np.uint64)
    shift = np.uint64(32)
    seed, offset = seed & (2**64 - 1), offset & (2**64 - 1)
    c = [
        groups & _MASK,
        groups >> shift,
        np.full_like(groups, offset & 0xFFFFFFFF),
        np.full_like(groups, offset >> 32),
    ]
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    for _ in range(10):
        p0, p1 = _M0 * c[0], _M1 * c[2]
        c = [
            (p1 >> shift) ^ c[1] ^ np.uint64(k0),
            p1 & _MASK,
            (p0 >> shift) ^ c[3] ^ np.uint64(k1),
            p0 & _MASK,
        ]
        k0, k1 = (k0 + _W0) & 0xFFFFFFFF, (k1 + _W1) & 0xFFFFFFFF
    return np.stack(c, axis=-1).astype(np.uint32)


def words(count: int, seed: int, offset: int) -> np.ndarray:
    """The first `count` words of a stream."""
    return philox(np.arange((count + 3) // 4), seed, offset).reshape(-1)[:count]


def uniform_open(w: np.ndarray) -> np.ndarray:
    """Words to (0, 1), never an end: 23 bits, as the float32 kernels see them."""
    return ((w >> np.uint32(9)).astype(np.float64) + 0.5) * 2.0**-23


def normal(shape: Sequence[int], seed: int, offset: int) -> np.ndarray:
    """Standard normals by Box-Muller on the word pairs (0, 1) and (2, 3) of each block."""
    count = int(np.prod(shape))
    u = uniform_open(philox(np.arange((count + 3) // 4), seed, offset)).reshape(-1, 2)
    radius, angle = np.sqrt(-2.0 * np.log(u[:, 0])), 2.0 * np.pi * u[:, 1]
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    return pairs.reshape(-1)[:count].reshape(shape)
