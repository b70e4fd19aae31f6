from __future__ import annotations

from typing import Any

import numpy as np
import torch

from harness import FLOATS, Case

HALVES = ("bfloat16", "float16")


def make(n: int, k: int, dtype: str) -> Any:
    def build(rng: np.random.Generator) -> Any:
        return (rng.standard_normal((n, k)).astype(np.float32),), {"dtype": dtype}

    return build


def peer(weight: torch.Tensor, dtype: str) -> torch.Tensor:
    """The same layout by view, transpose and copy (N a multiple of 16, K of 2)."""
    n, k = weight.shape
    pairs = 2 if dtype == "bfloat16" else 1
    panels = weight.to(getattr(torch, dtype)).view(n // 16, 16, k // pairs, pairs)
    return panels.transpose(1, 2).contiguous().view(n // 16, k // pairs, 16, -1).squeeze(-1)


def timed(n: int, k: int, dtype: str, dtypes: tuple[str, ...]) -> Case:
    size = 4 if dtype == "float32" else 2
    return Case(
        f"{n} x {k} to {dtype}",
        make(n, k, dtype),
        dtypes=dtypes,
        bytes=n * k * (4.0 + size),
        peer=peer,
        exact=True,
    )


# NumPy has no bfloat16 to return, so bfloat16 panels are made of half-precision weights only here;
# tests/test_linear.py packs float32 weights to bfloat16. The rounding is checked bit for bit.
CASES = [
    Case("empty", make(0, 3, "float32"), exact=True),
    Case("no columns", make(5, 0, "float32"), exact=True),
    Case("one", make(1, 1, "float32"), exact=True),
    Case("tails", make(37, 19, "float32"), exact=True),
    Case("tails to bfloat16", make(37, 19, "bfloat16"), dtypes=HALVES, exact=True),
    Case("one to bfloat16", make(1, 1, "bfloat16"), dtypes=HALVES, exact=True),
    timed(512, 128, "float32", FLOATS),
    timed(4096, 1024, "float32", FLOATS),
    timed(4096, 1024, "bfloat16", HALVES),
]
