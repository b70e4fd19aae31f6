"""Multistep methods that correct a sample with the model's answer to it, without a further one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..method import Step, Value, method
from ..schedule import Point, choose
from .exponential import integrate, spread

Nodes = Sequence[tuple[Value, Point]]


def _half_difference(
    s: Step, x: Value, m: Value, nodes: Nodes, start: Point, end: Point, variant: str, sample: bool
) -> Value:
    """First-order step plus B(h) / 2 times the difference quotient of `m` and the latest node."""
    h = end.lam - start.lam
    signed = -h if sample else h
    weight = signed if variant == "bh1" else math.expm1(signed)
    scale = end.alpha if sample else end.sigma
    (m0, p0), other = nodes[0], m
    x = integrate(s, x, nodes[:1], sample=sample, start=start, end=end)
    return x - (other[0] - m0) * (0.5 * scale * weight * h / (other[1].lam - p0.lam))


def _unipc(s: Step, x: Value, m0: Value, solver_type: str, corrector: bool, sample: bool) -> Any:
    choose(solver_type, ("bh1", "bh2"), "unipc", "solver_type")
    if s.state and corrector and s.previous.alpha:
        start, last = s.previous, s.state["x"]
        nodes = s.past[: s.orders[s.index - 1]]
        if len(nodes) == 1:
            x = _half_difference(s, last, (m0, s.now), nodes, start, s.now, solver_type, sample)
        else:
            x = integrate(s, last, [(m0, s.now), *nodes], sample=sample, start=start, end=s.now)
    nodes = s.nodes(m0)
    if len(nodes) == 2:
        ahead = _half_difference(s, x, nodes[1], nodes, s.now, s.next, solver_type, sample)
    else:
        ahead = integrate(s, x, nodes, sample=sample)
    return ahead, {"x": x}


_UNIPC = "Zhao et al. 2023, arXiv 2302.04867 (UniPC, B(h) form)"


@method(
    "unipc",
    prediction="sample",
    order=2,
    history=3,
    source=_UNIPC,
    unipc_1={"order": 1},
    unipc_2={"order": 2},
    unipc_3={"order": 3},
)
def unipc(
    s: Step, x: Value, *, order: int = 2, solver_type: str = "bh2", corrector: bool = True
) -> Any:
    m0 = yield x, s.now
    return _unipc(s, x, m0, solver_type, corrector, True)


@method("unipc_noise", prediction="noise", order=2, history=3, source=_UNIPC)
def unipc_noise(
    s: Step, x: Value, *, order: int = 2, solver_type: str = "bh2", corrector: bool = True
) -> Any:
    e0 = yield x, s.now
    return _unipc(s, x, e0, solver_type, corrector, False)


@method(
    "sa_solver",
    prediction="sample",
    order=2,
    history=3,
    source="Xue et al. 2023, arXiv 2309.05019 (SA-Solver): stochastic Adams",
)
def sa_solver(
    s: Step,
    x: Value,
    *,
    order: int = 2,
    corrector_order: int = 2,
    tau: float = 1.0,
    tau_start: float = -math.inf,
    tau_end: float = math.inf,
) -> Any:
    def strength(point: Point) -> float:
        return tau if tau_start <= point.time <= tau_end else 0.0

    m0 = yield x, s.now
    if s.state and corrector_order and s.previous.alpha:
        nodes = [(m0, s.now), *s.past][: min(corrector_order, s.orders[s.index - 1] + 1)]
        t = strength(s.previous)
        x = integrate(s, s.state["x"], nodes, sample=True, tau=t, start=s.previous, end=s.now)
        if "noise" in s.state:
            x = x + s.state["noise"] * _spread_before(s, t)
    t = strength(s.now)
    ahead = integrate(s, x, s.nodes(m0), sample=True, tau=t)
    state = {"x": x}
    deviation = spread(s, t, True)
    if deviation:
        state["noise"] = s.noise()
        ahead = ahead + state["noise"] * deviation
    return ahead, state


def _spread_before(s: Step, tau: float) -> float:
    h = s.now.lam - s.previous.lam
    return s.now.sigma * math.sqrt(-math.expm1(-2 * tau**2 * h))
