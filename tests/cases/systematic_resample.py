from __future__ import annotations

from typing import Any

import numpy as np
import torch

from harness import Case


def peer(log_weights: torch.Tensor, seed: int, offset: int = 0, **key: Any) -> torch.Tensor:
    """softmax, cumsum, searchsorted; torch's uniform numbers."""
    w = log_weights.double().softmax(-1)
    count = w.shape[-1]
    u = torch.rand(w.shape[:-1], dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    positions = (u[..., None] + torch.arange(count)) / count
    sums = w.cumsum(-1)
    return torch.searchsorted(sums, positions, right=True).clamp_(max=count - 1)


def make(shape: tuple[int, ...], spread: float = 1.0, kind: str = "", dtype: str = "float64",
         **kwargs: Any) -> Any:  # fmt: skip
    def build(rng: np.random.Generator) -> Any:
        x = (spread * rng.standard_normal(shape)).astype(dtype)
        if kind == "impossible":
            x[..., ::3] = -np.inf
            x[..., -2:] = -np.inf
        elif kind == "far":
            x += 1e4
        elif kind == "equal":
            x[:] = -3.0
        return (x,), {"seed": 2**40 + 5, "offset": 3, **kwargs}

    return build


def case(name: str, *args: Any, **kwargs: Any) -> Case:
    return Case(name, make(*args, **kwargs), dtypes=("float32",), exact=True)


def timed(shape: tuple[int, ...]) -> Case:
    size = int(np.prod(shape))
    return Case(
        str(shape), make(shape, 2.0, dtype="float32"), dtypes=("float32",), bytes=12.0 * size,
        peer=peer, exact=True,
    )  # fmt: skip


CASES = [
    case("one particle", (3, 1)),
    case("one axis", (17,)),
    case("no rows", (0, 5)),
    case("no particles", (5, 0)),
    case("rows", (4, 5, 33), 2.0, first_row=2**33 + 7),
    case("float32", (4, 5, 33), 2.0, dtype="float32"),
    case("far from zero", (7, 100), kind="far", dtype="float32"),
    case("peaked", (9, 64), 300.0),
    case("equal weights", (9, 64), kind="equal"),
    case("impossible particles", (6, 29), kind="impossible"),
    case("several tasks", (301, 40), 1.5, seed=-9),
    case("long", (2, 20011), 3.0),
    timed((64, 16)),
    timed((256, 256)),
    timed((8, 65536)),
]
