"""Every solver has its declared order of convergence.

Deterministic ones on a mixture of four Gaussians, whose score is known, against the probability
flow solved to 1e-13, with exact history. Stochastic ones on a single Gaussian, where every value
of a plan is an affine function of the start and the noises, so that mean and variance at the end
come from its coefficients, without sampling.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest

from pixleap import solvers

pytest.importorskip("scipy")
from scipy.integrate import solve_ivp

MEANS = np.array([-1.5, -0.4, 0.7, 1.8])
WEIGHTS = np.array([0.2, 0.3, 0.35, 0.15])
SPREADS = np.array([0.25, 0.4, 0.3, 0.35])
COUNTS = (40, 80, 160, 320)


def mixture_noise(x: np.ndarray, p: solvers.Point) -> np.ndarray:
    """The noise that an exact model predicts."""
    variance = (p.alpha * SPREADS) ** 2 + p.sigma**2
    log = (
        np.log(WEIGHTS)
        - 0.5 * np.log(variance)
        - 0.5 * (x[:, None] - p.alpha * MEANS) ** 2 / variance
    )
    weight = np.exp(log - log.max(axis=1, keepdims=True))
    weight /= weight.sum(axis=1, keepdims=True)
    score = (weight * (p.alpha * MEANS - x[:, None]) / variance).sum(axis=1)
    return -p.sigma * score


@functools.cache
def problem(kind: str):
    """Schedule, levels between which it is solved, start, and the exact flow."""
    schedule = solvers.NoiseSchedule.flow() if kind == "flow" else solvers.NoiseSchedule.ve()
    high, low = (0.85, 0.12) if kind == "flow" else (3.0, 0.15)
    start = np.linspace(-3, 3, 7) * high
    a, b = schedule.at_sigma(high), schedule.at_sigma(low)

    def slope(ratio: float, y: np.ndarray) -> np.ndarray:
        p = schedule.at_ratio(ratio)
        return mixture_noise(p.alpha * y, p)

    flow = solve_ivp(
        slope, [a.ratio, b.ratio], start / a.alpha,
        rtol=1e-13, atol=1e-13, method="DOP853", dense_output=True,
    )  # fmt: skip
    return schedule, high, low, start, lambda p: flow.sol(p.ratio) * p.alpha


def grid(name: str, schedule: solvers.NoiseSchedule, high: float, low: float, n: int) -> np.ndarray:
    # Methods in sigma or lambda: equidistant there, but for those that allow for any.
    if name in ("ipndm", "ipndm_hb") or name.startswith("constant"):
        return np.linspace(high, low, n + 1)
    if name in ("heun", "edm", "lms", "ab4") or name.startswith(("rho", "kdpm", "ghvb")):
        return np.linspace(high**0.5, low**0.5, n + 1) ** 2
    ratios = [p.ratio for p in (schedule.at_sigma(high), schedule.at_sigma(low))]
    levels = np.exp(np.linspace(*np.log(ratios), n + 1))
    return levels / (1 + levels) if schedule.kind == "flow" else levels


def slopes(name: str, kind: str, grid_of: str | None = None, **options: object) -> np.ndarray:
    schedule, high, low, start, exact = problem(kind)
    errors = []
    for n in COUNTS:
        x = solvers.reference.sample(
            name, schedule, grid(grid_of or name, schedule, high, low, n),
            model=lambda x, t: mixture_noise(x, schedule.at_time(t)), x=start.copy(),
            exact=exact, lower_order_final=False, **options,
        )  # fmt: skip
        errors.append(np.abs(x - exact(schedule.at_sigma(low))).max())
    return np.log2(np.array(errors[:-1]) / errors[1:])


DETERMINISTIC = [
    ("ddim", 1, {}),
    ("euler", 1, {}),
    ("heun", 2, {}),
    ("edm", 2, {}),
    ("lms", 2, {"order": 2}),
    ("lms", 3, {"order": 3}),
    ("ab4", 4, {}),
    ("deis", 2, {"order": 2}),
    ("deis", 3, {}),
    ("deis_rhoab", 3, {}),
    ("deis_tab", 3, {}),
    ("dpm_solver_1", 1, {}),
    ("dpm_solver_2m", 2, {}),
    ("dpm_solver_2m", 2, {"solver_type": "heun"}),
    ("dpm_solver_3m", 3, {}),
    ("dpm_solver_2s", 2, {}),
    ("dpm_solver_3s", 3, {}),
    ("dpmpp_1m", 1, {}),
    ("dpmpp_2m", 2, {}),
    ("dpmpp_2m", 2, {"solver_type": "heun"}),
    ("dpmpp_3m", 3, {}),
    ("dpmpp_2s", 2, {}),
    ("dpmpp_3s", 3, {}),
    ("unipc_1", 2, {}),
    ("unipc_2", 3, {}),
    ("unipc_3", 4, {}),
    ("unipc_noise", 3, {}),
    ("unipc_2", 2, {"corrector": False}),
    ("unipc_3", 3, {"corrector": False}),
    ("rho_rk", 2, {}),
    ("rho_midpoint", 2, {}),
    ("rho_rk3", 3, {}),
    ("rho_rk4", 4, {}),
    ("ghvb_1", 1, {}),
    ("ghvb_2", 2, {}),
    ("ghvb_3", 3, {}),
    ("ghvb_4", 4, {}),
    ("ghvb_2", 2, {"momentum": 0.3}),
    ("ddim_hb", 1, {}),
    ("euler_hb", 1, {}),
    ("euler_hb", 1, {"nesterov": True}),
    ("ipndm_hb", 1, {}),
    ("dpmpp_2m_hb", 1, {}),
    ("dpm_solver_2m_hb", 1, {}),
    ("unipc_hb", 2, {}),
    ("dpmpp_2m_hb", 2, {"momentum": 1.0}),
    ("unipc_hb", 3, {"momentum": 1.0}),
]


@pytest.mark.parametrize("kind", ["ve", "flow"])
@pytest.mark.parametrize(("name", "order", "options"), DETERMINISTIC)
def test_order(name, order, options, kind):
    measured = slopes(name, kind, **options)
    assert abs(measured[-1] - order) < 0.15, f"{name} {kind}: slopes {measured}"


def test_constant_steps():
    """iPNDM's weights are those of constant steps: full order there, order 2 elsewhere."""
    assert slopes("ipndm", "ve", order=2)[-1] > 1.85
    assert slopes("ipndm", "ve")[-1] > 3.85
    assert abs(slopes("ipndm", "ve", grid_of="heun")[-1] - 2) < 0.35


