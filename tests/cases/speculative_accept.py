from __future__ import annotations

from typing import Any

import numpy as np
import torch

from harness import Case


def draw(weights: torch.Tensor) -> torch.Tensor:
    """A token per row (n, V): on the CPU many times faster than torch.multinomial."""
    sums = weights.cumsum(-1)
    u = torch.rand(len(weights), 1) * sums[:, -1:]
    return torch.searchsorted(sums, u, right=True).clamp_(max=weights.shape[-1] - 1).squeeze(-1)


def replace(target: torch.Tensor, draft: torch.Tensor, tokens: torch.Tensor,
            accepted: torch.Tensor) -> torch.Tensor:  # fmt: skip
    """Rejected tokens by draws from the residual: clamp, cumsum, searchsorted."""
    result, rejected = tokens.clone(), ~accepted
    p, q = target[rejected], draft[rejected]
    result[rejected] = draw((p / p.sum(-1, True) - q / q.sum(-1, True)).clamp_(min=0))
    return result


def peer(target: torch.Tensor, draft: torch.Tensor, tokens: torch.Tensor, mode: str = "token",
         **key: Any) -> Any:  # fmt: skip
    """Sum, gather, divide, compare; what is rejected is drawn anew, and only that. No checks. Mode
    joint: at most ten tries for the whole batch."""
    batch, length, size = draft.shape
    rows = target[:, :length]
    index = tokens[..., None]
    scale = draft.sum(-1) / rows.sum(-1)
    ratio = (rows.gather(-1, index) / draft.gather(-1, index)).squeeze(-1) * scale
    if mode == "token":
        accepted = torch.rand(batch, length) < ratio
        return replace(rows, draft, tokens, accepted), accepted
    if mode == "chain":
        accepted = (torch.rand(batch, length) < ratio).cumprod(-1).bool()
        return replace(rows, draft, tokens, accepted), accepted
    accepted = torch.rand(batch) < ratio.log().sum(-1).exp()
    result, left = tokens.clone(), (~accepted).nonzero().squeeze(-1)
    for _ in range(10):
        if not len(left):
            break
        p, q = rows[left], draft[left]
        y = draw(p.reshape(-1, size)).view(len(left), length)
        excess = (p.gather(-1, y[..., None]) / q.gather(-1, y[..., None])).squeeze(-1)
        excess = (excess * scale[left]).log().sum(-1)
        stays = torch.rand(len(left)) < -torch.expm1(-excess)
        result[left[stays]] = y[stays]
        left = left[~stays]
    return result, accepted


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
    case("seeds", (3, 5, 37), seeds=np.array([7, 7, -(2**40)]), first_sample=2),
    case("joint, seeds", (3, 3, 19), mode="joint", seeds=np.array([[7, 4], [7, 2**33], [-1, 0]])),
    case("chain, seeds", (3, 4, 19), mode="chain", seeds=np.array([[7, 4], [7, 9], [-1, 0]])),
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
    timed((16, 32, 4096), "good", "joint"),
    timed((8, 16, 16384), "close", "chain"),
]
