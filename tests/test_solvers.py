"""px.solvers: plans equal the descriptions they were traced from; grids, schedules, errors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import pixleap as px
from pixleap import solvers
from pixleap.solvers import (
    LinearForm,
    NoiseSchedule,
    Solver,
    solver_plan,
    solver_start,
    solver_step,
)

SCHEDULES: dict[str, tuple[NoiseSchedule, str, str]] = {
    "epsilon": (
        NoiseSchedule.vp("scaled_linear", beta_start=0.00085, beta_end=0.012),
        *("karras", "epsilon"),
    ),
    "v": (NoiseSchedule.vp("linear"), "exponential", "v_prediction"),
    "zero snr": (NoiseSchedule.vp("linear", zero_snr=True), "trailing", "v_prediction"),
    "flow": (NoiseSchedule.flow(shift=3.0), "linspace", "flow_prediction"),
    "edm": (NoiseSchedule.edm(), "karras", "edm"),
    "ve": (NoiseSchedule.ve(), "karras", "sample"),
}
SD = SCHEDULES["epsilon"][0]
MIXING = np.random.default_rng(0).standard_normal((6, 6)) * 0.3


def model(x: Any, time: float) -> Any:
    """Smooth, and different in every coordinate and at every time."""
    if isinstance(x, np.ndarray):
        return np.tanh(x @ MIXING.astype(x.dtype) + time / 1000).astype(x.dtype)
    return torch.tanh(x @ torch.from_numpy(MIXING).to(x.dtype) + time / 1000)


def start(batch: int = 3, dtype: Any = np.float64) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((batch, 6)).astype(dtype)


def threshold(x: np.ndarray) -> np.ndarray:
    s = np.quantile(np.abs(x), 0.9, axis=1).clip(1, 2)[:, None]
    return np.clip(x, -s, s) / s


def plan_of(name: str, case: str, **arguments: Any) -> solvers.SolverPlan:
    schedule, grid, kind = SCHEDULES[case]
    arguments = {"steps": 8, "prediction_type": kind, **arguments}
    return solver_plan(name, schedule, grid, **arguments)


def is_refusal(error: ValueError, case: str) -> bool:
    """Whether a method says that this schedule or its start without signal is not for it."""
    if "expected a schedule of kind" in str(error):
        return True
    reasons = ("alpha is 0", "no finite step")
    return case in ("zero snr", "flow") and any(r in str(error) for r in reasons)


@pytest.mark.parametrize("limit", ["none", "clip", "threshold"])
@pytest.mark.parametrize("case", SCHEDULES)
@pytest.mark.parametrize("name", [n for n in solvers.solver_names() if n != "per_step"])
def test_plan_equals_its_description(name: str, case: str, limit: str) -> None:
    arguments: dict[str, Any] = {}
    if limit == "clip":
        arguments["clip_sample"] = 0.8
    if limit == "threshold":
        arguments["threshold"] = {"ratio": 0.9, "max_value": 2.0}
    try:
        plan = plan_of(name, case, **arguments)
    except ValueError as error:
        if is_refusal(error, case):
            return
        raise
    x = start(dtype=np.float32 if limit == "threshold" else np.float64)  # the dtypes of that op
    seed = 5

    def noise(step: int, number: int) -> np.ndarray:
        key = f"noise {step}.{number}"
        if key not in plan.noises:  # drawn, but with a coefficient of 0
            return np.zeros_like(x)
        return px.ops.random_normal(x.shape, seed=seed, offset=plan.noises.index(key))

    schedule, grid, kind = SCHEDULES[case]
    expected = solvers.reference.sample(
        name,
        schedule,
        grid,
        steps=8,
        prediction_type=kind,
        model=model,
        x=x.astype(np.float64),
        noise=noise,
        limit=threshold if limit == "threshold" else None,
        **({"clip_sample": 0.8} if limit == "clip" else {}),
    )
    tolerance = (1e-4 if limit == "threshold" else 1e-6) * np.abs(expected).max()
    solver = Solver(plan, seed=seed)
    np.testing.assert_allclose(solver.sample(model, x.copy()), expected, atol=tolerance, rtol=0)
    state = solver_start(plan, x, seed=seed)
    for stage, time in enumerate(plan.timesteps):
        state = solver_step(plan, stage, state, model(state["x"], time), seed=seed)
    np.testing.assert_allclose(state["x"], expected, atol=tolerance, rtol=0)
    assert list(state) == ["x"]
    again = solver.sample(model, x.copy())
    np.testing.assert_array_equal(again, solver.sample(model, x.copy()))


def test_a_step_is_one_pass() -> None:
    plan = plan_of("unipc", "epsilon")
    assert [len(stage.passes) for stage in plan.stages] == [1] * 8
    table = plan.coefficients
    assert table.dtype == np.float64
    assert table.shape == (8, 3, 5)


@pytest.mark.parametrize("name", ["dpmpp_2m", "unipc", "heun", "euler_ancestral", "sa_solver"])
def test_float32_state_of_bfloat16_models(name: str) -> None:
    """The sampler's state keeps float32; only what the model sees and says is rounded."""
    plan = plan_of(name, "epsilon")

    def rounded(x: Any, time: float) -> Any:
        seen.append(x.dtype)
        return model(x.float(), time).bfloat16()

    def same(x: Any, time: float) -> Any:
        return model(x.bfloat16().float(), time).bfloat16().float()

    seen: list[torch.dtype] = []
    x = torch.from_numpy(start(dtype=np.float32)).bfloat16()
    mixed = Solver(plan, seed=1, state_dtype="float32").sample(rounded, x)
    plain = Solver(plan, seed=1).sample(same, x.float())
    assert set(seen) == {torch.bfloat16}
    assert mixed.dtype == torch.float32
    assert (mixed - plain).abs().max() <= 1e-6 * plain.abs().max()
    lost = Solver(plan, seed=1).sample(rounded, x).float()
    assert (lost - plain).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["euler_ancestral", "sa_solver", "edm", "dpmpp_2m_sde"])
