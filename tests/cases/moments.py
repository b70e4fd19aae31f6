from __future__ import annotations

from typing import Any

import numpy as np
import torch

from harness import FLOATS, Case


def peer(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The six reductions in torch."""
    x, y = a.flatten(1).double(), b.flatten(1).double()
    sums = [v.sum(dim=1) for v in (x, y, x * x, y * y, x * y)]
    return torch.stack([*sums, (x - y).abs().amax(dim=1)], dim=1)


def make(shape: tuple[int, ...]) -> Any:
    def build(rng: np.random.Generator) -> Any:
        a = rng.standard_normal(shape).astype(np.float32)
        return (a, (0.7 * a + 0.5 * rng.standard_normal(shape)).astype(np.float32) + 0.2), {}

    return build


# Inputs are rounded before both, and sums are float64: the input dtype does not show.
SAME = dict.fromkeys(FLOATS, 1e-6)
DOUBLE = (*FLOATS, "float64")


def timed(shape: tuple[int, ...]) -> Case:
    size = int(np.prod(shape))
    return Case(
        str(shape), make(shape), tolerance=SAME, flops=10.0 * size, bytes=8.0 * size, peer=peer
    )


CASES = [
    Case("one number", make((1, 1)), tolerance=SAME),
    Case("one axis", make((5,)), tolerance=SAME),
    Case("tail", make((3, 5, 7)), DOUBLE, tolerance=SAME),
    Case("blocks", make((2, 4097)), DOUBLE, tolerance=SAME),
    Case("chunks", make((2, 3, 32771)), DOUBLE, tolerance=SAME),
    Case("one sample of two chunks", make((1, 32769)), tolerance=SAME),
    Case("many short samples", make((3001, 5)), tolerance=SAME),
    Case("empty samples", make((3, 0)), tolerance=SAME),
    Case("no samples", make((0, 3)), tolerance=SAME),
    timed((1, 4, 64, 64)),
    timed((4, 4, 128, 128)),
    timed((8, 3, 256, 256)),
]
