from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch

from harness import Case

HOST = ("offsets", "lengths", "slots")  # arguments that the front reads


def peer(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    offsets: torch.Tensor,
    lengths: torch.Tensor,
    slots: torch.Tensor | None = None,
    causal: bool = True,
    scale: float | None = None,
) -> torch.Tensor:
    """torch's fused attention, sequence by sequence."""
    out = torch.empty_like(q)
    for i, (begin, end) in enumerate(pairwise(offsets.tolist())):
        slot, keys = i if slots is None else int(slots[i]), int(lengths[i])
        rows, seen = end - begin, None
        if causal and rows > 1:
            seen = torch.ones(rows, keys, dtype=torch.bool).tril(keys - rows)
        out[begin:end] = torch.nn.functional.scaled_dot_product_attention(
            q[None, begin:end].transpose(1, 2),
            k[slot, None, :, :keys],
            v[slot, None, :, :keys],
            attn_mask=seen,
            scale=scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )[0].transpose(0, 1)
    return out


def make(
    queries: tuple[int, ...],
    keys: tuple[int, ...],
    heads: int,
    dim: int,
    capacity: int,
    slots: tuple[int, ...] | None = None,
    count: int | None = None,
    kv_heads: int | None = None,
    **kwargs: Any,
) -> Any:
    def build(rng: np.random.Generator) -> Any:
        offsets = np.array([0, *accumulate(queries)], np.int64)
        q = rng.standard_normal((offsets[-1], heads, dim)).astype(np.float32)
        size = (len(queries) if count is None else count, kv_heads or heads, capacity, dim)
        k, v = (rng.standard_normal(size).astype(np.float32) for _ in range(2))
        chosen = {} if slots is None else {"slots": np.array(slots, np.int64)}
        return (q, k, v, offsets, np.array(keys, np.int64)), {**chosen, **kwargs}

    return build


def case(name: str, *args: Any, **kwargs: Any) -> Case:
    return Case(name, make(*args, **kwargs), host=HOST)


def timed(
    name: str, queries: tuple[int, ...], keys: tuple[int, ...], heads: int, dim: int, **kw: Any
) -> Case:
    pairs = list(zip(queries, keys, strict=True))
    seen = sum(m * n - (m * (m - 1) / 2 if kw.get("causal", True) else 0) for m, n in pairs)
    return Case(
        name,
        make(queries, keys, heads, dim, max(keys), **kw),
        flops=4.0 * heads * seen * dim,
        bytes=8.0 * heads * (sum(queries) + sum(keys)) * dim,
        peer=peer,
        host=HOST,
    )


DIGITS = ((1, 4, 9, 16, 49), (1, 5, 14, 30, 79))  # tokens of a scale, and keys after it
BATCH = (0, 1, 2, 3, 4, 0, 4, 2)  # scales that eight requests are at
FRONTIER = tuple(1 + i * i % 8 for i in range(100))

CASES = [
    case("one", (1,), (1,), 1, 1, 1),
    case("no sequences", (), (), 2, 8, 3, count=2),
    case("no rows", (0, 0), (3, 0), 2, 8, 3),
    case("no keys", (2, 3), (0, 0), 2, 8, 0, causal=False),
    case("an empty sequence", (2, 0, 3), (2, 4, 5), 2, 16, 7),
    case("all keys", (70, 1, 7), (101, 131, 0), 2, 40, 131, causal=False, scale=0.3),
    case("causal", (133, 3, 66), (133, 104, 67), 2, 24, 140),
    case("slots", (5, 1, 9), (20, 33, 9), 3, 16, 33, slots=(4, 0, 4), count=6),
    case("grouped heads", (9, 2), (20, 2), 6, 16, 21, kv_heads=2, slots=(1, 0), count=2),
    case("wide 250", (35, 2), (77, 50), 2, 250, 80),
    timed(
        "digits, 8 requests, scales 0 to 4",
        tuple(DIGITS[0][s] for s in BATCH for _ in range(2)),
        tuple(DIGITS[1][s] for s in BATCH for _ in range(2)),
        4, 32, causal=False,
    ),
    timed("TarFlow D=32, 100 frontiers", FRONTIER, tuple(f + 20 for f in FRONTIER), 2, 32),
    timed("VAR-d16, scales 0, 5, 9", (1, 36, 256), (1, 91, 680), 16, 64, causal=False),
]  # fmt: skip
