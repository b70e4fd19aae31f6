from __future__ import annotations

from typing import Any

import numpy as np
import torch

from harness import Case

OPERANDS = ("weight", "bias", "scale", "shift")


def make(
    shape: tuple[int, int, int],
    operands: tuple[str, ...] = (),
    mean: float = 0.0,
    **kwargs: Any,
) -> Any:
    def build(rng: np.random.Generator) -> Any:
        batch, _, channels = shape
        sizes = {"weight": (channels,), "bias": (channels,)}
        optional = {
            name: rng.standard_normal(sizes.get(name, (batch, channels))).astype(np.float32)
            for name in operands
        }
        x = (rng.standard_normal(shape) + mean).astype(np.float32)
        return (x,), {**optional, **kwargs}

    return build


def peer(x: torch.Tensor, *, eps: float = 1e-6, **o: torch.Tensor) -> torch.Tensor:
    y = torch.nn.functional.layer_norm(x, x.shape[-1:], o.get("weight"), o.get("bias"), eps)
    if "scale" in o:
        y = y * (1 + o["scale"][:, None])
    return y + o["shift"][:, None] if "shift" in o else y


def timed(shape: tuple[int, int, int], operands: tuple[str, ...]) -> Case:
    return Case(
        f"{shape} {' '.join(operands)}",
        make(shape, operands),
        bytes=8.0 * np.prod(shape),
        peer=peer,
    )


CASES = [
    Case("tails", make((3, 5, 37), OPERANDS)),
    Case("empty", make((2, 0, 5), OPERANDS)),
    Case("no channels", make((2, 3, 0), OPERANDS)),
    Case("one channel", make((2, 3, 1), OPERANDS)),
    Case("plain", make((2, 3, 16))),
    Case("weight", make((1, 2, 100), ("weight",))),
    Case("shift", make((2, 2, 33), ("shift",), eps=0.5)),
    Case("scale", make((2, 9, 64), ("scale",))),
    Case("wide", make((2, 3, 4999), OPERANDS)),
    # The deviation is 1: a one-pass variance would be all rounding error. In half precision
    # these inputs are a few equal numbers.
    Case("far mean", make((1, 3, 1000), OPERANDS, mean=1e4), dtypes=("float32",)),
    Case("constant", make((1, 2, 70), ("bias",), mean=3e7), dtypes=("float32",)),
    timed((1, 256, 1024), ("scale", "shift")),
    timed((2, 4, 1024), ("scale", "shift")),
    timed((2, 100, 64), ("weight", "bias")),
    timed((16, 100, 128), ("scale", "shift")),
    timed((200, 49, 128), ("weight", "bias")),
]
