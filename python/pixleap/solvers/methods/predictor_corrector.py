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


def _unipc(
    s: Step, x: Value, m0: Value, solver_type: str, skip: Sequence[int] | None, sample: bool
) -> Any:
    choose(solver_type, ("bh1", "bh2"), "unipc", "solver_type")
    if s.state and skip is not None and s.index - 1 not in skip and s.previous.alpha:
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
    s: Step,
    x: Value,
    *,
    order: int = 2,
    solver_type: str = "bh2",
    corrector: bool = True,
    disable_corrector: Sequence[int] = (),
) -> Any:
    """disable_corrector: steps whose result is not corrected."""
    m0 = yield x, s.now
    return _unipc(s, x, m0, solver_type, disable_corrector if corrector else None, True)


@method("unipc_noise", prediction="noise", order=2, history=3, source=_UNIPC)
def unipc_noise(
    s: Step,
    x: Value,
    *,
    order: int = 2,
    solver_type: str = "bh2",
    corrector: bool = True,
    disable_corrector: Sequence[int] = (),
) -> Any:
    e0 = yield x, s.now
    return _unipc(s, x, e0, solver_type, disable_corrector if corrector else None, False)


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
    taus: Sequence[float] = (),
    corrector_orders: Sequence[int] = (),
) -> Any:
    """taus, corrector_orders: of every step, in the place of the rules."""

    def strength(index: int) -> float:
        if taus:
            return taus[index]
        return tau if tau_start <= s.points[index].time <= tau_end else 0.0

    m0 = yield x, s.now
    if s.state and corrector_order and s.previous.alpha:
        t, a, b = strength(s.index - 1), s.previous, s.now
        count = min(corrector_order, s.orders[s.index - 1] + 1)
        nodes = [(m0, b), *s.past][: corrector_orders[s.index - 1] if corrector_orders else count]
        x = integrate(s, s.state["x"], nodes, sample=True, tau=t, start=a, end=b)
        if len(nodes) == 2 and not s.consistent:
            x = x + (m0 - nodes[1][0]) * _diffusers_second_order(t, a, b)
        if "noise" in s.state:
            x = x + s.state["noise"] * spread(s, t, True, s.previous, s.now)
    t = strength(s.index)
    nodes = s.nodes(m0)
    ahead = integrate(s, x, nodes, sample=True, tau=t)
    if len(nodes) == 2 and not s.consistent:
        factor = _diffusers_second_order(t, s.now, s.next) * s.h / (s.now.lam - s.previous.lam)
        ahead = ahead + (m0 - nodes[1][0]) * factor
    state = {"x": x}
    deviation = spread(s, t, True)
    if deviation:
        state["noise"] = s.noise()
        ahead = ahead + state["noise"] * deviation
    return ahead, state


def _diffusers_second_order(tau: float, a: Point, b: Point) -> float:
    """What diffusers adds, for two nodes, to the weight of their difference: it replaces the exact
    integral of the linear term by h^2 / 2, as UniPC's B(h) does."""
    h, q = b.lam - a.lam, 1 + tau**2
    if h == 0:
        return 0.0
    return q * b.alpha * (h / 2 - (h * q + math.expm1(-q * h)) / (q**2 * h))
