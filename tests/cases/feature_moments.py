from __future__ import annotations

from typing import Any

import numpy as np
import torch

from harness import Case


def state(d: int) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((d * (d + 1) // 2, 2), np.int64), np.zeros((d, 2), np.int64)


def make(n: int, d: int, dtype: Any = np.float32) -> Any:
    """Small integers, whose means and products are exact in every precision, so that the totals are
    those of rational arithmetic: few rows, or many that are symmetric about 3."""

    def build(rng: np.random.Generator) -> Any:
        x = rng.integers(-8, 9, (n, d))
        if n > 16:
            x[1::2] = 6 - x[::2]
        return (x.astype(dtype), *state(d)), {}

    return build


def peer(features: torch.Tensor, second: torch.Tensor, first: torch.Tensor) -> Any:
    """What torchmetrics' FrechetInceptionDistance.update does, with totals of its own."""
    x = features.double()
    return x.sum(dim=0), x.T @ x


def timed(n: int, d: int) -> Case:
    def build(rng: np.random.Generator) -> Any:
        x = np.tile(rng.integers(-8, 9, (2, d)), (n // 2, 1))
        x[1::2] = 6 - x[::2]  # exact, as above
        return (x.astype(np.float32), *state(d)), {}

    return Case(
        f"{n} x {d}",
        build,
        dtypes=("float32",),
        flops=float(n) * d * d,
        bytes=4.0 * n * d + 16.0 * d * d,
        peer=peer,
        has_out=False,
    )


CASES = [
    Case("one number", make(1, 1), has_out=False),
    Case("two rows", make(2, 3), has_out=False),
    Case("tails", make(16, 53), has_out=False),
    Case("sub-blocks", make(256, 7), has_out=False),
    Case("blocks", make(2048, 3), has_out=False),
    Case("float64", make(32, 31, np.float64), dtypes=("float64",), has_out=False),
    Case("no rows", make(0, 4), has_out=False),
    Case("no columns", make(4, 0), has_out=False),
    timed(256, 512),
    timed(2048, 512),
]