def test_third_order_of_diffusers_is_two():
    """phi_3 wants h^2 f''; diffusers, the official repository and k-diffusion give half of it."""
    assert slopes("dpmpp_3m", "ve")[-1] > 2.85
    assert abs(slopes("dpmpp_3m", "ve", compat="diffusers")[-1] - 2) < 0.15


def test_four_steps_variable():
    assert slopes("ab4", "ve")[-1] > 3.7


def test_schedule_keeps_the_order_across_changes_of_solver():
    """Half the steps by one solver, half by another: the order is the lower one's."""

    def measured(a: object, b: object) -> float:
        schedule, high, low, start, exact = problem("ve")
        errors = []
        for n in COUNTS:
            x = solvers.reference.sample(
                "per_step", schedule, grid("", schedule, high, low, n),
                model=lambda x, t: mixture_noise(x, schedule.at_time(t)), x=start.copy(),
                solvers=[a] * (n // 2) + [b] * (n - n // 2),
            )  # fmt: skip
            errors.append(np.abs(x - exact(schedule.at_sigma(low))).max())
        return float(np.log2(errors[-2] / errors[-1]))

    assert abs(measured("dpmpp_2m", "dpm_solver_3m") - 2) < 0.15
    assert abs(measured("dpmpp_3s", ("dpmpp", {"order": 3})) - 3) < 0.15
    assert abs(measured("heun", "unipc_2") - 2) < 0.15
    assert abs(measured("dpmpp_2m", "euler") - 1) < 0.15


# Stochastic solvers

MU, SPREAD = 0.7, 0.6  # of the data


def end_moments(plan: solvers.SolverPlan) -> tuple[float, float]:
    """Mean and variance that the plan's last sample has, the start drawn from the exact marginal.

    Values are vectors of coefficients of 1, the standardised start, and each noise."""
    names = plan.noises
    unit = np.eye(2 + len(names))
    first = plan.points[0]
    values = {name: unit[2 + i] for i, name in enumerate(names)}
    spread = math.sqrt((first.alpha * SPREAD) ** 2 + first.sigma**2)
    values[plan.start] = first.alpha * MU * unit[0] + spread * unit[1]

    def run(p):
        assert p.clamp is None and p.threshold is None
        new = [sum(c * values[n] for n, c in f.terms.items()) for f in p.forms]
        values.update(zip(p.outputs, new, strict=True))

    for p in plan.before:
        run(p)
    for stage in plan.stages:
        point, x = stage.point, values[stage.sample]
        variance = (point.alpha * SPREAD) ** 2 + point.sigma**2
        # the noise that an exact model predicts is affine in x
        values[stage.output] = (x - point.alpha * MU * unit[0]) * (point.sigma / variance)
        for p in stage.passes:
            run(p)
    last = values[plan.stages[-1].result]
    return float(last[0]), float((last[1:] ** 2).sum())


def weak_slopes(name: str, kind: str, **options: object) -> np.ndarray:
    """Of the sum of both moments' errors."""
    schedule, high, low, _, _ = problem("ve" if kind == "vp" else kind)
    if kind == "vp":
        schedule = solvers.NoiseSchedule.vp()
    end = schedule.at_sigma(low)
    errors = []
    for n in (100, 200, 400):
        levels = grid("", schedule, high, low, n)
        plan = solvers.solver_plan(name, schedule, levels, lower_order_final=False, **options)
        mean, variance = end_moments(plan)
        exact = (end.alpha * SPREAD) ** 2 + end.sigma**2
        errors.append(abs(mean - end.alpha * MU) + abs(variance - exact))
    return np.log2(np.array(errors[:-1]) / errors[1:])


STOCHASTIC = [
    ("ddim", 1, "ve", {"eta": 1.0}),
    ("ddim", 1, "vp", {"eta": 0.5}),
    ("ddpm", 1, "vp", {}),
    ("euler_ancestral", 1, "ve", {}),
    ("euler_ancestral", 1, "flow", {}),
    ("dpmpp_1m_sde", 1, "ve", {}),
    ("dpmpp_2m_sde", 2, "ve", {}),
    ("dpmpp_2m_sde", 2, "flow", {}),
    ("dpmpp_2m_sde", 2, "vp", {"solver_type": "heun"}),
    ("sde_dpm_solver", 2, "ve", {}),
    ("edm", 2, "ve", {"s_churn": 5.0}),
    ("reverse_diffusion", 1, "ve", {"last_noise": True}),
    ("reverse_diffusion", 1, "vp", {"last_noise": True}),
    ("euler_maruyama", 1, "ve", {"last_noise": True}),
    ("euler_maruyama", 1, "vp", {"last_noise": True}),
    ("sit_sde", 1, "flow", {"last": "noise"}),
    ("sit_sde", 1, "flow", {"last": "noise", "diffusion": "sbdm"}),
    ("sit_sde", 1, "flow", {"last": "noise", "diffusion": "increasing_decreasing"}),
    ("sit_sde_heun", 1, "flow", {"last": "noise"}),
]


@pytest.mark.parametrize(("name", "order", "kind", "options"), STOCHASTIC)
def test_weak_order(name, order, kind, options):
    measured = weak_slopes(name, kind, **options)
    assert abs(measured[-1] - order) < 0.15, f"{name} {kind}: slopes {measured}"


@pytest.mark.parametrize(
    ("name", "options"), [("dpmpp_3m_sde", {}), ("sa_solver", {}), ("sa_solver", {"order": 3})]
)
def test_weak_order_at_least_two(name, options):
    """Higher orders are hidden by first steps that have no history."""
    assert weak_slopes(name, "ve", **options)[-1] > 1.95


@pytest.mark.parametrize(
    "name", ["ddim", "euler", "dpmpp_1m", "dpmpp_2m", "dpmpp_3m", "dpmpp_2s", "dpmpp_3s", "unipc",
             "unipc_3", "heun", "lms"]
)  # fmt: skip
def test_flows_start_from_pure_noise(name: str) -> None:
    """At sigma 1 there is no signal and lambda is infinite; the noise must not be lost there. On
    Gaussian data, mean m and deviation s, the flow takes the noise z to m + s z."""
    schedule, z, m, s = solvers.NoiseSchedule.flow(), np.full((1, 4), 1.3), 0.5, 0.3
    errors = []
    for steps in (16, 64):
        plan = solvers.solver_plan(
            name, schedule, "linspace", steps=steps, prediction_type="flow_prediction"
        )
        assert plan.points[0].sigma == 1.0
        solver = solvers.Solver(plan)
        x = solver.start(z.copy())
        for stage in plan.stages:
            alpha, sigma = stage.point.alpha, stage.point.sigma
            share = alpha * s**2 / (alpha**2 * s**2 + sigma**2)
            denoised = m + share * (x - alpha * m)
            x = solver.step((x - alpha * denoised) / sigma - denoised)
        errors.append(float(abs(x - (m + s * z)).max()))
    assert errors[1] < 0.04
    assert errors[1] < errors[0] / 3
