from __future__ import annotations

from typing import Any

import numpy as np
import torch

from harness import FLOATS, Case


def peer(
    x: torch.Tensor,
    y: torch.Tensor | None = None,
    *,
    kernel: str,
    gamma: float,
    coef0: float = 1.0,
    degree: int = 3,
) -> torch.Tensor:
    """The kernel matrix, then its row sums."""
    other = x if y is None else y
    if kernel == "gaussian":
        values = torch.exp(-gamma * torch.cdist(x, other).square())
    else:
        values = (gamma * (x @ other.T) + coef0) ** degree
    if y is None:
        values.fill_diagonal_(0)
    return values.sum(dim=1, dtype=torch.float64)


def make(n: int, m: int | None, d: int, offset: float = 0.0, **kwargs: Any) -> Any:
    def build(rng: np.random.Generator) -> Any:
        x = (rng.standard_normal((n, d)) + offset).astype(np.float32)
        y = None if m is None else (rng.standard_normal((m, d)) + offset).astype(np.float32)
        return (x, y), kwargs

    return build


def timed(n: int, m: int | None, d: int, **kwargs: Any) -> Case:
    return Case(
        f"{kwargs['kernel']} {n} x {m or 'itself'}, d {d}",
        make(n, m, d, **kwargs),
        flops=float(n) * (n if m is None else 2 * m) * d,
        bytes=4.0 * (n + (m or 0)) * d,
        tolerance=SUMS,
        dtypes=("float32",),  # the float64 reference takes long
        peer=peer,
    )


# Inputs are rounded before both, kernel values are float32 and sums float64.
SUMS = dict.fromkeys(FLOATS, 1e-6)
POLYNOMIAL: dict[str, Any] = {"kernel": "polynomial", "gamma": 1 / 64}
GAUSSIAN: dict[str, Any] = {"kernel": "gaussian", "gamma": 1 / 200}

CASES = [
    Case("polynomial", make(37, 53, 19, **POLYNOMIAL), tolerance=SUMS),
    Case("polynomial itself", make(101, None, 33, **POLYNOMIAL), tolerance=SUMS),
    Case("polynomial degree 2", make(40, 9, 8, degree=2, coef0=0.5, **POLYNOMIAL), tolerance=SUMS),
    Case("gaussian", make(37, 53, 19, **GAUSSIAN), tolerance=SUMS),
    Case("gaussian itself", make(530, None, 7, **GAUSSIAN), tolerance=SUMS),
    Case("gaussian far from 0", make(70, 600, 5, 1e3, **GAUSSIAN), ("float32",), SUMS),
    Case("deep", make(20, 30, 1300, **GAUSSIAN), ("float32",), SUMS),
    Case("one row", make(1, None, 3, **POLYNOMIAL), tolerance=SUMS),
    Case("no rows", make(0, 5, 3, **GAUSSIAN)),
    Case("no others", make(5, 0, 3, **GAUSSIAN)),
    timed(600, None, 2048, **{**POLYNOMIAL, "gamma": 1 / 2048}),
    timed(600, 600, 2048, **{**POLYNOMIAL, "gamma": 1 / 2048}),
    timed(900, None, 768, **GAUSSIAN),
]
