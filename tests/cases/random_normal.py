from __future__ import annotations

from typing import Any

import numpy as np
import torch

from harness import Case


def peer(
    shape: tuple[int, ...], seed: int, offset: int = 0, first_element: int = 0,
    like: torch.Tensor | None = None, dtype: str = "float32",
) -> torch.Tensor:  # fmt: skip
    """torch's generator; other numbers of the same distribution."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make(shape: tuple[int, ...], **kwargs: Any) -> Any:
    def build(rng: np.random.Generator) -> Any:
        # `like` decides framework and dtype, so the harness casts it.
        return (shape,), {"seed": 2**63 - 9, "like": np.zeros((1,), np.float32), **kwargs}

    return build


CASES = [
    Case("one number", make((1,)), dtypes=("float32",)),
    Case("odd start", make((3, 7), offset=2**33 + 1, first_element=5), dtypes=("float32",)),
    Case("negative seed", make((257,), seed=-3, first_element=2), dtypes=("float32",)),
    Case("half", make((5, 33), dtype="float16"), dtypes=("float32",), tolerance={"float32": 6e-4}),
    Case("empty", make((0, 4)), dtypes=("float32",)),
    Case("two tasks", make((9001,), first_element=3), dtypes=("float32",)),
    Case(
        "(100, 49, 4)", make((100, 49, 4)), dtypes=("float32",), flops=60.0 * 19600,
        bytes=4.0 * 19600, peer=peer,
    ),
    Case(
        "(8, 3, 256, 256)", make((8, 3, 256, 256)), dtypes=("float32",), flops=60.0 * 1572864,
        bytes=4.0 * 1572864, peer=peer,
    ),
]  # fmt: skip
