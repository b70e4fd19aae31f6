"""Which keys a query sees, for `pixleap.ops.attention(mask=...)`. Keys that no query of a block
sees are not read. Any other pattern is an additive array: 0 to see, -inf to hide."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np


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

    def __init__(self, lengths: Any) -> None:
        sizes = tuple(int(n) for n in lengths)
        ends = [end for n, end in zip(sizes, accumulate(sizes), strict=True) for _ in range(n)]
        object.__setattr__(self, "lengths", sizes)
        object.__setattr__(self, "ends", np.array(ends, np.int64)[None])


@dataclass(frozen=True, eq=False)
class key_lengths:
    """Sample b sees its first lengths[b] keys. lengths: (B,) int64 array on the device of the
    queries, or a sequence of integers."""

    lengths: Any


def visible_keys(
    mask: block_causal | key_lengths, q_shape: tuple[int, ...], k_shape: tuple[int, ...]
) -> Any:
    """(B or 1, L or 1) int64: how many keys each query sees."""
    if isinstance(mask, block_causal):
        total, (queries, keys) = sum(mask.lengths), (q_shape[2], k_shape[2])
        if queries != total or keys < total:
            raise ValueError(
                f"attention: argument 'mask' expected blocks that sum to the number of queries and "
                f"to no more than that of keys {(queries, keys)}, got {total}"
            )
        return mask.ends if keys == total else mask.ends + (keys - total)
    lengths = mask.lengths
    if isinstance(lengths, (list, tuple)):
        lengths = np.asarray(lengths, np.int64)
    return lengths[:, None]
