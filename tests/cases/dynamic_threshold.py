from __future__ import annotations

from typing import Any

import numpy as np
import torch

from harness import FLOATS, Case


def peer(
    x: torch.Tensor, ratio: float = 0.995, max_value: float = 1.0, min_value: float = 1.0
) -> torch.Tensor:
    """As diffusers' schedulers do it."""
    flat = x.float().flatten(1)
    s = torch.quantile(flat.abs(), ratio, dim=1)
    s = torch.clamp(s, min=min_value, max=max_value).unsqueeze(1)
    return (torch.clamp(flat, -s, s) / s).reshape(x.shape).to(x.dtype)


def make(shape: tuple[int, ...], kind: str = "normal", **kwargs: Any) -> Any:
    def build(rng: np.random.Generator) -> Any:
        x = (2 * rng.standard_normal(shape)).astype(np.float32)
        if kind == "ties":  # more candidates than there is room for
            x = np.round(x)
        elif kind == "lumps":  # elements of one sample in order: places say much about values
            x = np.sort(x.reshape(len(x), -1), axis=1).reshape(shape)
        elif kind == "equal":
            x[:] = -1.5
        elif kind == "zeros":
            x[:] = 0
        elif kind == "nan":
            x[1].flat[-1] = np.nan
        elif kind == "infinity":
            x[0].flat[:40] = np.inf
            x[1].flat[3] = -np.inf
        elif kind == "spike":  # all but a few are one value, the quantile among the few
            x[:] = 0.25
            x.reshape(len(x), -1)[:, ::150] = 3.0 + np.arange(x[0].size)[::150] / x[0].size
        return (x,), {"max_value": 6.0, **kwargs}

    return build


def timed(shape: tuple[int, ...], **kwargs: Any) -> Case:
    size = int(np.prod(shape))
    return Case(str(shape), make(shape, **kwargs), bytes=12.0 * size, peer=peer)


KINDS = ("ties", "lumps", "equal", "zeros", "nan", "infinity", "spike")
CASES = [
    Case("one number", make((1, 1))),
    Case("one axis", make((5,), min_value=0.1)),
    Case("no samples", make((0, 3))),
    Case("tail", make((3, 5, 7))),
    Case("the least", make((3, 5, 700), ratio=0.0, min_value=1e-4)),
    Case("the largest", make((3, 5, 1700), ratio=1.0)),
    Case("the median", make((2, 3, 3001), ratio=0.5, min_value=0.1)),
    Case("low", make((2, 3, 3001), ratio=0.03, min_value=0.01)),
    Case("limited", make((2, 3, 31), max_value=1.5)),
    Case("with scale", make((3, 4, 1500), return_scale=True), has_out=False),
    Case("chunks", make((1, 70001), ratio=0.99)),
    Case("whole chunks", make((5, 2, 32768), ratio=0.9)),
    *(Case(k, make((2, 3, 11113), k)) for k in KINDS),
    *(Case(f"{k}, median", make((2, 3, 11113), k, ratio=0.5, min_value=1e-3)) for k in KINDS),
    Case("many small", make((301, 9), ratio=0.7, min_value=0.5), dtypes=FLOATS),
    timed((1, 4, 64, 64)),
    timed((4, 4, 128, 128)),
    timed((8, 3, 256, 256)),
]