def test_noise_does_not_depend_on_the_batch_split(name: str) -> None:
    options = {"s_churn": 4.0} if name == "edm" else {}
    plan = plan_of(name, "epsilon", **options)
    x = torch.from_numpy(start(5, np.float32))
    whole = Solver(plan, seed=9).sample(model, x).clone()
    parts = [
        Solver(plan, seed=9, first_element=6 * first).sample(model, x[first:last]).clone()
        for first, last in ((0, 2), (2, 5))
    ]
    assert torch.equal(whole, torch.cat(parts))
    for isa in px.available_isas():  # the noise is the same to the bit, sums are to rounding
        px.set_isa(isa)
        px.set_num_threads(1)
        alone = Solver(plan, seed=9).sample(model, x).clone()
        px.set_num_threads(2)
        assert torch.equal(Solver(plan, seed=9).sample(model, x), alone)
        assert torch.allclose(alone, whole, rtol=1e-5, atol=1e-5)
    other = Solver(plan, seed=10).sample(model, x)
    assert not torch.equal(other, whole)


def test_noise_as_arrays() -> None:
    plan = plan_of("euler_ancestral", "epsilon")
    x = start()
    named = {
        name: px.ops.random_normal(x.shape, seed=4, offset=i, like=x.astype(np.float32)).astype(
            float
        )
        for i, name in enumerate(plan.noises)
    }
    given = Solver(plan, noise=named.__getitem__).sample(model, x)
    drawn = Solver(plan, seed=4).sample(model, x)
    np.testing.assert_allclose(given, drawn, rtol=1e-12)
    state = solver_start(plan, x, noise=named.__getitem__)
    for stage, time in enumerate(plan.timesteps):
        state = solver_step(plan, stage, state, model(state["x"], time), noise=named.__getitem__)
    np.testing.assert_allclose(state["x"], drawn, rtol=1e-12)


