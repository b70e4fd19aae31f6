from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from harness import Case


def peer(target_mean: torch.Tensor, target_std: torch.Tensor, draft_mean: torch.Tensor,
         draft_std: torch.Tensor, x: torch.Tensor, **key: Any) -> Any:  # fmt: skip
    """Densities, one decision, and the residual by at most 100 tries of the whole batch."""

    def log_density(y: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
        return (-0.5 * ((y - mean) / std).square() - std.log()).sum(-1)

    def log_ratio(y: torch.Tensor) -> torch.Tensor:
        return log_density(y, target_mean, target_std) - log_density(y, draft_mean, draft_std)

    accepted = torch.rand(x.shape[:2]).log() < log_ratio(x)
    out, left = x.clone(), ~accepted
    for _ in range(100):
        if not left.any():
            break
        y = target_mean + target_std * torch.randn_like(x)
        stays = left & (torch.rand(x.shape[:2]) < -torch.expm1(-log_ratio(y)))
        out, left = torch.where(stays[..., None], y, out), left & ~stays
    return out, accepted


def make(shape: tuple[int, int, int], shift: float, ratio: float = 1.0, wide: bool = False,
         kind: str = "", **kwargs: Any) -> Any:  # fmt: skip
    def build(rng: np.random.Generator) -> Any:
        batch, length, channels = shape
        per_channel = (batch, length, 1 if wide else channels)
        q_std = np.exp(0.3 * rng.standard_normal(per_channel))
        p_std = ratio * q_std
        if kind == "mixed":
            p_std = q_std * np.exp(0.2 * rng.standard_normal(per_channel))
        q_mean = rng.standard_normal(shape)
        p_mean = q_mean + shift / math.sqrt(max(channels, 1)) * rng.standard_normal(shape)
        if kind == "zeros":  # of the draft, of the target, of both at one mean and at two
            q_std[0] = p_std[1] = 0
            q_std[2:4] = p_std[2:4] = 0
            q_mean[2] = p_mean[2]
        if kind == "some zeros":
            q_std[..., ::2] = p_std[..., ::2] = 0
            p_mean[..., ::2] = q_mean[..., ::2]
        arrays = [a.astype(np.float32) for a in (p_mean, p_std, q_mean, q_std)]
        x = (q_mean + q_std * rng.standard_normal(shape)).astype(np.float32)
        if kind in ("zeros", "some zeros"):
            x = np.where(arrays[3] == 0, arrays[2], x)
        return (*arrays, x), {"seed": 2**40 + 5, "offset": 3, **kwargs}

    return build


def case(name: str, *args: Any, **kwargs: Any) -> Case:
    return Case(name, make(*args, **kwargs), dtypes=("float32",))


def timed(shape: tuple[int, int, int], shift: float, ratio: float) -> Case:
    size = float(np.prod(shape))
    return Case(
        f"{shape} shift {shift} ratio {ratio}", make(shape, shift, ratio), dtypes=("float32",),
        flops=12.0 * size, bytes=24.0 * size, peer=peer,
    )  # fmt: skip


CASES = [
    case("no samples", (0, 3, 4), 1.0),
    case("no positions", (3, 0, 4), 1.0, wide=True),
    case("no channels", (2, 3, 0), 1.0),
    case("one channel", (5, 40, 1), 1.0),
    case("equal deviations", (5, 40, 16), 1.0, first_sample=2**40),
    case("equal, far apart", (3, 9, 5), 30.0),
    case("same", (3, 9, 5), 0.0),
    case("wider target", (5, 40, 7), 0.5, 1.5),
    case("narrower target", (5, 40, 7), 0.5, 0.6),
    case("mixed deviations", (5, 40, 16), 0.3, kind="mixed"),
    case("mixed, one per position", (5, 40, 16), 0.3, kind="mixed", wide=True),
    case("close", (9, 200, 4), 0.01, 1.002, seed=-9),
    case("close, narrower", (9, 200, 4), 0.01, 0.998),
    case("no deviation", (6, 8, 3), 1.0, kind="zeros"),
    case("channels without deviation", (6, 8, 5), 1.0, kind="some zeros"),
    case("channels without deviation, wider", (6, 8, 5), 0.5, 1.3, kind="some zeros"),
    timed((8, 64, 16), 0.5, 1.0),
    timed((8, 64, 16), 0.5, 1.1),
    timed((16, 256, 16), 0.2, 1.02),
]
