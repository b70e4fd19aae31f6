from __future__ import annotations

from typing import Any

import numpy as np
import torch

from harness import Case

Shape = tuple[int, int, int, int]


def make(shape: Shape, parts: int, hidden: float = 0.0, spread: float = 3.0, **kwargs: Any) -> Any:
    """`hidden`: share of rows, in each part, that saw no key. Their outputs are NaN, which must
    not be read."""

    def build(rng: np.random.Generator) -> Any:
        outs, lses = [], []
        for _ in range(parts):
            out = rng.standard_normal(shape).astype(np.float32)
            lse = (spread * rng.standard_normal(shape[:3])).astype(np.float32)
            none = rng.random(shape[:3]) < hidden
            lse[none], out[none] = -np.inf, np.nan
            outs.append(out)
            lses.append(torch.from_numpy(lse))  # float32 whatever the parts are
        return (outs, lses), kwargs

    return build


def peer(outs: list[torch.Tensor], lses: list[torch.Tensor], return_lse: bool = False) -> Any:
    stacked = torch.stack(lses)
    lse = torch.logsumexp(stacked, 0)
    weights = torch.exp(stacked - lse)[..., None]
    out = sum(w * x for w, x in zip(weights, outs, strict=True))
    assert isinstance(out, torch.Tensor)
    out = out.to(outs[0].dtype)
    return (out, lse) if return_lse else out


def timed(name: str, shape: Shape, parts: int) -> Case:
    return Case(
        f"{name} {shape}, {parts} parts",
        make(shape, parts, return_lse=True),
        bytes=4.0 * np.prod(shape) * (parts + 1),
        peer=peer,
    )


CASES = [
    Case("one part", make((1, 2, 3, 8), 1, return_lse=True)),
    Case("two parts", make((2, 3, 37, 24), 2)),
    Case("no rows", make((2, 0, 3, 8), 2, return_lse=True)),
    Case("no numbers", make((2, 1, 3, 0), 2, return_lse=True)),
    Case("tail 5", make((1, 3, 70, 5), 3, return_lse=True)),
    Case("16 parts, tail 41", make((2, 1, 33, 41), 16, return_lse=True)),
    Case("rows that saw no key", make((2, 2, 65, 20), 2, hidden=0.5, return_lse=True)),
    Case("one part that saw none", make((1, 1, 40, 9), 1, hidden=0.5, return_lse=True)),
    Case("far apart", make((2, 2, 9, 64), 3, spread=200.0, return_lse=True)),
    timed("shared prefix", (8, 16, 1, 64), 2),
    timed("shared prefix", (2, 16, 256, 64), 2),
    timed("chunks of keys", (2, 16, 256, 64), 8),
    timed("window and global", (1, 24, 4096, 128), 2),
]
