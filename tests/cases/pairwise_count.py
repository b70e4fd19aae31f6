from __future__ import annotations

from typing import Any

import numpy as np
import torch

from harness import Case


def peer(x: torch.Tensor, y: torch.Tensor, x_radii: torch.Tensor, y_radii: torch.Tensor) -> Any:
    """The distance matrix compared with both radii, as metric packages do."""
    distances = torch.cdist(x, y)
    in_x = distances < x_radii.sqrt().float()[:, None]
    in_y = distances < y_radii.sqrt().float()[None]
    return (
        torch.stack([in_x.sum(1), in_y.sum(1)], 1),
        torch.stack([in_y.sum(0), in_x.sum(0)], 1),
    )


def make(n: int, m: int, d: int, offset: float = 0.0) -> Any:
    """Radii near the smaller distances, some 0 and some infinite."""

    def build(rng: np.random.Generator) -> Any:
        x = (rng.standard_normal((n, d)) + offset).astype(np.float32)
        y = (1.1 * rng.standard_normal((m, d)) + offset).astype(np.float32)
        radii = [2.2 * d * rng.uniform(0.3, 1.2, size) for size in (n, m)]
        for r in radii:
            r[3::17], r[4::23] = 0.0, np.inf
        return (x, y, *radii), {}

    return build


def timed(n: int, m: int, d: int) -> Case:
    return Case(
        f"{n} x {m}, d {d}",
        make(n, m, d),
        flops=2.0 * n * m * d,
        bytes=4.0 * (n + m) * d,
        exact=True,
        dtypes=("float32",),  # the float64 reference takes long
        peer=peer,
    )


CASES = [
    Case("tail", make(37, 53, 19), exact=True),
    Case("blocks", make(530, 40, 7), dtypes=("float32",), exact=True),
    Case("more columns", make(33, 600, 12), dtypes=("float32",), exact=True),
    Case("far from 0", make(90, 60, 16, 1e4), dtypes=("float32",), exact=True),
    Case("deep", make(20, 30, 1300), dtypes=("float32",), exact=True),
    Case("no rows", make(0, 5, 3), exact=True),
    timed(600, 600, 2048),
    timed(1500, 1500, 64),
]
