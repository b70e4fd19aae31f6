"""Which keys a query sees, for `pixleap.ops.attention(mask=...)`. Keys that no query of a block
sees are not read. Any other pattern is an additive array: 0 to see, -inf to hide."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np

from ._arrays import Array, on_device_of


@dataclass(frozen=True)
class causal:
    """Query i of L sees the keys up to S - L + i: the last query sees all S, so that a cached
    prefix works. Needs S >= L."""


@dataclass(frozen=True)
class block_causal:
    """Tokens come in blocks of `lengths`, as the scales of VAR do; each sees its own block, those
    before it, and a prefix. The queries are the last sum(lengths) of S tokens, so that the prefix
    is what a cache already holds: S - sum(lengths) keys, at least 0."""

    lengths: tuple[int, ...]
    ends: Any = field(init=False, repr=False, compare=False)  # (1, L) int64, of each token's block
    # (prefix, device): how many keys each token sees there, copied once.
    on_devices: dict[Any, Any] = field(init=False, repr=False, compare=False)

    def __init__(self, lengths: Any) -> None:
        sizes = tuple(int(n) for n in lengths)
        ends = [end for n, end in zip(sizes, accumulate(sizes), strict=True) for _ in range(n)]
        object.__setattr__(self, "lengths", sizes)
        object.__setattr__(self, "ends", np.array(ends, np.int64)[None])
        object.__setattr__(self, "on_devices", {})


@dataclass(frozen=True, eq=False)
class key_lengths:
    """Sample b sees its first lengths[b] keys. lengths: (B,) int64 array on the device of the
    queries, or a sequence of integers."""

    lengths: Any


@dataclass(frozen=True)
class window:
    """Tokens of a height x width grid, row after row, attend within windows of `size` (height,
    width). `shift` (down, right) moves the windows that far; they wrap around the edges. Equal to
    rolling the grid by -shift, partitioning it, attending in each window and undoing both (Swin,
    Liu et al. 2021, without its masks; HiDiffusion's MSW-MSA, Zhang et al. 2024), without a copy.
    The windows divide the grid. An integer serves for both numbers."""

    height: int
    width: int
    size: int | tuple[int, int]
    shift: int | tuple[int, int] = 0

    def numbers(self, tokens: int) -> tuple[int, ...]:
        """What the native op takes."""
        return (self.height, self.width, *_pair(self.size), *_pair(self.shift), 0, 0)


@dataclass(frozen=True)
class neighbourhood:
    """Tokens of a height x width grid, row after row; each sees the `size` (height, width), odd, of
    them around it, and near an edge the outermost that many (neighbourhood attention, Hassani et
    al. 2023). NaN in a value may reach queries up to 8 tokens further. An integer serves for
    both."""

    height: int
    width: int
    size: int | tuple[int, int]

    def numbers(self, tokens: int) -> tuple[int, ...]:
        """What the native op takes: its tasks are 8 x 8 queries."""
        return (self.height, self.width, 8, 8, 0, 0, *_pair(self.size))


@dataclass(frozen=True)
class identity:
    """Every token sees itself only, so that the output is v: the perturbed attention of PAG (Ahn et
    al. 2024). Needs S = L."""

    def numbers(self, tokens: int) -> tuple[int, ...]:
        """What the native op takes: windows of one token; none where there are no tokens."""
        return (1, tokens, 1, 1, 0, 0, 0, 0) if tokens else ()


Mask = causal | block_causal | key_lengths | window | neighbourhood | identity


def _pair(x: int | tuple[int, int]) -> tuple[int, int]:
    return x if isinstance(x, tuple) else (x, x)


def visible_keys(mask: block_causal | key_lengths, q: Array, k: Array) -> Array:
    """(B or 1, L or 1) int64, where q is: how many keys each query sees."""
    if isinstance(mask, block_causal):
        total, queries, keys = sum(mask.lengths), q.shape[2], k.shape[2]
        if queries != total or keys < total:
            raise ValueError(
                f"attention: argument 'mask' expected blocks that sum to the number of queries and "
                f"to no more than that of keys {(queries, keys)}, got {total}"
            )
        seen = mask.ends if keys == total else mask.ends + (keys - total)
        if not getattr(q, "is_cuda", False):
            return on_device_of(q, seen)
        place = keys - total, str(q.device)
        if place not in mask.on_devices:
            mask.on_devices[place] = on_device_of(q, seen)
        return mask.on_devices[place]
    lengths = mask.lengths
    if isinstance(lengths, (list, tuple)):
        lengths = on_device_of(q, np.asarray(lengths, np.int64))
    return lengths[:, None]
