from __future__ import annotations

from typing import Any

import numpy as np
import torch

from harness import FLOATS, Case


def filtered(
    logits: torch.Tensor,
    uncond: torch.Tensor | None = None,
    guidance_scale: float = 1.0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> torch.Tensor:
    """The usual sequence of the filters: guidance, topk, sort, softmax, cumsum."""
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
    return x


def peer(
    logits: torch.Tensor,
    seed: int = 0,
    offset: int = 0,
    first_sample: int = 0,
    noise_dtype: str = "float32",
    seeds: torch.Tensor | None = None,
    return_log_prob: bool = False,
    return_probabilities: bool = False,
    **filters: Any,
) -> Any:
    """The filters, softmax and multinomial; Gumbel noise where its dtype is asked for."""
    x = filtered(logits, **filters)
    probabilities = x.softmax(-1)
    if noise_dtype == "float64":
        noise = torch.empty(x.shape, dtype=torch.float64).exponential_().log_()
        draws = (x - noise).argmax(-1)
    else:
        draws = torch.multinomial(probabilities.flatten(0, 1), 1).view(x.shape[:2])
    log_prob = probabilities.gather(-1, draws[..., None])[..., 0].log() if return_log_prob else None
    if return_log_prob or return_probabilities:
        return draws, log_prob, probabilities
    return draws


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
    outputs = size if kwargs.get("return_probabilities") else 0
    plain = kwargs.keys() <= {"guidance_scale", "top_k", "top_p"}
    return Case(
        f"{'guided ' if guided else ''}{shape}" + "".join(f" {k}={v}" for k, v in kwargs.items()),
        make(shape, guided, **kwargs),
        dtypes=FLOATS if plain else ("float32",),
        flops=0.0,
        bytes=4.0 * (size * (2 if guided else 1) + outputs),
        peer=peer,
    )


def case(name: str, *args: Any, **kwargs: Any) -> Case:
    return Case(name, make(*args, **kwargs), exact=True)


def options(name: str, *args: Any, **kwargs: Any) -> Case:
    return Case(name, make(*args, **kwargs))


BOTH = {"return_log_prob": True, "return_probabilities": True}
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
    case("seeds", (3, 5, 37), seeds=np.array([7, 7, -(2**40)]), first_sample=2),
    case("seeds and samples", (3, 5, 37), seeds=np.array([[7, 4], [7, 2**33], [-1, 0]])),
    case("float64", (3, 9, 301), noise_dtype="float64", top_p=0.9, first_sample=2**40),
    case("window", (3, 5, 37), first_sample=2, first_position=4, length=10),
    case("float64, all", (3, 5, 37), noise_dtype="float64", first_sample=11),
    case("float64, special values", (2, 4, 17), special=True, noise_dtype="float64"),
    case("float64, top-k", (2, 7, 131), True, guidance_scale=2.5, noise_dtype="float64", top_k=5),
    options("log-probability", (3, 5, 37), return_log_prob=True, temperature=0.7),
    options("both", (2, 7, 131), True, guidance_scale=1.5, top_k=20, top_p=0.8, **BOTH),
    options("both, empty", (2, 0, 5), **BOTH),
    options("both, greedy", (2, 7, 131), temperature=0.0, **BOTH),
    options("both, special values", (2, 4, 17), special=True, **BOTH),
    options("both, special values, filtered", (2, 4, 17), special=True, top_k=7, top_p=0.9, **BOTH),
    options("probabilities", (2, 3, 1001), top_k=1, return_probabilities=True),
    timed((1, 1, 4096), False, top_k=900, top_p=0.96),
    timed((2, 256, 4096), False, top_k=900, top_p=0.96),
    timed((2, 256, 4096), True, guidance_scale=2.5, top_k=900, top_p=0.96),
    timed((2, 256, 4096), False, top_p=0.96),
    timed((2, 256, 4096), False),
    timed((1, 64, 4096), False, noise_dtype="float64"),
    timed((1, 64, 4096), False, top_k=900, top_p=0.96, noise_dtype="float64"),
    timed((1, 64, 4096), False, return_log_prob=True),
    timed((1, 64, 4096), False, top_k=900, top_p=0.96, return_log_prob=True),
    timed((1, 64, 4096), False, return_probabilities=True),
    timed((1, 64, 4096), False, top_k=900, top_p=0.96, return_probabilities=True),
    timed((100, 49, 256), True, guidance_scale=1.5, top_k=100, top_p=0.95),
]
