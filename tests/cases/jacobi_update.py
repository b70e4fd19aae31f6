from __future__ import annotations

from typing import Any

import numpy as np
import torch

from harness import Case


def peer(
    z: torch.Tensor, a: torch.Tensor, b: torch.Tensor, previous: torch.Tensor,
    uncond_a: Any = None, uncond_b: Any = None, guidance: Any = None,
) -> Any:  # fmt: skip
    """What a sampler writes in torch."""
    if guidance is not None:
        g = guidance[:, None]
        a = a + g * (a - uncond_a) if uncond_a is not None else a
        b = b + g * (b - uncond_b) if uncond_b is not None else b
    x = z * a.exp() + b
    return x, (x - previous).abs().amax(dim=-1)


def make(shape: tuple[int, int, int], guided: str = "") -> Any:
    def build(rng: np.random.Generator) -> Any:
        def normal() -> np.ndarray:
            return rng.standard_normal(shape).astype(np.float32)

        kwargs: dict[str, Any] = {f"uncond_{name}": normal() for name in guided}
        if guided:
            # float64 arrays are not cast by the harness, and this argument stays float32.
            kwargs["guidance"] = np.linspace(0, 1.5, shape[1]).astype(np.float32)
        return (normal(), 0.3 * normal(), normal(), normal()), kwargs

    return build


def timed(shape: tuple[int, int, int], guided: str) -> Case:
    size = int(np.prod(shape))
    arrays = 5 + len(guided)
    return Case(
        f"{shape} guided {guided or 'not'}",
        make(shape, guided),
        dtypes=("float32",),
        tolerance=TOLERANCE,
        flops=20.0 * size,
        bytes=4.0 * arrays * size,
        peer=peer,
    )


TOLERANCE = {"float32": 4e-6}
F32: tuple[str, ...] = ("float32",)

CASES = [
    Case("one number", make((1, 1, 1))),
    Case("tail", make((3, 5, 13))),
    Case("guided a", make((2, 7, 12), "a"), dtypes=F32, tolerance=TOLERANCE),
    Case("guided ab", make((2, 7, 17), "ab"), dtypes=F32, tolerance=TOLERANCE),
    Case("many tokens", make((2, 2500, 4))),
    Case("no tokens", make((2, 0, 4))),
    Case("no batch", make((0, 3, 4), "ab"), dtypes=F32),
    timed((1, 8, 4), "ab"),
    timed((100, 1, 4), "ab"),
    timed((8, 64, 192), ""),
    timed((8, 64, 192), "ab"),
]
