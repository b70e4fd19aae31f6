from __future__ import annotations

from typing import Any

import numpy as np
import torch

from harness import Case


def make(*shapes: tuple[int, ...], dtype: Any = np.float64) -> Any:
    def build(rng: np.random.Generator) -> Any:
        return tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes), {}

    return build


def peer(a: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
    return torch.linalg.svdvals(a if b is None else a @ b.mT).sum(dim=-1)


F64 = ("float64",)


def timed(batch: int, m: int, n: int) -> Case:
    k = min(m, n)
    flops = batch * (m * n * k + 4.0 / 3.0 * k**3)
    return Case(
        f"({batch}, {m}, {n})",
        make((batch, m, n)),
        dtypes=F64,
        flops=flops,
        bytes=4.0 * batch * m * n,
        peer=peer,
    )


CASES = [
    Case("one number", make((1, 1)), dtypes=F64),
    Case("wide", make((3, 5)), dtypes=F64),
    Case("tall batch", make((2, 2, 90, 70)), dtypes=F64),
    Case("float32", make((3, 8, 6), dtype=np.float32), dtypes=("float32",)),
    Case("product", make((2, 7, 30), (2, 5, 30)), dtypes=F64),
    Case("product of low rank", make((90, 3), (80, 3)), dtypes=F64),
    Case("empty product", make((2, 4, 0), (2, 3, 0)), dtypes=F64),
    Case("no matrices", make((0, 3, 2)), dtypes=F64),
    Case("no columns", make((2, 3, 0)), dtypes=F64),
    timed(16, 128, 128),
    timed(1, 500, 180),
]
