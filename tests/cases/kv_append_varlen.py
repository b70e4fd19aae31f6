from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch

from cases.kv_append import peer as peer_alone
from harness import Case


def peer(
    qkv: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    offsets: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor | None = None,
    q_scale: torch.Tensor | None = None,
) -> Any:
    """unbind, normalise and concatenate, sequence by sequence."""
    results = []
    for i, (begin, end) in enumerate(pairwise(offsets.tolist())):
        slot = i if slots is None else int(slots[i])
        one = slice(slot, slot + 1)
        results.append(
            peer_alone(qkv[None, begin:end], k_cache[one], v_cache[one], int(positions[i]), q_scale)
        )
    return results


def make(
    lengths: tuple[int, ...],
    positions: tuple[int, ...],
    heads: int,
    dim: int,
    capacity: int,
    slots: tuple[int, ...] | None = None,
    count: int | None = None,
    normalised: bool = True,
) -> Any:
    def build(rng: np.random.Generator) -> Any:
        offsets = np.array([0, *accumulate(lengths)], np.int64)
        qkv = rng.standard_normal((offsets[-1], 3, heads, dim)).astype(np.float32)
        cache = (len(lengths) if count is None else count, heads, capacity, dim)
        caches = [rng.standard_normal(cache).astype(np.float32) for _ in range(2)]
        kwargs = {} if slots is None else {"slots": np.array(slots, np.int64)}
        if normalised:
            kwargs["q_scale"] = rng.uniform(1, 20, heads).astype(np.float32)
        return (qkv, *caches, offsets, np.array(positions, np.int64)), kwargs

    return build


def case(name: str, *args: Any, **kwargs: Any) -> Case:
    # More than `out` is written.
    return Case(name, make(*args, **kwargs), has_out=False, host_integers=True)


def timed(name: str, lengths: tuple[int, ...], ends: tuple[int, ...], *sizes: int) -> Case:
    heads, dim = sizes
    numbers = sum(lengths) * heads * dim
    positions = tuple(end - length for end, length in zip(ends, lengths, strict=True))
    return Case(
        name,
        make(lengths, positions, heads, dim, max(ends)),
        flops=10.0 * numbers,
        bytes=4.0 * 6 * numbers,
        peer=peer,
        has_out=False,
        host_integers=True,
    )


CASES = [
    case("one", (1,), (0,), 1, 1, 1),
    case("plain copy", (3, 2), (4, 0), 2, 16, 9, normalised=False),
    case("to the end", (5, 0, 1), (4, 9, 8), 3, 16, 9),
    case("slots", (2, 7, 1), (1, 2, 6), 2, 40, 9, slots=(4, 0, 4), count=5),
    case("tail 5", (3, 4), (1, 0), 2, 5, 7, slots=(1, 0)),
    case("tail 72", (4,), (0,), 1, 72, 4),
    case("no sequences", (), (), 2, 8, 5, count=1),
    case("no rows", (0, 0), (5, 0), 2, 8, 5),
    timed(
        "digits, 8 requests, scales 0 to 4",
        tuple(n for n in (1, 4, 9, 16, 49, 1, 49, 9) for _ in range(2)),
        tuple(n for n in (1, 5, 14, 30, 79, 1, 79, 14) for _ in range(2)),
        4, 32,
    ),
    timed("VAR-d16, scales 0, 5, 9", (1, 36, 256), (1, 91, 680), 16, 64),
]  # fmt: skip
