from __future__ import annotations

from typing import Any

import numpy as np
import torch

from harness import FLOATS, Case


def peer(inputs: list[torch.Tensor], coefficients: Any, clamp: float | None = None) -> Any:
    """The usual chain of elementwise torch operations."""
    results = []
    for row in coefficients:
        total = inputs[0] * row[0]
        for x, c in zip(inputs[1:], row[1:], strict=True):
            total = total + x * c
        results.append(total if clamp is None else total.clamp(-clamp, clamp))
    return results


def make(shape: tuple[int, ...], n: int, m: int, **kwargs: Any) -> Any:
    def build(rng: np.random.Generator) -> Any:
        inputs = [rng.standard_normal(shape).astype(np.float32) for _ in range(n)]
        return (inputs, rng.standard_normal((m, n)).tolist()), kwargs

    return build


def timed(shape: tuple[int, ...], n: int, m: int, **kwargs: Any) -> Case:
    size = int(np.prod(shape))
    return Case(
        f"{n} to {m} {shape}",
        make(shape, n, m, **kwargs),
        flops=2.0 * n * m * size,
        bytes=4.0 * (n + m) * size,
        peer=peer,
    )


NOISE: dict[str, Any] = {"seed": 2**40 + 5, "offset": 11}

CASES = [
    Case("one number", make((1,), 1, 1)),
    Case("scalar array", make((), 2, 1)),
    Case("empty", make((0, 3), 2, 2)),
    Case("tail", make((3, 5, 7), 3, 2), dtypes=(*FLOATS, "float64")),
    Case("many inputs", make((2, 129), 16, 3)),
    Case("clamp", make((65, 17), 2, 1, clamp=0.5)),
    Case(
        "noise",
        make((3, 1001), 2, 3, noise_scale=[1.0, 0.0, -0.5], **NOISE),
        dtypes=(*FLOATS, "float64"),
        # The noise itself is a float32 number.
        tolerance={"float64": 1e-6},
    ),
    Case("long", make((1, 70001), 4, 1, noise_scale=[0.3], **NOISE)),
    timed((1, 4, 64, 64), 3, 1),
    timed((4, 4, 128, 128), 3, 1),
    timed((8, 3, 256, 256), 4, 2),
]
