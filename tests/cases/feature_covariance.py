from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pixleap.reference.feature_moments import feature_moments

from .feature_moments import state
from harness import Case


def make(n: int, d: int, mean: float = 0.0) -> Any:
    def build(rng: np.random.Generator) -> Any:
        return (*feature_moments(mean + rng.standard_normal((n, d)), *state(d)), n), {}

    return build


def peer(second: torch.Tensor, first: torch.Tensor, count: int) -> Any:
    """From float64 totals, as torchmetrics computes it."""
    d = len(first)
    sums, products = first[:, 1].double(), second[:, 1].double()
    square = torch.zeros(d, d, dtype=torch.float64)
    rows, columns = torch.tril_indices(d, d)
    square[rows, columns] = square[columns, rows] = products
    mean = sums / count
    return mean, (square - count * torch.outer(mean, mean)) / (count - 1)


def timed(d: int) -> Case:
    def build(rng: np.random.Generator) -> Any:
        n = 64
        return (*feature_moments(rng.integers(-8, 9, (n, d)), *state(d)), n), {}

    return Case(str(d), build, dtypes=("float64",), bytes=8.0 * d * d, peer=peer)


F64 = ("float64",)
CASES = [
    Case("one number", make(5, 1), dtypes=F64, tolerance={"float64": 1e-15}),
    Case("several", make(9, 7), dtypes=F64, tolerance={"float64": 1e-15}),
    Case("large mean", make(9, 7, 1e6), dtypes=F64, tolerance={"float64": 1e-15}),
    Case("tails", make(4, 35), dtypes=F64, tolerance={"float64": 1e-15}),
    Case("no columns", make(3, 0), dtypes=F64),
    timed(64),
]
