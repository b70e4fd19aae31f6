from __future__ import annotations

from typing import Any

import numpy as np
import torch

from harness import Case


def peer(target: torch.Tensor, draft: torch.Tensor, tokens: torch.Tensor, mode: str = "token",
         **key: Any) -> Any:  # fmt: skip
    """What papers and libraries write: gather, divide, compare, clamp, normalise, multinomial."""
    batch, length, size = draft.shape
    rows = target[:, :length]
    index = tokens[..., None]
    ratio = (rows.gather(-1, index) / draft.gather(-1, index)).squeeze(-1)
    if mode == "joint":
        accepted = torch.rand(batch, 1) < ratio.log().sum(-1, keepdim=True).exp()
        accepted = accepted.expand(batch, length)
    else:
        accepted = torch.rand(batch, length) < ratio
    if mode == "joint":  # one try: the residual of the product has no closed form
        drawn = torch.multinomial(rows.reshape(-1, size), 1)
    else:
        residual = (rows - draft).clamp_(min=0)
        residual = residual / residual.sum(-1, keepdim=True).clamp_(min=1e-12)
        drawn = torch.multinomial(residual.view(-1, size) + 1e-20, 1)
    return torch.where(accepted, tokens, drawn.view(batch, length)), accepted


def distributions(rng: np.random.Generator, shape: tuple[int, ...], kind: str) -> Any:
    """p and q (float64, normalised) over the last axis."""
    logits = 2 * rng.standard_normal(shape)
    p = np.exp(logits)
    q = np.exp(logits + {"good": 0.1, "close": 1e-6}.get(kind, 1.0) * rng.standard_normal(shape))
    if kind == "filtered":  # each keeps its largest half, so that supports differ
        for x in (p, q):
            x[x < np.median(x, axis=-1, keepdims=True)] = 0
    elif kind == "disjoint":
        p[..., ::2] = 0
        q[..., 1::2] = 0
    elif kind == "equal":
        q = p.copy()
    elif kind == "one-hot":
        q = np.where(q == q.max(axis=-1, keepdims=True), q, 0)
    return p / p.sum(axis=-1, keepdims=True), q / q.sum(axis=-1, keepdims=True)


def make(shape: tuple[int, int, int], kind: str = "", scale: float = 1.0, bonus: bool = False,
         impossible: bool = False, **kwargs: Any) -> Any:  # fmt: skip
    def build(rng: np.random.Generator) -> Any:
        batch, length, size = shape
        p, q = distributions(rng, (batch, length + 1, size), kind)
        p, q = p[:, : length + bonus], q[:, :length]
        u = rng.random((batch, length, 1))
        tokens = np.minimum((q.cumsum(axis=-1) <= u).sum(axis=-1), size - 1)
        if impossible:
            tokens = q.argmin(axis=-1)
        call = (scale * p).astype(np.float32), q.astype(np.float32), tokens
        return call, {"seed": 2**40 + 5, "offset": 3, **kwargs}

    return build


def case(name: str, *args: Any, **kwargs: Any) -> Case:
    return Case(name, make(*args, **kwargs), dtypes=("float32",), exact=True)


def timed(shape: tuple[int, int, int], kind: str, mode: str) -> Case:
    return Case(
        f"{shape} {mode} {kind}", make(shape, kind, mode=mode), dtypes=("float32",),
        bytes=8.0 * float(np.prod(shape)), peer=peer, exact=True,
    )  # fmt: skip


CASES = [
    case("no samples", (0, 3, 8)),
    case("no positions", (3, 0, 8), mode="joint"),
    case("no positions, bonus", (3, 0, 8), mode="chain", bonus=True),
    case("one token", (2, 3, 1)),
    case("tail", (3, 5, 37), first_sample=2**40),
    case("several tasks", (9, 7, 1031), seed=-9),
    case("scaled", (3, 5, 100), "good", scale=0.37),
    case("close, scaled", (64, 5, 100), "close", scale=3.0),
    case("equal", (3, 5, 100), "equal"),
    case("filtered", (7, 9, 67), "filtered"),
    case("disjoint", (7, 9, 67), "disjoint"),
    case("one-hot", (7, 9, 67), "one-hot"),
    case("impossible", (7, 9, 67), "equal", impossible=True),
    case("impossible, filtered", (7, 9, 67), "filtered", impossible=True),
    case("joint", (40, 3, 19), "good", mode="joint", first_sample=11),
    case("joint, bad draft", (40, 4, 67), mode="joint"),
    case("joint, filtered", (40, 2, 19), "filtered", mode="joint"),
    case("joint, disjoint", (7, 3, 67), "disjoint", mode="joint"),
    case("joint, impossible", (7, 3, 66), "filtered", mode="joint", impossible=True),
    case("chain", (40, 6, 37), "good", mode="chain", first_sample=3),
    case("chain, bonus", (40, 6, 37), "good", mode="chain", bonus=True),
    case("chain, equal, bonus", (4, 6, 37), "equal", mode="chain", bonus=True),
    case("wide", (2, 2, 20011)),
    timed((2, 256, 4096), "good", "token"),
    timed((2, 256, 4096), "", "token"),
    timed((2, 256, 4096), "good", "joint"),
    timed((8, 16, 16384), "good", "chain"),
]
