"""Momentum around solvers: they diverge later at few steps, at the price of order.

Wizadwongsa, Chinchuthakun, Khungurn, Raj and Suwajanakorn 2023, "Diffusion sampling with momentum
for mitigating divergence artifacts", arXiv 2307.11118; repository sWizad/momentum-diffusion.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from ..method import METHODS, Step, Value, find_method, method
from ..weights import combine

_SOURCE = "Wizadwongsa et al. 2023, arXiv 2307.11118"

_MIXED = (  # constant steps, latest first: (a + b beta) / divisor / beta
    (1, ((0, 1),)),
    (2, ((2, 1), (-2, 1))),
    (12, ((18, 5), (-24, 8), (6, -1))),
    (24, ((46, 9), (-78, 19), (42, -5), (-10, 1))),
)


def _check(momentum: float) -> None:
    if not 0 < momentum <= 1:
        raise ValueError(
            "solver_plan: option 'momentum' expected in (0, 1], where 1 is the solver without "
            f"momentum, got {momentum}"
        )


def _direction(s: Step, x: Value, ahead: Value, sample: bool) -> Value:
    """The constant prediction (of the sample, or derivative) that leads from x to `ahead`."""
    a, b = s.now, s.next
    if sample:
        return (ahead - x * (b.sigma / a.sigma)) / (-b.alpha * math.expm1(-s.h))
    stretch = s.scale(b) / s.scale(a) if s.scale(a) else math.inf
    return (ahead - x * stretch) / (s.scale(b) * (s.u(b) - s.u(a)))


def _along(s: Step, x: Value, direction: Value, sample: bool) -> Value:
    a, b = s.now, s.next
    if sample:
        return x * (b.sigma / a.sigma) - direction * (b.alpha * math.expm1(-s.h))
    return s.move(x, direction)


def _no_noise(_: int) -> Value:
    raise ValueError("solver_plan: momentum is for deterministic solvers, this one draws noise")


def with_momentum(base: str, name: str | None = None, *, declared: int = 1, **options: Any) -> None:
    """Registers `base` with Polyak's heavy-ball momentum (HB), as `base`_hb.

    The step's mean direction d, in the space of the base's prediction, is averaged over the steps,
    v' = (1 - momentum) v + momentum d, and the sample moves along v'. Options of the new method are
    those of `base` (defaults changed by `options`) and: momentum, in (0, 1], 1 for none; nesterov,
    which moves along (1 - momentum) v' + momentum d. Of order 1 for any momentum below 1 (section
    4 there), whatever the base. For UniPC the average is over its predictor; the corrector makes
    good one order (`declared` 2).
    """
    found, full = find_method(base, options)
    sample = found.prediction == "sample"

    def heavy_ball(s: Step, x: Value, *, momentum: float, nesterov: bool, **options: Any) -> Any:
        _check(momentum)
        inner = s.replaced(options=options, _draw=_no_noise)
        result = yield from found.function(inner, x, **options)
        ahead, state = result if isinstance(result, tuple) else (result, {})
        x = state.get("x", x)
        d = v = _direction(s, x, ahead, sample)
        if "velocity" in s.state:
            v = s.state["velocity"] * (1 - momentum) + d * momentum
        used = v * (1 - momentum) + d * momentum if nesterov else v
        return _along(s, x, used, sample), {**state, "velocity": v}

    name = name or f"{base}_hb"
    METHODS[name] = dataclasses.replace(
        found,
        name=name,
        function=heavy_ball,
        order=declared,
        source=f"{_SOURCE}, algorithm 1 (HB), around: {found.source}",
        options={**full, "momentum": 0.8, "nesterov": False},
    )


def _responses(s: Step, count: int, momentum: float) -> np.ndarray:
    """(velocity, latest first; power): the average of t^power, t = 0 here and 1 at the next point.

    What the averages v are to the derivatives is a linear filter; what it makes of polynomials says
    which combination of averages integrates polynomials exactly.
    """
    start, end = s.u(s.now), s.u(s.next)
    t = (np.array([s.u(p) for p in s.points[: s.index + 1]]) - start) / (end - start)
    powers = t[:, None] ** np.arange(count)
    averages = [powers[0]]
    for row in powers[1:]:
        averages.append(averages[-1] * (1 - momentum) + row * momentum)
    return np.array(averages[::-1][:count])


@method(
    "ghvb",
    prediction="derivative",
    order=2,
    history=None,
    source=f"{_SOURCE}, algorithm 2 (GHVB); weights for variable steps as Adams-Bashforth's",
    ghvb_1={"order": 1},
    ghvb_2={"order": 2},
    ghvb_3={"order": 3},
    ghvb_4={"order": 4},
)
def ghvb(s: Step, x: Value, *, order: int = 2, momentum: float = 0.8) -> Any:
    """The paper's GHVB(k + beta) is order = k + 1, momentum = beta. compat="diffusers" has its
    weights, for constant steps."""
    _check(momentum)
    if not 1 <= order <= 4:
        raise ValueError(f"ghvb: option 'order' expected 1 to 4, got {order}")
    d = yield x, s.now
    old = list(s.state.values())
    v = old[0] * (1 - momentum) + d * momentum if s.index and old else d
    averages = [v, *old][: s.order]
    count = len(averages)
    if s.consistent:
        powers = _responses(s, count, momentum).T
        w = np.linalg.solve(powers, 1 / (1 + np.arange(count))).tolist()
    else:
        divisor, rows = _MIXED[count - 1]
        w = [(a + b * momentum) / (divisor * momentum) for a, b in rows]
    kept = [v, *old][: max(order - 1, 1)]
    return s.move(x, combine(w, averages)), {f"average{j}": k for j, k in enumerate(kept)}
