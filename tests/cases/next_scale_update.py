from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from harness import Case


def peer(
    tokens: torch.Tensor,
    codebook: torch.Tensor,
    phi_weight: torch.Tensor,
    phi_bias: torch.Tensor,
    f_hat: torch.Tensor,
    next_size: int,
    phi_ratio: float = 0.5,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sequence of VAR's quantiser."""
    batch, channels, height, _ = f_hat.shape
    n = round(tokens.shape[1] ** 0.5)
    h = F.embedding(tokens, codebook).transpose(1, 2).reshape(batch, channels, n, n)
    if n != height:
        h = F.interpolate(h, size=(height, height), mode="bicubic")
    h = h.mul(1 - phi_ratio) + F.conv2d(h, phi_weight, phi_bias, padding=1).mul_(phi_ratio)
    f_hat = f_hat + h
    if next_size == 0:
        return f_hat, f_hat.new_empty(batch, 0, channels)
    down = F.interpolate(f_hat, size=(next_size, next_size), mode="area")
    return f_hat, down.view(batch, channels, -1).transpose(1, 2)


def make(
    batch: int, channels: int, height: int, n: int, m: int, vocabulary: int = 256, **kwargs: Any
) -> Any:
    def build(rng: np.random.Generator) -> Any:
        def normal(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape).astype(np.float32)

        tokens = rng.integers(0, vocabulary, (batch, n * n))
        weight = normal(channels, channels, 3, 3) / np.float32(3 * max(channels, 1) ** 0.5)
        state = normal(batch, channels, height, height)
        return (tokens, normal(vocabulary, channels), weight, normal(channels), state, m), kwargs

    return build


def case(name: str, *args: int, **kwargs: Any) -> Case:
    return Case(name, make(*args, **kwargs), dtypes=("float32",))


def timed(batch: int, channels: int, height: int, n: int, m: int, vocabulary: int) -> Case:
    pixels = batch * channels * height * height
    return Case(
        f"B={batch} C={channels} H={height} {n} to {m}",
        make(batch, channels, height, n, m, vocabulary),
        dtypes=("float32",),
        # Channel mixing of the tokens; state read and written, tokens' rows, next input.
        flops=2.0 * batch * n * n * 9 * channels * channels,
        bytes=4.0 * (2 * pixels + batch * channels * (n * n + m * m)),
        peer=peer,
    )


CASES = [
    case("empty", 0, 4, 5, 2, 3),
    case("no channels", 2, 0, 5, 2, 3),
    case("one pixel", 2, 3, 1, 1, 1),
    case("tails", 3, 5, 7, 3, 4),
    case("last scale", 2, 19, 6, 6, 0),
    case("phi only", 2, 9, 5, 2, 5, phi_ratio=1.0),
    case("no phi", 2, 9, 5, 4, 1, phi_ratio=0.0),
    case("odd sizes", 1, 33, 11, 7, 9, phi_ratio=0.3),
    *(timed(100, 16, 7, n, m, 256) for n, m in ((1, 2), (2, 3), (3, 4), (4, 7))),
    timed(100, 8, 7, 4, 7, 256),
    timed(100, 16, 7, 7, 0, 256),
    *(timed(2, 32, 16, n, m, 4096) for n, m in ((1, 2), (4, 5), (8, 10), (13, 16), (16, 0))),
    timed(1, 32, 16, 13, 16, 4096),
]
