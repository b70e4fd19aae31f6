from __future__ import annotations

from typing import Any

import numpy as np
import torch

from harness import FLOATS, Case


def peer(x: torch.Tensor, y: torch.Tensor | None = None, *, k: int) -> Any:
    """The distance matrix, then topk, as metric packages do."""
    distances = torch.cdist(x, x if y is None else y)
    if y is None:
        distances.fill_diagonal_(torch.inf)
    return distances.topk(k, dim=1, largest=False)


def make(n: int, m: int | None, d: int, k: int, offset: float = 0.0) -> Any:
    def build(rng: np.random.Generator) -> Any:
        x = (rng.standard_normal((n, d)) + offset).astype(np.float32)
        y = None if m is None else (rng.standard_normal((m, d)) + offset).astype(np.float32)
        return (x, y), {"k": k}

    return build


def timed(n: int, m: int | None, d: int, k: int) -> Case:
    return Case(
        f"{n} x {m or 'itself'}, d {d}, k {k}",
        make(n, m, d, k),
        flops=float(n) * (n if m is None else 2 * m) * d,
        bytes=4.0 * (n + (m or 0)) * d,
        tolerance=FLOAT64,
        dtypes=("float32",),  # the float64 reference takes long
        peer=peer,
    )


# Distances are float64, of the rows as they are after rounding to their dtype.
FLOAT64 = dict.fromkeys(FLOATS, 1e-13)

CASES = [
    Case("two sets", make(37, 53, 19, 5), tolerance=FLOAT64),
    Case("itself", make(101, None, 33, 4), tolerance=FLOAT64),
    Case("blocks", make(530, None, 7, 64), dtypes=("float32",), tolerance=FLOAT64),
    Case("blocks of two sets", make(70, 600, 5, 1), dtypes=("float32",), tolerance=FLOAT64),
    Case("far from 0", make(90, 60, 16, 3, 1e4), dtypes=("float32",), tolerance=FLOAT64),
    Case("all others", make(6, None, 3, 5), dtypes=("float32",), tolerance=FLOAT64),
    Case("deep", make(20, 20, 1300, 2), dtypes=("float32",), tolerance=FLOAT64),
    Case("no rows", make(0, 5, 3, 2)),
    timed(600, None, 2048, 5),
    timed(1500, None, 64, 5),
    timed(600, 500, 768, 5),
]
