from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch

from cases.kv_append import HALVES, INT8_TOLERANCE, drawn_options, drawn_scales
from cases.kv_append import peer as peer_alone
from harness import Case

HOST = ("offsets", "positions", "slots")  # arguments that the front reads


def peer(
    qkv: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    offsets: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor | None = None,
    **options: Any,
) -> Any:
    """unbind, normalise and concatenate, sequence by sequence."""
    results = []
    for i, (begin, end) in enumerate(pairwise(offsets.tolist())):
        slot = i if slots is None else int(slots[i])
        one = slice(slot, slot + 1)
        results.append(
            peer_alone(
                qkv[None, begin:end], k_cache[one], v_cache[one], int(positions[i]), **options
            )
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
    int8: str = "",
    **options: Any,
) -> Any:
    def build(rng: np.random.Generator) -> Any:
        offsets = np.array([0, *accumulate(lengths)], np.int64)
        qkv = rng.standard_normal((offsets[-1], 3, heads, dim)).astype(np.float32)
        size = (len(lengths) if count is None else count, heads, capacity, dim)
        kwargs = drawn_options(rng, heads, dim, normalised=normalised, **options)
        if slots is not None:
            kwargs["slots"] = np.array(slots, np.int64)
        if int8:
            caches = [rng.integers(-127, 128, size).astype(np.int8) for _ in range(2)]
            kwargs.update(drawn_scales(rng, size[:3], int8))
        else:
            caches = [rng.standard_normal(size).astype(np.float32) for _ in range(2)]
        return (qkv, *caches, offsets, np.array(positions, np.int64)), kwargs

    return build


def case(name: str, *args: Any, **kwargs: Any) -> Case:
    # More than `out` is written.
    return Case(name, make(*args, **kwargs), has_out=False, host=HOST)


def int8_case(name: str, kind: str, dtypes: tuple[str, ...], *args: Any, **kwargs: Any) -> Case:
    return Case(
        f"{name}, int8, {kind}",
        make(*args, int8=kind, **kwargs),
        dtypes=dtypes,
        tolerance=INT8_TOLERANCE,
        has_out=False,
        host=HOST,
    )


def timed(
    name: str, lengths: tuple[int, ...], ends: tuple[int, ...], *sizes: int, **kwargs: Any
) -> Case:
    heads, dim = sizes
    numbers = sum(lengths) * heads * dim
    positions = tuple(end - length for end, length in zip(ends, lengths, strict=True))
    return Case(
        name,
        make(lengths, positions, heads, dim, max(ends), **kwargs),
        flops=10.0 * numbers,
        bytes=4.0 * 6 * numbers,
        peer=peer,
        has_out=False,
        host=HOST,
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
    case("rms", (3, 2), (4, 0), 2, 16, 9, rms="head"),
    case("rope", (3, 0, 4), (4, 2, 0), 2, 16, 9, normalised=False, rope=(7, 8)),
    case("rms, rope of halves, slots", (2, 7, 1), (1, 2, 6), 2, 40, 9, slots=(4, 0, 4), count=5,
         rms="shared", rope=(9, 13), **HALVES),
    case("rope per token", (3, 4), (4, 0), 2, 16, 9, rope=(1, 7, 8)),
    int8_case("l2, slots", "numpy", ("float32",), (2, 7, 1), (1, 2, 6), 2, 40, 9,
              slots=(4, 0, 4), count=5),
    int8_case("rms, rope", "torch", ("bfloat16", "float16"), (3, 4), (4, 0), 2, 18, 9,
              rms="shared", rope=(9, 9)),
    timed("LLaMA, 16 requests", (1,) * 16, tuple(range(16, 256, 15)), 16, 64, rms="shared",
          rope=(256, 32), **HALVES),
]  # fmt: skip
