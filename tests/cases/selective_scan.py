from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from harness import Case


def peer(
    u: Any, delta: Any, a: Any, b: Any, c: Any, d: Any = None, *, z: Any = None,
    delta_bias: Any = None, delta_softplus: bool = False, state: Any = None,
) -> Any:  # fmt: skip
    """The usual recurrence in torch, for machines without Mamba's CUDA kernel: decays and inputs of
    all steps at once, then step by step."""
    dtype, (u, delta, b, c) = u.dtype, (x.float() for x in (u, delta, b, c))
    delta = delta if delta_bias is None else delta + delta_bias
    delta = F.softplus(delta) if delta_softplus else delta
    decay = torch.exp(delta[..., None] * a)
    inputs = (delta * u)[..., None] * b[:, :, None]
    h = torch.zeros_like(inputs[:, 0]) if state is None else state
    outputs = []
    for t in range(u.shape[1]):
        h = decay[:, t] * h + inputs[:, t]
        outputs.append((h @ c[:, t, :, None])[..., 0])
    y = torch.stack(outputs, 1)
    y = y if d is None else y + d * u
    y = y if z is None else y * F.silu(z.float())
    return y.to(dtype), h


def make(batch: int, length: int, channels: int, states: int, options: str = "") -> Any:
    """options: letters of d, z, b (delta_bias and softplus), s (state)."""

    def build(rng: np.random.Generator) -> Any:
        def normal(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape).astype(np.float32)

        def fixed(x: np.ndarray) -> torch.Tensor:  # float32 whatever the sequences' dtype
            return torch.from_numpy(x.astype(np.float32))

        wide, narrow = (batch, length, channels), (batch, length, states)
        # As Mamba starts: a = -1 .. -N, steps between 0.001 and 0.1.
        a = np.tile(-np.arange(1.0, states + 1), (channels, 1)) * rng.uniform(0.8, 1.2)
        step = np.exp(rng.uniform(np.log(1e-3), np.log(1e-1), channels))
        kwargs: dict[str, Any] = {}
        if "b" in options:
            kwargs["delta_bias"] = fixed(np.log(np.expm1(step)))
            kwargs["delta_softplus"] = True
            delta = normal(*wide)
        else:
            delta = (step * np.exp(0.3 * normal(*wide))).astype(np.float32)
        if "z" in options:
            kwargs["z"] = normal(*wide)
        if "s" in options:
            kwargs["state"] = fixed(normal(batch, channels, states))
        args = [normal(*wide), delta, fixed(a), normal(*narrow), normal(*narrow)]
        if "d" in options:
            args.append(fixed(normal(channels)))
        return tuple(args), kwargs

    return build


def timed(batch: int, length: int, channels: int, states: int) -> Case:
    size = batch * length * channels
    return Case(
        f"({batch}, {length}, {channels}), N = {states}",
        make(batch, length, channels, states, "dzbs"),
        dtypes=("float32", "bfloat16"),
        tolerance=TOLERANCE,
        # An exponential is about 20; a softplus and a silu 60.
        flops=26.0 * size * states + 60.0 * size,
        bytes=4.0 * (4 * size + 2 * batch * length * states + 2 * batch * channels * states),
        peer=peer,
    )


# The state sums rounded terms over the length of its memory, up to 1 / (1 - decay) steps.
TOLERANCE = {"float32": 1e-5}

CASES = [
    Case("one number", make(1, 1, 1, 1)),
    Case("one step", make(2, 1, 24, 16, "dzbs")),
    Case("tail", make(2, 7, 13, 5, "d"), tolerance=TOLERANCE),
    Case("softplus", make(1, 9, 19, 16, "b"), tolerance=TOLERANCE),
    Case("everything", make(3, 11, 37, 16, "dzbs"), tolerance=TOLERANCE),
    Case("many states", make(1, 5, 9, 256, "z"), tolerance=TOLERANCE),
    Case("no states", make(2, 3, 5, 0, "d")),
    Case("no steps", make(2, 0, 5, 3, "s")),
    Case("no batch", make(0, 3, 4, 2, "zs")),
    Case("no channels", make(2, 3, 0, 2)),
    timed(2, 64, 2048, 16),
    timed(2, 256, 1024, 16),
    timed(8, 100, 256, 16),
]
