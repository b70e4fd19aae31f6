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


def awkward(rng: np.random.Generator) -> Any:
    """Rows of zeros, of ties, of numbers whose scale is subnormal or 0, with NaN and infinities."""
    weight = rng.standard_normal((21, 11)).astype(np.float32)
    weight[1] = 0
    weight[2, :] = np.arange(11) - 5.5
    weight[2, 0] = 127  # scale 1
    weight[3] *= 1e-38
    weight[4] *= 1e-44
    weight[5, 3], weight[6, 10], weight[18, 0] = np.nan, np.inf, -np.inf
    return (weight,), {"dtype": "int8"}


def peer(weight: torch.Tensor, dtype: str) -> Any:
    """The same layout by view, transpose and copy (N a multiple of 16, K of 4)."""
    n, k = weight.shape
    scales = None
    if dtype == "int8":
        scales = weight.abs().amax(1).float() / 127
        weight = (weight / scales[:, None]).round_()
    side = {"float32": 1, "bfloat16": 2, "int8": 4}[dtype]
    panels = weight.to(getattr(torch, dtype)).view(n // 16, 16, k // side, side)
    panels = panels.transpose(1, 2).contiguous().view(n // 16, k // side, 16, -1).squeeze(-1)
    return panels if scales is None else (panels, scales)


def timed(n: int, k: int, dtype: str, dtypes: tuple[str, ...]) -> Case:
    size = {"float32": 4, "bfloat16": 2, "int8": 1}[dtype]
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
    Case("empty to int8", make(0, 3, "int8"), exact=True),
    Case("no columns to int8", make(5, 0, "int8"), exact=True),
    Case("one to int8", make(1, 1, "int8"), exact=True),
    Case("tails to int8", make(37, 19, "int8"), exact=True),
    Case("awkward rows to int8", awkward, exact=True),
    timed(512, 128, "float32", FLOATS),
    timed(4096, 1024, "float32", FLOATS),
    timed(4096, 1024, "bfloat16", HALVES),
    timed(4096, 1024, "int8", FLOATS),
]
