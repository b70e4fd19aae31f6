"""Methods with several model evaluations per step."""

from __future__ import annotations

import math
from typing import Any

from ..method import Step, Value, method


@method("heun", prediction="derivative", order=2, source="Karras et al. 2022, algorithm 1")
def heun(s: Step, x: Value) -> Any:
    d = yield x, s.now
    if s.next.sigma == 0:
        return s.move(x, d)
    ahead = yield s.move(x, d), s.next
    return s.move(x, (d + ahead) / 2)


@method("edm", prediction="derivative", order=2, source="Karras et al. 2022, algorithm 2")
def edm(
    s: Step,
    x: Value,
    *,
    s_churn: float = 0.0,
    s_min: float = 0.0,
    s_max: float = math.inf,
    s_noise: float = 1.0,
) -> Any:
    start = s.now
    if s_churn > 0 and s_min <= start.ratio <= s_max:
        gamma = min(s_churn / (len(s.points) - 1), math.sqrt(2) - 1)
        start = s.schedule.at_ratio(start.ratio * (1 + gamma))
        spread = s_noise * math.sqrt(start.ratio**2 - s.now.ratio**2)
        x = x * (start.alpha / s.now.alpha) + s.noise() * (spread * start.alpha)
    d = yield x, start
    if s.next.sigma == 0:
        return s.move(x, d, start)
    ahead = yield s.move(x, d, start), s.next
    return s.move(x, (d + ahead) / 2, start)


@method(
    "rho_rk",
    prediction="derivative",
    order=2,
    source="Zhang and Chen 2023 (DEIS), arXiv 2204.13902, rhoRK",
    rho_midpoint={"order": 2, "middle": 0.5},
    rho_rk3={"order": 3},
    rho_rk4={"order": 4},
)
def rho_rk(s: Step, x: Value, *, order: int = 2, middle: float = 1.0) -> Any:
    def at(fraction: float) -> Any:
        return s.next if fraction == 1 else s.at_u(s.u(s.now) + fraction * step)

    step = s.u(s.next) - s.u(s.now)
    d1 = yield x, s.now
    if s.next.sigma == 0:
        return s.move(x, d1)
    if order == 2:
        d2 = yield s.move(x, d1, end=at(middle)), at(middle)
        return s.move(x, d1 * (1 - 0.5 / middle) + d2 * (0.5 / middle))
    half = at(0.5)
    d2 = yield s.move(x, d1, end=half), half
    if order == 3:
        d3 = yield s.move(x, d2 * 2 - d1), s.next
        return s.move(x, (d1 + d2 * 4 + d3) / 6)
    if order != 4:
        raise ValueError(f"rho_rk: option 'order' expected 2, 3 or 4, got {order}")
    d3 = yield s.move(x, d2, end=half), half
    d4 = yield s.move(x, d3), s.next
    return s.move(x, (d1 + (d2 + d3) * 2 + d4) / 6)


@method(
    "kdpm2",
    prediction="derivative",
    order=2,
    source="Karras et al. 2022, algorithm 2 with the middle in log sigma; k-diffusion sample_dpm_2",
)
def kdpm2(s: Step, x: Value) -> Any:
    d = yield x, s.now
    if s.next.sigma == 0:
        return s.move(x, d)
    middle = s.at_u(math.sqrt(s.u(s.now) * s.u(s.next)))
    ahead = yield s.move(x, d, end=middle), middle
    return s.move(x, ahead)


@method(
    "kdpm2_ancestral",
    prediction="noise",
    order=1,
    source="k-diffusion sample_dpm_2_ancestral",
)
def kdpm2_ancestral(s: Step, x: Value, *, eta: float = 1.0) -> Any:
    d = yield x, s.now
    if s.next.sigma == 0:
        return s.move(x, d)
    a, b = s.now.ratio, s.next.ratio
    up = min(b, eta * b * math.sqrt(1 - (b / a) ** 2))
    down = math.sqrt(b**2 - up**2)
    middle = s.schedule.at_ratio(math.sqrt(a * down))
    ahead = yield s.move(x, d, end=middle), middle
    # To sigma_down and noise back up to sigma, both in x / alpha.
    x = x * (s.next.alpha / s.now.alpha) + ahead * (s.next.alpha * (down - a))
    return x + s.noise() * (s.next.alpha * up)


@method(
    "dpm_solver_singlestep",
    prediction="noise",
    order=2,
    source="Lu et al. 2022, arXiv 2206.00927, algorithms 4 and 5",
    dpm_solver_2s={"order": 2},
    dpm_solver_3s={"order": 3},
)
def dpm_solver_singlestep(
    s: Step, x: Value, *, order: int = 2, r1: float | None = None, r2: float = 2 / 3
) -> Any:
    r1 = r1 if r1 is not None else (0.5 if order == 2 else 1 / 3)
    e0 = yield x, s.now
    if s.next.sigma == 0 or order == 1:
        return s.move(x, e0)
    a, h = s.now, s.h
    p1 = s.schedule.at_lambda(a.lam + r1 * h)
    e1 = yield s.move(x, e0, end=p1), p1
    if order == 2:
        return s.move(x, e0) - (e1 - e0) * (s.next.sigma * math.expm1(h) / (2 * r1))
    p2 = s.schedule.at_lambda(a.lam + r2 * h)
    grow = math.expm1(r2 * h)
    e2 = yield s.move(x, e0, end=p2) - (e1 - e0) * (p2.sigma * r2 / r1 * (grow / (r2 * h) - 1)), p2
    return s.move(x, e0) - (e2 - e0) * (s.next.sigma / r2 * (math.expm1(h) / h - 1))


@method(
    "dpmpp_singlestep",
    prediction="sample",
    order=2,
    source="Lu et al. 2022, arXiv 2211.01095, algorithm 1; order 3 of the official repository",
    dpmpp_2s={"order": 2},
    dpmpp_3s={"order": 3},
)
def dpmpp_singlestep(
    s: Step, x: Value, *, order: int = 2, r1: float | None = None, r2: float = 2 / 3
) -> Any:
    r1 = r1 if r1 is not None else (0.5 if order == 2 else 1 / 3)

    def to(point: Any, m: Value) -> Value:
        return x * (point.sigma / a.sigma) - m * (point.alpha * math.expm1(a.lam - point.lam))

    a, h = s.now, s.h
    m0 = yield x, s.now
    if s.next.sigma == 0 or a.alpha == 0 or order == 1:
        return to(s.next, m0)
    p1 = s.schedule.at_lambda(a.lam + r1 * h)
    m1 = yield to(p1, m0), p1
    if order == 2:
        return to(s.next, m0) - (m1 - m0) * (s.next.alpha * math.expm1(-h) / (2 * r1))
    p2 = s.schedule.at_lambda(a.lam + r2 * h)
    phi = math.expm1(-r2 * h) / (r2 * h) + 1
    m2 = yield to(p2, m0) + (m1 - m0) * (p2.alpha * r2 / r1 * phi), p2
    return to(s.next, m0) + (m2 - m0) * (s.next.alpha / r2 * (math.expm1(-h) / h + 1))
