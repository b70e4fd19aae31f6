"""Adams-Bashforth methods: the derivative's history as a polynomial."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..method import Step, Value, method
from ..schedule import choose
from ..weights import combine, lagrange_integrals, quadrature

_AB = (  # constant steps; latest first
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


@method(
    "lms",
    prediction="derivative",
    order=4,
    history=None,
    source="Adams-Bashforth with variable steps in sigma; k-diffusion sample_lms",
    ab4={"order": 4},
)
def lms(s: Step, x: Value, *, order: int = 4) -> Any:
    d0 = yield x, s.now
    values, points = zip(*s.nodes(d0), strict=True)
    a, b = s.u(s.now), s.u(s.next)
    w = lagrange_integrals([s.u(p) for p in points], a, b)
    return x * (s.scale(s.next) / s.scale(s.now)) + combine(w, values) * s.scale(s.next)


@method(
    "ipndm",
    prediction="derivative",
    order=4,
    history=None,
    source="Zhang and Chen 2023; Liu et al. 2022 (PNDM): constant-step Adams-Bashforth weights",
)
def ipndm(s: Step, x: Value, *, order: int = 4) -> Any:
    d0 = yield x, s.now
    values = [value for value, _ in s.nodes(d0)]
    return s.move(x, combine(_AB[len(values) - 1], values))


@method(
    "deis",
    prediction="noise",
    order=3,
    history=None,
    source="Zhang and Chen 2023, arXiv 2204.13902: tAB and rhoAB; logrho as in diffusers",
    deis_tab={"variable": "time"},
    deis_rhoab={"variable": "rho"},
)
def deis(s: Step, x: Value, *, order: int = 3, variable: str = "logrho") -> Any:
    choose(variable, ("time", "rho", "logrho"), "deis", "variable")
    e0 = yield x, s.now
    values, points = zip(*s.nodes(e0), strict=True)
    if len(values) == 1:
        return s.move(x, e0)
    a, b = s.now.ratio, s.next.ratio
    if variable == "rho":
        w = lagrange_integrals([p.ratio for p in points], a, b)
    elif variable == "logrho":
        w = lagrange_integrals([-p.lam for p in points], -s.now.lam, -s.next.lam, np.exp)
    else:
        w = _time_integrals(s, [p.time for p in points])
    return x * (s.next.alpha / s.now.alpha) + combine(w, values) * s.next.alpha


def _time_integrals(s: Step, times: list[float]) -> list[float]:
    """Over log rho as well: time as a function of it is smooth between the schedule's points."""
    rho, w = _panels(s)
    t = np.array([s.schedule.at_ratio(float(r)).time for r in rho])
    return quadrature(times, t, w)


def _panels(s: Step) -> tuple[np.ndarray, np.ndarray]:
    """Ratios and weights of an integral over rho in log rho, a panel per trained time."""
    count = max(1, math.ceil(abs(s.now.time - s.next.time)))
    edges = np.linspace(-s.now.lam, -s.next.lam, min(count, 256) + 1)
    nodes, weights = np.polynomial.legendre.leggauss(4)
    half = np.diff(edges)[:, None] / 2
    rho = np.exp((edges[:-1, None] + half) + half * nodes)
    return rho.ravel(), (half * weights * rho).ravel()
