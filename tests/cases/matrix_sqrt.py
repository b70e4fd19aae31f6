from __future__ import annotations

from typing import Any

import numpy as np
import torch

from harness import Case


def covariances(
    rng: np.random.Generator, batch: tuple[int, ...], d: int, rank: int, decay: float = 1.0
) -> np.ndarray:
    """Symmetric matrices of the given rank, with eigenvalues over `decay` powers of ten."""
    scale = np.logspace(0, -decay / 2, rank)
    x = rng.standard_normal((*batch, d, rank)) * scale / np.sqrt(d)
    return x @ np.swapaxes(x, -1, -2)


def make(batch: tuple[int, ...], d: int, rank: int, dtype: Any = np.float64) -> Any:
    def build(rng: np.random.Generator) -> Any:
        return (covariances(rng, batch, d, rank).astype(dtype),), {}

    return build


def peer(a: torch.Tensor) -> torch.Tensor:
    """Eigenvalues and vectors in torch."""
    values, vectors = torch.linalg.eigh(a)
    return (vectors * values.clamp(min=0).sqrt().unsqueeze(-2)) @ vectors.mT


# The square root of an eigenvalue that is zero up to rounding is off by sqrt(eps).
DEFICIENT = {"float64": 1e-6}
F64 = ("float64",)


def timed(batch: tuple[int, ...], d: int) -> Case:
    count = float(np.prod(batch))
    return Case(
        f"{batch} x {d} x {d}",
        make(batch, d, d),
        dtypes=F64,
        tolerance={"float64": 1e-9},
        flops=count * 8.0 * d**3,
        bytes=8.0 * count * d * d,
        peer=peer,
    )


CASES = [
    Case("one number", make((), 1, 1), dtypes=F64),
    Case("one matrix", make((), 7, 7), dtypes=F64, tolerance={"float64": 1e-9}),
    Case("batch", make((2, 3), 19, 19), dtypes=F64, tolerance={"float64": 1e-9}),
    Case("rank 3", make((4,), 12, 3), dtypes=F64, tolerance=DEFICIENT),
    Case("float32", make((2,), 9, 9, np.float32), dtypes=("float32",), tolerance={"float32": 1e-5}),
    Case("no matrices", make((0,), 3, 3), dtypes=F64),
    Case("no rows", make((2,), 0, 0), dtypes=F64),
    timed((64,), 64),
    timed((8,), 192),
]
