from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .matrix_sqrt import covariances
from harness import Case


def make(
    batch: tuple[int, ...], d: int, rank1: int, rank2: int, dtype: Any = np.float64, **kwargs: Any
) -> Any:
    def build(rng: np.random.Generator) -> Any:
        matrices = (covariances(rng, batch, d, r).astype(dtype) for r in (rank1, rank2))
        return tuple(matrices), kwargs

    return build


def peer(c1: torch.Tensor, c2: torch.Tensor) -> torch.Tensor:
    """The best of torch: Cholesky factor and symmetric eigenvalues."""
    factor = torch.linalg.cholesky(c1)
    return torch.linalg.eigvalsh(factor.mT @ c2 @ factor).clamp(min=0).sqrt().sum(dim=-1)


F64 = ("float64",)


def timed(batch: tuple[int, ...], d: int) -> Case:
    count = float(np.prod(batch))
    return Case(
        f"{batch} x {d} x {d}",
        make(batch, d, 2 * d, 2 * d),
        dtypes=F64,
        flops=count * (1.0 / 3 + 1 + 4.0 / 3) * d**3,
        bytes=8.0 * count * d * d,
        peer=peer,
    )


CASES = [
    Case("one number", make((), 1, 1, 1), dtypes=F64),
    Case("one pair", make((), 7, 9, 8), dtypes=F64),
    Case("batch", make((2, 3), 19, 20, 21), dtypes=F64),
    Case("low ranks", make((2,), 12, 3, 5), dtypes=F64, tolerance={"float64": 1e-10}),
    Case("pivoted", make((2,), 12, 13, 14, method="pivoted"), dtypes=F64),
    Case("eigh", make((2,), 12, 13, 14, method="eigh"), dtypes=F64),
    Case("cholesky", make((2,), 12, 13, 14, method="cholesky"), dtypes=F64),
    Case("nothing shared", make((3,), 8, 0, 4), dtypes=F64),
    Case("float32", make((2,), 9, 12, 15, np.float32), dtypes=("float32",)),
    Case("no matrices", make((0,), 3, 3, 3), dtypes=F64),
    Case("no rows", make((2,), 0, 0, 0), dtypes=F64),
    timed((32,), 64),
    timed((4,), 192),
]
