from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cases.speculative_accept import make as make_exact
from cases.speculative_accept import replace
from harness import Case


def peer(target: torch.Tensor, draft: torch.Tensor, tokens: torch.Tensor, rule: str,
         epsilon: float = 0.09, delta: float = 0.3, neighbours: torch.Tensor | None = None,
         tolerance: float = 0.1, **key: Any) -> Any:  # fmt: skip
    """The rules in torch; what is rejected is drawn anew, and only that."""
    index = tokens[..., None]
    p = target.gather(-1, index).squeeze(-1) / target.sum(-1)
    q = draft.gather(-1, index).squeeze(-1) / draft.sum(-1)
    u = torch.rand(tokens.shape)
    if rule == "typical":
        entropy = -(target * torch.log(target + 1e-5)).sum(-1)
        accepted = p > torch.minimum(torch.full_like(p, epsilon), delta * torch.exp(-entropy))
    elif rule == "neighbourhood":
        assert neighbours is not None
        sums = target.gather(-1, neighbours[tokens]).cumsum(-1)
        accepted = u * q < p + sums.masked_fill(sums > delta, 0).amax(-1)
    else:
        accepted = u < p / q + tolerance
    return replace(target, draft, tokens, accepted), accepted


def make(shape: tuple[int, int, int], rule: str, kind: str = "", nearest: int = 0,
         itself: bool = False, **kwargs: Any) -> Any:  # fmt: skip
    exact = make_exact(shape, kind, rule=rule, **kwargs)

    def build(rng: np.random.Generator) -> Any:
        args, keys = exact(rng)
        if rule == "neighbourhood":
            size = shape[-1]
            step = np.array([(i + 2) // 2 * (-1) ** i for i in range(nearest)], np.int64)
            near = (np.arange(size)[:, None] + step) % size
            if itself:
                near = np.concatenate([np.arange(size)[:, None], near], axis=1)
            keys["neighbours"] = near
        return args, keys

    return build


def case(name: str, *args: Any, **kwargs: Any) -> Case:
    return Case(name, make(*args, **kwargs), dtypes=("float32",), exact=True)


def timed(shape: tuple[int, int, int], rule: str, **kwargs: Any) -> Case:
    return Case(
        f"{shape} {rule}", make(shape, rule, "", **kwargs), dtypes=("float32",),
        bytes=8.0 * float(np.prod(shape)), peer=peer, exact=True,
    )  # fmt: skip


CASES = [
    case("no samples", (0, 3, 8), "typical"),
    case("no positions", (3, 0, 8), "tolerance", mode="chain"),
    case("typical", (9, 7, 67), "typical", first_sample=2**40),
    case("typical, filtered", (9, 7, 67), "typical", "filtered"),
    case("typical, delta decides", (9, 7, 67), "typical", epsilon=0.9, delta=0.5),
    case("typical, epsilon decides", (9, 7, 67), "typical", epsilon=0.02, delta=5.0),
    case("typical, scaled chain", (9, 7, 67), "typical", scale=3.0, mode="chain", bonus=True),
    case("neighbourhood", (9, 7, 67), "neighbourhood", nearest=9),
    case("neighbourhood, itself", (9, 7, 67), "neighbourhood", nearest=9, itself=True, delta=0.05),
    case("neighbourhood, none", (9, 7, 67), "neighbourhood", nearest=0),
    case("neighbourhood, chain", (9, 7, 67), "neighbourhood", nearest=30, mode="chain", scale=0.4),
    case("tolerance", (9, 7, 67), "tolerance"),
    case("tolerance, disjoint", (9, 7, 67), "tolerance", "disjoint", tolerance=0.5),
    case("tolerance, impossible", (9, 7, 67), "tolerance", "filtered", impossible=True),
    case("tolerance, chain", (9, 7, 67), "tolerance", mode="chain", tolerance=0.2, bonus=True),
    timed((2, 256, 4096), "typical"),
    timed((2, 256, 4096), "neighbourhood", nearest=1000, delta=0.05),
    timed((2, 256, 4096), "tolerance"),
]
