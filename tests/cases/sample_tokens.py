from __future__ import annotations

from typing import Any

import numpy as np
import torch

from harness import Case


def peer(
    logits: torch.Tensor,
    uncond: torch.Tensor | None = None,
    guidance_scale: float = 1.0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    **key: Any,
) -> torch.Tensor:
    """The usual sequence: guidance, topk, sort, softmax, cumsum, multinomial."""
    x = logits if uncond is None else guidance_scale * logits - (guidance_scale - 1) * uncond
    x = x.float() / temperature
    if top_k:
        kth = x.topk(top_k, sorted=False)[0].amin(-1, keepdim=True)
        x = x.masked_fill(x < kth, -torch.inf)
    if top_p < 1:
        ascending, order = x.sort(dim=-1)
        removed = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
        removed[..., -1] = False
        x = x.masked_fill(torch.empty_like(removed).scatter_(-1, order, removed), -torch.inf)
    batch, length, vocabulary = x.shape
    draws = torch.multinomial(x.softmax(-1).view(-1, vocabulary), 1)
    return draws.view(batch, length)


def make(
    shape: tuple[int, ...],
    guided: bool = False,
    spread: float = 3.0,
    special: bool = False,
    **kw: Any,
) -> Any:
    """Normal logits: in float32 the two best scores of a row are never within rounding of each
    other for these seeds, so that kernel and reference draw the same tokens."""

    def build(rng: np.random.Generator) -> Any:
        logits = (spread * rng.standard_normal(shape)).astype(np.float32)
        kwargs = {"seed": 2**40 + 5, "offset": 3, **kw}
        if guided:
            kwargs["uncond"] = (spread * rng.standard_normal(shape)).astype(np.float32)
        if special:
            flat = logits.reshape(-1, shape[-1])
            flat[0] = -np.inf
            flat[1] = np.nan
            flat[2, 5] = flat[2, 9] = np.inf
            flat[3, ::2] = np.nan
            flat[4, 1:] = -np.inf
            flat[5] = 0.25
        return (logits,), kwargs

    return build


def timed(shape: tuple[int, ...], guided: bool, **kwargs: Any) -> Case:
    size = int(np.prod(shape))
    return Case(
        f"{'guided ' if guided else ''}{shape}" + "".join(f" {k}={v}" for k, v in kwargs.items()),
        make(shape, guided, **kwargs),
        flops=0.0,
        bytes=4.0 * size * (2 if guided else 1),
        peer=peer,
        exact=True,
    )


def case(name: str, *args: Any, **kwargs: Any) -> Case:
    return Case(name, make(*args, **kwargs), exact=True)


CASES = [
    case("empty", (0, 3, 8)),
    case("one token", (2, 3, 1)),
    case("tail", (3, 5, 37), first_sample=11),
    case("guided", (2, 7, 131), True, guidance_scale=2.5, temperature=0.7),
    case("guided and filtered", (2, 7, 131), True, guidance_scale=1.5, top_k=20, top_p=0.8),
    case("greedy", (2, 7, 131), True, temperature=0.0),
    case("top-k of one", (2, 5, 33), top_k=1),
    case("top-k of all", (2, 5, 33), top_k=33),
    case("top-p", (3, 9, 301), top_p=0.9),
    case("tiny top-p", (3, 9, 301), top_p=1e-3),
    case("cold", (3, 9, 301), temperature=1e-3, top_p=0.999),
    case("wide", (2, 3, 1001), spread=3000.0, temperature=2000.0, top_k=500, top_p=0.9),
    case("special values", (2, 4, 17), special=True),
    case("special values, filtered", (2, 4, 17), special=True, top_k=7, top_p=0.9),
    timed((1, 1, 4096), False, top_k=900, top_p=0.96),
    timed((2, 256, 4096), False, top_k=900, top_p=0.96),
    timed((2, 256, 4096), True, guidance_scale=2.5, top_k=900, top_p=0.96),
    timed((2, 256, 4096), False, top_p=0.96),
    timed((2, 256, 4096), False),
    timed((100, 49, 256), True, guidance_scale=1.5, top_k=100, top_p=0.95),
]
