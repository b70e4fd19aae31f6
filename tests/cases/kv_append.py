from __future__ import annotations

from typing import Any

import numpy as np
import torch

from harness import Case


def peer(
    qkv: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    position: int,
    q_scale: torch.Tensor | None = None,
) -> Any:
    """As in VAR's official loop: unbind, normalise, concatenate with the keys and values so far."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    if q_scale is not None:
        q = torch.nn.functional.normalize(q, dim=-1).mul(q_scale[:, None, None])
        k = torch.nn.functional.normalize(k, dim=-1)
    k = torch.cat((k_cache[:, :, :position], k), dim=2)
    v = torch.cat((v_cache[:, :, :position], v), dim=2)
    return q, k, v


def make(
    batch: int,
    length: int,
    heads: int,
    dim: int,
    capacity: int,
    position: int,
    normalised: bool = True,
) -> Any:
    def build(rng: np.random.Generator) -> Any:
        qkv = rng.standard_normal((batch, length, 3, heads, dim)).astype(np.float32)
        cache = (batch, heads, capacity, dim)
        caches = [rng.standard_normal(cache).astype(np.float32) for _ in range(2)]
        scale = rng.uniform(1, 20, heads).astype(np.float32)
        return (qkv, *caches, position), {"q_scale": scale} if normalised else {}

    return build


def case(name: str, *sizes: int, **kwargs: Any) -> Case:
    return Case(name, make(*sizes, **kwargs), has_out=False)  # more than `out` is written


def timed(name: str, batch: int, length: int, heads: int, dim: int, end: int, **kw: Any) -> Case:
    size = batch * length * heads * dim
    return Case(
        f"{name} L={length} at {end - length}",
        make(batch, length, heads, dim, end, end - length, **kw),
        flops=10.0 * size,
        bytes=4.0 * 6 * size,
        peer=peer,
        has_out=False,
    )


CASES = [
    case("one", 1, 1, 1, 1, 1, 0),
    case("plain copy", 2, 3, 2, 16, 9, 4, normalised=False),
    case("to the end", 2, 5, 3, 16, 9, 4),
    case("tail 5", 2, 3, 2, 5, 7, 1),
    case("tail 40", 1, 7, 2, 40, 9, 2),
    case("tail 72", 2, 4, 1, 72, 4, 0),
    case("empty batch", 0, 3, 2, 8, 5, 1),
    case("no tokens", 2, 0, 2, 8, 5, 5),
    timed("VAR-d16", 2, 1, 16, 64, 1),
    timed("VAR-d16", 2, 64, 16, 64, 155),
    timed("VAR-d16", 2, 256, 16, 64, 680),
    timed("digits", 200, 49, 2, 32, 79),
    timed("TarFlow", 100, 1, 2, 32, 49, normalised=False),
]