@pytest.mark.parametrize("case", ["epsilon", "v", "flow", "edm", "ve"])
def test_a_schedule_inverts(case: str) -> None:
    schedule = SCHEDULES[case][0]
    for ratio in (0.05, 0.3, 1.0, 7.0):
        point = schedule.at_ratio(ratio)
        assert math.isclose(point.ratio, ratio, rel_tol=1e-12)
        assert math.isclose(schedule.at_lambda(point.lam).sigma, point.sigma, rel_tol=1e-12)
        assert math.isclose(schedule.at_time(point.time).ratio, ratio, rel_tol=1e-9)
        kinds = [k for k in solvers.PREDICTION_TYPES if k != "edm" or case == "edm"]
        for kind in kinds:
            # x0 = 2, noise = -3 and back.
            p, q = schedule.prediction(kind, point)
            x, output = 2 * point.alpha - 3 * point.sigma, 2 * p - 3 * q
            for wanted, value in (("sample", 2), ("noise", -3), ("velocity", -5)):
                a, b = solvers.conversion(schedule, kind, wanted, point)
                assert math.isclose(a * x + b * output, value, rel_tol=1e-9)


def test_edm_prediction_is_the_preconditioning() -> None:
    """D = c_skip y + c_out F with the constants of Karras et al., table 1."""
    schedule = NoiseSchedule.edm(sigma_data=0.5)
    sigma, data, y, f = 1.7, 0.5, 0.4, -0.8
    norm = math.hypot(sigma, data)
    expected = data**2 / norm**2 * y + sigma * data / norm * f
    point = schedule.at_ratio(sigma)
    assert math.isclose(point.alpha, 1 / norm)
    assert math.isclose(point.time, math.log(sigma) / 4)
    a, b = solvers.conversion(schedule, "edm", "sample", point)
    assert math.isclose(a * (y / norm) + b * f, expected)


def test_zero_snr_ends_without_signal() -> None:
    schedule = NoiseSchedule.vp("linear", zero_snr=True)
    last = schedule.at_time(999)
    assert (last.alpha, last.sigma) == (0.0, 1.0)
    with pytest.raises(ValueError, match="predicted noise, which says nothing where alpha is 0"):
        solver_plan("dpm_solver", schedule, "trailing", steps=5, prediction_type="v_prediction")
    with pytest.raises(ValueError, match="'epsilon' says nothing about the sample at alpha 0"):
        solver_plan("ddim", schedule, "trailing", steps=5)


@pytest.mark.parametrize(
    "grid", ["karras", "exponential", "beta", "linspace", "leading", "trailing"]
)
def test_grids_are_those_of_diffusers(grid: str) -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    levels = grid in ("karras", "exponential", "beta")
    options = {f"use_{grid}_sigmas": True} if levels else {"timestep_spacing": grid}
    if grid == "leading":
        options["steps_offset"] = 1
    make = diffusers.EulerDiscreteScheduler if levels else diffusers.DDIMScheduler
    theirs = make(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, **options)
    theirs.set_timesteps(12)
    ours = solvers.points(SD, grid, steps=12, **({"offset": 1} if grid == "leading" else {}))
    np.testing.assert_allclose([p.time for p in ours[:-1]], theirs.timesteps.numpy(), atol=2e-3)
    if levels:  # float32 arithmetic on their side
        np.testing.assert_allclose([p.ratio for p in ours], theirs.sigmas.numpy(), rtol=5e-5)


def test_flow_grid_is_shifted_once() -> None:
    plan = solver_plan(
        "euler", NoiseSchedule.flow(shift=3.0), "simple", steps=4, prediction_type="flow_prediction"
    )
    sigmas = np.array([1, 0.75, 0.5, 0.25])
    expected = [*(3 * sigmas / (1 + 2 * sigmas)), 0.0]
    np.testing.assert_allclose([p.sigma for p in plan.points], expected, rtol=1e-12)
    assert plan.timesteps[0] == 1000.0
    mu = solvers.dynamic_shift_mu(4096)
    assert math.isclose(mu, 1.15)
    np.testing.assert_allclose(
        solvers.flow_shift(sigmas, mu=mu), math.exp(mu) / (math.exp(mu) + 1 / sigmas - 1)
    )


