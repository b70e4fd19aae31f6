from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cases.sample_tokens import filtered, make
from harness import Case


def peer(
    logits: torch.Tensor,
    logit_scale: float = 1.0,
    temperature: float = 1.0,
    seed: int = 0,
    offset: int = 0,
    first_sample: int = 0,
    seeds: torch.Tensor | None = None,
    **filters: Any,
) -> torch.Tensor:
    """As the official VAR code does it, after its filters."""
    x = filtered(logits, **filters) * logit_scale
    return torch.nn.functional.gumbel_softmax(x, tau=temperature, dim=-1)


def tolerance(temperature: float) -> dict[str, float]:
    """Scores are off by float32 roundings of numbers up to 17; a temperature divides them."""
    return dict.fromkeys(("float32", "bfloat16", "float16"), 3e-6 * max(1.0, 1.0 / temperature))


def case(name: str, *args: Any, **kwargs: Any) -> Case:
    return Case(name, make(*args, **kwargs), tolerance=tolerance(kwargs.get("temperature", 1.0)))


def timed(shape: tuple[int, ...], guided: bool, **kwargs: Any) -> Case:
    return Case(
        f"{'guided ' if guided else ''}{shape}" + "".join(f" {k}={v}" for k, v in kwargs.items()),
        make(shape, guided, **kwargs),
        tolerance=tolerance(kwargs["temperature"]),
        bytes=4.0 * int(np.prod(shape)) * (3 if guided else 2),
        dtypes=("float32",),
        peer=peer,
    )


CASES = [
    case("empty", (0, 3, 8)),
    case("one token", (2, 3, 1)),
    case("tail", (3, 5, 37), first_sample=11),
    case("seeds", (3, 5, 37), seeds=np.array([[7, 4], [7, 2**33], [-1, 0]]), first_sample=2),
    case("guided", (2, 7, 131), True, guidance_scale=2.5, temperature=0.27),
    case("guided and filtered", (2, 7, 131), True, guidance_scale=1.5, top_k=20, top_p=0.8),
    case("scaled", (2, 7, 131), top_k=50, logit_scale=2.0, temperature=0.1),
    case("noise alone", (2, 3, 1001), logit_scale=0.0),
    case("cold", (2, 3, 301), temperature=0.005, top_p=0.9),
    case("special values", (2, 4, 17), special=True),
    case("special values, filtered", (2, 4, 17), special=True, top_k=7, top_p=0.9),
    timed((1, 64, 4096), False, temperature=0.27),
    timed((1, 64, 4096), False, top_k=900, top_p=0.96, temperature=0.27),
    timed(
        (1, 64, 4096), True, guidance_scale=2.5, top_k=900, top_p=0.96, logit_scale=1.5,
        temperature=0.1,
    ),
]  # fmt: skip
