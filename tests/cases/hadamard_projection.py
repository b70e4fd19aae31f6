from __future__ import annotations

from typing import Any

import numpy as np
import torch

from harness import FLOATS, Case


def peer(x: torch.Tensor, flips: torch.Tensor, *, count: int) -> torch.Tensor:
    """The product with as many Gaussian directions, as packages do."""
    directions = torch.ones(count, x.shape[1], dtype=x.dtype)
    return directions @ x.T


def make(n: int, d: int, count: int) -> Any:
    size = 1 << (d - 1).bit_length()

    def build(rng: np.random.Generator) -> Any:
        x = rng.standard_normal((n, d)).astype(np.float32)
        return (x, rng.integers(0, 2, (3, size)).astype(np.uint8)), {"count": count}

    return build


# Inputs are rounded before both; results are float32.
SAME = dict.fromkeys(FLOATS, 2e-6)

CASES = [
    Case("one column", make(5, 1, 1), tolerance=SAME),
    Case("two columns", make(5, 2, 2), tolerance=SAME),
    Case("tail", make(37, 19, 32), tolerance=SAME),
    Case("some", make(20, 64, 7), tolerance=SAME),
    Case("many points", make(1030, 33, 50), dtypes=("float32",), tolerance=SAME),
    Case("no points", make(0, 8, 4)),
    Case("no projections", make(3, 8, 0)),
    Case(
        "1000 x 2048 onto 1000",
        make(1000, 2048, 1000),
        dtypes=("float32",),
        tolerance=SAME,
        flops=3.0 * 11 * 2048 * 1000,
        bytes=4.0 * 1000 * (2048 + 1000),
        peer=peer,
    ),
]