def test_linear_form() -> None:
    x, y = LinearForm.of("x"), LinearForm.of("y")
    form = (x * 2 - y / 4 + x).substitute({"x": y + x * 3})
    assert form.terms == {"y": 2.75, "x": 9.0}
    assert (x * 1).symbol == "x"
    assert (x * 2).symbol is None
    with pytest.raises(TypeError):
        x * y  # type: ignore[operator]
    with pytest.raises(TypeError):
        x + 1.0  # type: ignore[operator]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: solver_plan("dpm++", SD, steps=4),
            "argument 'name' expected one of ab4, .*got 'dpm",
        ),
        (
            lambda: solver_plan("ddim", SD, "kerras", steps=4),
            "'sigmas' expected one of karras, .*'kerras'",
        ),
        (
            lambda: solver_plan("ddim", SD, steps=4, prediction_type="eps"),
            "'prediction_type' expected one of epsilon",
        ),
        (
            lambda: solver_plan("ddim", SD, steps=4, compat="k"),
            "'compat' expected one of consistent, diffusers",
        ),
        (
            lambda: solver_plan("ddim", SD, steps=4, eta2=1),
            "ddim has no option 'eta2', expected one of: eta",
        ),
        (
            lambda: solver_plan("ddim", SD, [3.0, 1.0, 2.0, 0.0]),
            "strictly decreasing numbers, got 1 followed by 2",
        ),
        (lambda: solver_plan("ddim", SD, [3.0]), "at least 2 levels"),
        (lambda: solver_plan("ddim", SD), "'steps' expected >= 1, got None"),
        (lambda: solver_plan("dpmpp_3m", SD, steps=2), "dpmpp_3m of order 3 needs 3 steps, got 2"),
        (
            lambda: solver_plan("ddim", SD, "karras", timesteps=[9, 3], steps=2),
            "either 'sigmas' or 'timesteps'",
        ),
        (
            lambda: solver_plan("ddim", SD, timesteps=[1000, 3]),
            r"a time in \[0, 999\] is expected, got 1000",
        ),
        (
            lambda: solver_plan("ddim", SD, steps=4, clip_sample=-1.0),
            "'clip_sample' expected > 0, got -1",
        ),
        (
            lambda: solver_plan("ddim", NoiseSchedule.edm(), "trailing", steps=4),
            "spaces discrete times",
        ),
        (
            lambda: NoiseSchedule.vp("square"),
            "'betas' expected one of linear, scaled_linear, cosine",
        ),
        (lambda: NoiseSchedule.vp([0.1, 1.5]), r"at least 2 numbers in \(0, 1\)"),
        (lambda: NoiseSchedule.flow(shift=0), "'shift' expected > 0"),
    ],
)
def test_bad_plans_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_bad_steps_are_refused() -> None:
    plan = solver_plan("dpmpp_2m", SD, steps=4)
    solver = Solver(plan)
    x = start()
    with pytest.raises(ValueError, match="call start"):
        solver.step(x)
    solver.start(x)
    with pytest.raises(ValueError, match=r"expected 1 outputs .output., got 2"):
        solver.step(x, x)
    with pytest.raises(ValueError, match="lincomb: argument 'inputs'"):
        solver.step(x[:2])
    with pytest.raises(ValueError, match="'stage' expected 0 to 3, got 4"):
        solver_step(plan, 4, {"x": x}, x)
    with pytest.raises(ValueError, match="'state' lacks 'sample0'"):
        solver_step(plan, 1, {"x": x}, x)
    for _ in range(4):
        solver.step(x)
    with pytest.raises(ValueError, match="4 model evaluations, all are done"):
        solver.step(x)
