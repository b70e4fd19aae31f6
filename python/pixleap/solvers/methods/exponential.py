"""Exponential integrators in lambda: DPM-Solver, DPM-Solver++, their SDE forms, UniPC, SA-Solver.

With x0 predicted and noise strength tau (0: ODE, 1: SDE), q = 1 + tau^2,

    x' = sigma'/sigma exp(-tau^2 h) x
         + q alpha' integral exp(q (lambda - lambda')) x0(lambda) dlambda
         + sigma' sqrt(1 - exp(-2 tau^2 h)) z

and correspondingly for predicted noise. The prediction under the integral is the polynomial through
earlier ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..method import Step, Value, method
from ..schedule import Point, choose
from ..weights import combine, lagrange_integrals


def integrate(
    s: Step,
    x: Value,
    nodes: Sequence[tuple[Value, Point]],
    *,
    sample: bool,
    tau: float = 0.0,
    start: Point | None = None,
    end: Point | None = None,
) -> Value:
    """The deterministic part of the formula above, exactly, for the polynomial through `nodes`."""
    a, b = start or s.now, end or s.next
    values, points = zip(*nodes, strict=True)
    q, h = 1 + tau**2, b.lam - a.lam
    if sample:
        kept = b.sigma / a.sigma * (math.exp(-(tau**2) * h) if tau else 1.0)
        if len(values) == 1 or math.isinf(h):
            w = [b.alpha * -math.expm1(-q * h)] + [0.0] * (len(values) - 1)
        else:
            w = lagrange_integrals(
                [p.lam for p in points],
                a.lam,
                b.lam,
                lambda u: q * b.alpha * np.exp(q * (u - b.lam)),
            )
    else:
        kept = b.alpha / a.alpha
        if len(values) == 1:
            w = [q * (b.sigma - b.alpha * a.ratio)]
        else:
            w = lagrange_integrals(
                [p.lam for p in points], a.lam, b.lam, lambda u: -q * b.alpha * np.exp(-u)
            )
    return x * kept + combine(w, values)


def spread(
    s: Step, tau: float, sample: bool, start: Point | None = None, end: Point | None = None
) -> float:
    """Standard deviation of the noise from one point (`now`) to another (`next`)."""
    a, b = start or s.now, end or s.next
    if tau == 0 or b.sigma == 0:
        return 0.0
    h = b.lam - a.lam
    e = math.expm1(-2 * tau**2 * h) if sample else -math.expm1(2 * tau**2 * h)
    return b.sigma * math.sqrt(max(0.0, -e))


def differences(nodes: Sequence[tuple[Value, Point]], h: float) -> tuple[Value, Value | None]:
    """Divided differences: h f' and, from three nodes, the h^2 f'' / 2 of the DPM-Solver codes."""
    (m0, p0), (m1, p1) = nodes[:2]
    r0 = (p0.lam - p1.lam) / h
    d0 = (m0 - m1) / r0
    if len(nodes) == 2:
        return d0, None
    m2, p2 = nodes[2]
    r1 = (p1.lam - p2.lam) / h
    d1 = (m1 - m2) / r1
    return d0 + (d0 - d1) * (r0 / (r0 + r1)), (d0 - d1) / (r0 + r1)


def with_differences(
    s: Step,
    x: Value,
    first: tuple[Value, Point],
    d1: Value,
    d2: Value | None,
    *,
    sample: bool,
    tau: float,
    midpoint: bool,
) -> Value:
    """From the node `first` to the next point, as the DPM-Solver codes write it: first-order step
    plus phi functions of (1 + tau^2) h times the divided differences."""
    h = s.next.lam - first[1].lam
    x = integrate(s, x, [first], sample=sample, tau=tau, start=first[1])
    if sample:
        q = (1 + tau**2) * h
        scale, grown = s.next.alpha, -math.expm1(-q)
        x = x + d1 * (scale * (grown / 2 if midpoint else 1 - grown / q))
        # diffusers has the wrong sign of 1/2 in its SDE form.
        phi3 = (q - grown) / q**2 + (0.5 if tau else -0.5)
        return x if d2 is None else x - d2 * (scale * phi3)
    scale, grown = s.next.sigma * (1 + tau**2), math.expm1(h)
    x = x - d1 * (scale * (grown / 2 if midpoint else grown / h - 1))
    return x if d2 is None else x - d2 * (scale * ((grown - h) / h**2 - 0.5))


def _multistep(s: Step, m0: Value, x: Value, sample: bool, tau: float, solver_type: str) -> Any:
    choose(solver_type, ("midpoint", "heun"), "dpm_solver", "solver_type")
    nodes = s.nodes(m0) if s.h else [(m0, s.now)]
    if len(nodes) == 1 or (s.consistent and (len(nodes) > 2 or solver_type == "heun")):
        x = integrate(s, x, nodes, sample=sample, tau=tau)
    else:
        d1, d2 = differences(nodes, s.h)
        midpoint = solver_type == "midpoint" and d2 is None
        x = with_differences(s, x, nodes[0], d1, d2, sample=sample, tau=tau, midpoint=midpoint)
    noise = spread(s, tau, sample)
    return x + s.noise() * noise if noise else x


@method(
    "dpmpp",
    prediction="sample",
    order=2,
    history=None,
    source="Lu et al. 2022, arXiv 2211.01095 (DPM-Solver++, multistep); SDE form as in k-diffusion",
    dpmpp_1m={"order": 1},
    dpmpp_2m={"order": 2},
    dpmpp_3m={"order": 3},
    dpmpp_1m_sde={"order": 1, "tau": 1.0},
    dpmpp_2m_sde={"order": 2, "tau": 1.0},
    dpmpp_3m_sde={"order": 3, "tau": 1.0},
)
def dpmpp(
    s: Step, x: Value, *, order: int = 2, tau: float = 0.0, solver_type: str = "midpoint"
) -> Any:
    m0 = yield x, s.now
    return _multistep(s, m0, x, True, tau, solver_type)


@method(
    "dpm_solver",
    prediction="noise",
    order=2,
    history=None,
    source="Lu et al. 2022, arXiv 2206.00927 (DPM-Solver, multistep)",
    dpm_solver_1={"order": 1},
    dpm_solver_2m={"order": 2},
    dpm_solver_3m={"order": 3},
    sde_dpm_solver={"tau": 1.0},
)
def dpm_solver(
    s: Step, x: Value, *, order: int = 2, tau: float = 0.0, solver_type: str = "midpoint"
) -> Any:
    e0 = yield x, s.now
    return _multistep(s, e0, x, False, tau, solver_type)
