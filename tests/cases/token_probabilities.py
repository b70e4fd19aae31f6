from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cases.sample_tokens import filtered, make
from harness import Case


def peer(
    logits: torch.Tensor, tokens: torch.Tensor | None = None, log: bool = False, **filters: Any
) -> torch.Tensor:
    x = filtered(logits, **filters)
    if tokens is None:
        return x.log_softmax(-1) if log else x.softmax(-1)
    return x.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]


def build(shape: tuple[int, ...], *args: Any, given: bool = False, **kw: Any) -> Any:
    inputs = make(shape, *args, **kw)

    def case(rng: np.random.Generator) -> Any:
        call, kwargs = inputs(rng)
        del kwargs["seed"], kwargs["offset"]
        if given:
            kwargs["tokens"] = rng.integers(0, shape[-1], shape[:2])
        return call, kwargs

    return case


def case(name: str, *args: Any, **kwargs: Any) -> Case:
    return Case(name, build(*args, **kwargs))


def timed(shape: tuple[int, ...], guided: bool, **kwargs: Any) -> Case:
    size = int(np.prod(shape))
    arrays = (2 if guided else 1) + (0 if kwargs.get("given") else 1)
    return Case(
        f"{'guided ' if guided else ''}{shape}" + "".join(f" {k}={v}" for k, v in kwargs.items()),
        build(shape, guided, **kwargs),
        bytes=4.0 * size * arrays,
        dtypes=("float32",),
        peer=peer,
    )


CASES = [
    case("empty", (0, 3, 8)),
    case("one token", (2, 3, 1)),
    case("tail", (3, 5, 37)),
    case("guided and filtered", (2, 7, 131), True, guidance_scale=1.5, top_k=20, top_p=0.8),
    case("logarithms", (2, 7, 131), log=True, temperature=0.7),
    case("logarithms, filtered", (2, 7, 131), log=True, top_k=20, top_p=0.8),
    case("given", (2, 7, 131), True, given=True, guidance_scale=1.5, log=True),
    case("given, filtered", (2, 7, 31), given=True, top_k=20, top_p=0.9),
    case("given, logarithms, filtered", (2, 7, 31), given=True, log=True, top_k=20, top_p=0.9),
    case("greedy", (2, 7, 131), temperature=0.0),
    case("greedy, given", (2, 7, 3), temperature=0.0, given=True, log=True),
    case("cold", (3, 9, 301), temperature=1e-3, top_p=0.999),
    case("wide", (2, 3, 1001), spread=3000.0, temperature=2000.0, top_k=500, top_p=0.9),
    case("special values", (2, 4, 17), special=True, log=True),
    case("special values, filtered", (2, 4, 17), special=True, top_k=7, top_p=0.9),
    timed((1, 64, 4096), False),
    timed((1, 64, 4096), False, top_k=900, top_p=0.96),
    timed((1, 64, 4096), True, guidance_scale=2.5, top_k=900, top_p=0.96),
    timed((1, 64, 4096), False, given=True, log=True),
    timed((1, 64, 4096), False, given=True, log=True, top_k=900, top_p=0.96),
]
