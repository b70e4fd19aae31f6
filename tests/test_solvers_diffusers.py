"""Every coefficient of the covered schedulers against diffusers' own, over whole runs."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

import pixleap as px
from pixleap import solvers

diffusers = pytest.importorskip("diffusers", reason="the diffusers extra is not installed")

from diffusers_probe import diffusers_map, float64, plan_map  # noqa: E402

from pixleap.integrations.diffusers import base  # noqa: E402
from pixleap.solvers import stateless  # noqa: E402

drop_ins = px.integrations.diffusers
PREDICTIONS = ("epsilon", "sample", "v_prediction")
SPACINGS = ("leading", "trailing", "linspace")
GRIDS: tuple[dict[str, Any], ...] = (
    {},
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
    {"use_beta_sigmas": True},
)
Case = dict[str, Any]


def grid(**axes: Any) -> list[Case]:
    """The product of options; a value that is a dict is merged."""
    cases = []
    for values in itertools.product(*axes.values()):
        case: Case = {}
        for name, value in zip(axes, values, strict=True):
            case.update(value if isinstance(value, dict) and name[0] == "_" else {name: value})
        cases.append(case)
    return cases


class ExactOps:
    """`px.ops` for the drop-ins that plan one step at a time, in float64."""

    @staticmethod
    def lincomb(inputs: Any, coefficients: Any, *, out: Any, clamp: Any = None) -> None:
        table = np.reshape(coefficients, (len(out), -1)).tolist()
        made = [sum(c * x for c, x in zip(row, inputs, strict=True)) for row in table]
        for o, value in zip(out, made, strict=True):
            o.copy_(value)


def compare(name: str, case: Case, monkeypatch: pytest.MonkeyPatch) -> float:
    """Largest difference of a run's coefficients, relative to the largest coefficient.

    Of `case`, steps, begin, call (arguments of `step`) and setting (of `set_timesteps`) are not
    configuration.
    """
    config = dict(case)
    steps, begin = config.pop("steps", 8), config.pop("begin", 0)
    call, setting = config.pop("call", {}), config.pop("setting", {})
    theirs_class, ours_class = getattr(diffusers, name), getattr(drop_ins, name)
    with float64(theirs_class) as module:
        theirs = theirs_class(**config)
        ours = ours_class.from_config(theirs.config)
        for scheduler in (theirs, ours):
            scheduler.set_timesteps(steps, **setting)
            if begin and hasattr(scheduler, "set_begin_index"):
                scheduler.set_begin_index(begin)
        times = theirs.timesteps[begin:]
        expected = diffusers_map(theirs, module, times, **call)
        if name in ("DDIMScheduler", "DDPMScheduler"):
            monkeypatch.setattr(stateless, "ops", ExactOps)
            got = diffusers_map(ours, base, times, **call)
        elif name == "PNDMScheduler":
            got = plan_map(ours._begin(int(times[0])).plan)
        else:
            first = begin // ours.evaluations
            options = {"LMSDiscreteScheduler": {"order": 4}, "TCDScheduler": {"eta": 0.3}}
            got = plan_map(
                ours.make_run(
                    first, ours.points()[first:], **{**options.get(name, {}), **call}
                ).plan
            )
    assert np.isfinite(got).all(), case
    if not np.isfinite(expected).all():
        return -1.0
    return float(np.abs(got - expected).max() / np.abs(expected).max())


FLOW = {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}
CASES: dict[str, list[Case]] = {
    "DDIMScheduler": [
        *grid(
            prediction_type=PREDICTIONS,
            timestep_spacing=SPACINGS,
            call=[{"eta": eta} for eta in (0.0, 0.5, 1.0)],
            clip_sample=[False],
        ),
        {"set_alpha_to_one": False, "steps_offset": 1, "clip_sample": False},
        {"call": {"use_clipped_model_output": True}, "clip_sample": False},
        {
            "rescale_betas_zero_snr": True,
            "timestep_spacing": "trailing",
            "prediction_type": "v_prediction",
            "clip_sample": False,
        },
    ],
    "DDPMScheduler": grid(
        prediction_type=PREDICTIONS,
        timestep_spacing=SPACINGS,
        variance_type=("fixed_small", "fixed_large", "fixed_small_log"),
        clip_sample=[False],
    ),
    "EulerDiscreteScheduler": [
        *grid(prediction_type=PREDICTIONS, timestep_spacing=SPACINGS),
        *grid(_grid=GRIDS[1:], final_sigmas_type=("zero", "sigma_min")),
        {"timestep_type": "continuous", "prediction_type": "v_prediction"},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
        {"begin": 3},
    ],
    "EulerAncestralDiscreteScheduler": grid(
        prediction_type=("epsilon", "v_prediction"), timestep_spacing=SPACINGS
    ),
    "HeunDiscreteScheduler": [
        *grid(prediction_type=PREDICTIONS, _grid=GRIDS, num_train_timesteps=(100,)),
        {"begin": 4},
    ],
    "LMSDiscreteScheduler": [*grid(prediction_type=PREDICTIONS), {"call": {"order": 2}}],
    "KDPM2DiscreteScheduler": [
        *grid(prediction_type=("epsilon", "v_prediction"), num_train_timesteps=(100,)),
        {"begin": 4, "num_train_timesteps": 100},
    ],
    "KDPM2AncestralDiscreteScheduler": grid(
        prediction_type=("epsilon", "v_prediction"), num_train_timesteps=(100,)
    ),
    "PNDMScheduler": [
        *grid(
            skip_prk_steps=(True, False),
            set_alpha_to_one=(True, False),
            timestep_spacing=SPACINGS,
            steps=(7, 10),
        ),
        {"skip_prk_steps": True, "begin": 4, "steps_offset": 1, "steps": 10},
    ],
    "DPMSolverMultistepScheduler": [
        *(
            case
            for case in grid(
                algorithm_type=("dpmsolver++", "sde-dpmsolver++", "dpmsolver", "sde-dpmsolver"),
                solver_type=("midpoint", "heun"),
                solver_order=(1, 2, 3),
                final_sigmas_type=("zero", "sigma_min"),
                steps=(8, 16),
                _options=(
                    {},
                    {"lower_order_final": False, "prediction_type": "v_prediction"},
                    {"euler_at_final": True, "prediction_type": "sample"},
                    {"use_lu_lambdas": True, "timestep_spacing": "trailing"},
                    {"use_flow_sigmas": True, "flow_shift": 3.0},
                ),
            )
            # diffusers refuses the first and has no third-order sde-dpmsolver
            if case["algorithm_type"].endswith("++") or case["final_sigmas_type"] != "zero"
            if case["algorithm_type"] != "sde-dpmsolver" or case["solver_order"] < 3
        ),
        FLOW,
        {"use_karras_sigmas": True, "timestep_spacing": "leading", "steps_offset": 1},
        {"begin": 3, "solver_order": 3, "algorithm_type": "sde-dpmsolver++"},
    ],
    "DPMSolverSinglestepScheduler": [
        *(
            case
            for case in grid(
                algorithm_type=("dpmsolver++", "sde-dpmsolver++", "dpmsolver"),
                solver_type=("midpoint", "heun"),
                solver_order=(1, 2, 3),
                final_sigmas_type=("zero", "sigma_min"),
                lower_order_final=(True, False),
                steps=(8, 9),
            )
            if case["algorithm_type"].endswith("++") or case["final_sigmas_type"] != "zero"
        ),
        {"begin": 4, "solver_order": 3, "steps": 9},
    ],
    "UniPCMultistepScheduler": [
        *grid(
            solver_order=(1, 2, 3),
            solver_type=("bh1", "bh2"),
            disable_corrector=([], [0, 3]),
            _options=(
                {"final_sigmas_type": "sigma_min"},
                {"prediction_type": "v_prediction", "final_sigmas_type": "sigma_min"},
                {"predict_x0": False, "final_sigmas_type": "sigma_min"},
                {"lower_order_final": False, "final_sigmas_type": "sigma_min"},
            ),
        ),
        *grid(solver_order=(1, 2, 3), predict_x0=(True,)),
        FLOW,
        {"use_karras_sigmas": True, "begin": 3},
    ],
    "DEISMultistepScheduler": grid(
        solver_order=(1, 2, 3),
        lower_order_final=(True, False),
        steps=(8, 16),
        _options=({}, {"prediction_type": "v_prediction"}, FLOW, {"use_karras_sigmas": True}),
    ),
    "SASolverScheduler": grid(
        predictor_order=(1, 2, 3), corrector_order=(1, 2, 3), prediction_type=PREDICTIONS
    ),
    "EDMEulerScheduler": grid(
        prediction_type=("epsilon", "v_prediction"), final_sigmas_type=("zero", "sigma_min")
    ),
    "EDMDPMSolverMultistepScheduler": [
        *grid(
            prediction_type=("epsilon", "v_prediction"),
            algorithm_type=("dpmsolver++", "sde-dpmsolver++"),
            solver_type=("midpoint", "heun"),
            solver_order=(1, 2),
            sigma_schedule=("karras", "exponential"),
        ),
        {"solver_order": 3, "steps": 16},
    ],
    "FlowMatchEulerDiscreteScheduler": [
        {},
        {"shift": 3.0},
        {"use_dynamic_shifting": True, "setting": {"mu": 0.8}},
        {"use_dynamic_shifting": True, "time_shift_type": "linear", "setting": {"mu": 0.8}},
        {"stochastic_sampling": True},
        {"use_karras_sigmas": True},
        {"shift_terminal": 0.1},
        {"invert_sigmas": True},
    ],
    "FlowMatchHeunDiscreteScheduler": [{}, {"shift": 3.0}, {"begin": 4}],
    "LCMScheduler": grid(prediction_type=PREDICTIONS, steps=(4,)),
    "TCDScheduler": grid(
        prediction_type=PREDICTIONS, steps=(4,), call=[{"eta": e} for e in (0.0, 0.3, 1.0)]
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_coefficients(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Probed with one-hot inputs, both sides in float64."""
    diffusers.utils.logging.set_verbosity_error()
    differences = [compare(name, case, monkeypatch) for case in CASES[name]]
    for case, difference in zip(CASES[name], differences, strict=True):
        assert difference < 1e-9, (case, difference)
    # A last step between equal levels (use_lu_lambdas to sigma_min) is 0 / 0 in diffusers.
    unfinished = [c for c, d in zip(CASES[name], differences, strict=True) if d < 0]
    assert all(c.get("use_lu_lambdas") for c in unfinished), unfinished


def planned(name: str, config: Case, steps: int = 8) -> solvers.SolverPlan:
    """The drop-in's plan of a run."""
    scheduler = getattr(drop_ins, name).from_config(getattr(diffusers, name)(**config).config)
    scheduler.set_timesteps(steps)
    return scheduler.make_run(0, scheduler.points()).plan


FINITE = [
    *(
        ("DPMSolverMultistepScheduler", case)
        for case in grid(
            algorithm_type=("dpmsolver++", "sde-dpmsolver++", "dpmsolver", "sde-dpmsolver"),
            solver_type=("midpoint", "heun"),
            solver_order=(1, 2, 3),
            final_sigmas_type=("zero", "sigma_min"),
            lower_order_final=(True, False),
            euler_at_final=(True, False),
            _grid=GRIDS[:2],
        )
        if case["algorithm_type"].endswith("++") or case["final_sigmas_type"] != "zero"
    ),
    *(
        ("UniPCMultistepScheduler", case)
        for case in grid(
            solver_order=(1, 2, 3),
            solver_type=("bh1", "bh2"),
            predict_x0=(True, False),
            final_sigmas_type=("zero", "sigma_min"),
            lower_order_final=(True, False),
            _grid=GRIDS[:2],
        )
    ),
    *(
        ("DEISMultistepScheduler", case)
        for case in grid(solver_order=(1, 2, 3), lower_order_final=(True, False), _grid=GRIDS)
    ),
]


@pytest.mark.parametrize("steps", [8, 16])
def test_every_combination_is_finite(steps: int) -> None:
    """The product of the options that shape the last step. diffusers gives inf or NaN for many:
    UniPC with bh1, with predict_x0=False or without lower_order_final to sigma 0, and steps between
    equal levels."""
    diffusers.utils.logging.set_verbosity_error()
    for name, case in FINITE:
        plan = planned(name, case, steps)
        assert np.isfinite(plan_map(plan)).all(), (name, case)


@pytest.mark.parametrize(
    "options",
    [
        {"solver_type": "bh1"},
        {"predict_x0": False},
        {"lower_order_final": False},
    ],
)
def test_unipc_that_diffusers_cannot_finish(options: Case) -> None:
    """Its last step to sigma 0 is not finite; ours ends at the predicted sample."""
    scheduler = diffusers.UniPCMultistepScheduler(**options)
    scheduler.set_timesteps(8)
    x = torch.ones(1, 1, 2, 2)
    for t in scheduler.timesteps:
        x = scheduler.step(0.1 * x, t, x).prev_sample
    assert not torch.isfinite(x).all()
    plan = planned("UniPCMultistepScheduler", options)
    end = plan_map(plan)
    assert np.isfinite(end).all()
    scale = plan.points[-2]  # x0 = (x - sigma noise) / alpha weighs the last output
    if options.get("predict_x0", True):
        assert abs(end[plan.evaluations] + scale.ratio) < 1e-6


def test_third_order_sde_has_a_wrong_sign_in_diffusers() -> None:
    """A prediction that is a parabola in lambda is integrated exactly by a third-order method; with
    the sign as it is in diffusers (and without its missing factor) the step is far off."""
    schedule = solvers.NoiseSchedule.vp()
    sigmas = [4.0, 2.0, 1.0, 0.5]
    lam = [-math.log(s) for s in sigmas]
    h = lam[3] - lam[2]
    errors = {}
    for compat in ("consistent", "diffusers"):
        plan = solvers.solver_plan(
            "dpmpp_3m_sde",
            schedule,
            sigmas,
            prediction_type="sample",
            compat=compat,
            lower_order_final=False,
        )
        last = plan.stages[-1].passes[-1]
        form = last.forms[last.outputs.index(plan.stages[-1].result)]
        weights = {n: c for n, c in form.terms.items() if not n.startswith(("noise", "x"))}
        values = {
            name: (lam[int(name[6:])] - lam[3]) ** 2 for name in weights
        }  # sample k or output k
        got = sum(weights[n] * values[n] for n in weights)
        u = np.linspace(lam[2], lam[3], 200_001)
        density = 2 * plan.points[-1].alpha * np.exp(2 * (u - lam[3])) * (u - lam[3]) ** 2
        exact = float(np.trapezoid(density, u))
        errors[compat] = abs(got - exact) / exact
    print(errors)
    assert h > 0 and errors["consistent"] < 1e-6
    assert errors["diffusers"] > 1.0


def test_flow_shift_is_applied_once() -> None:
    """diffusers shifts its smallest sigma, and then the grid between it and 1 (its issue 13243); a
    grid of px.solvers is shifted once. The drop-in keeps diffusers' grid."""
    n, shift = 8, 3.0
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(n)
    schedule = solvers.NoiseSchedule.flow(shift=shift)
    ours = [p.sigma for p in solvers.points(schedule, "linspace", steps=n)]
    once = solvers.flow_shift(np.linspace(1, 1 / 1000, n), shift=shift)
    assert np.allclose(ours[:-1], once, atol=1e-12)
    last = float(scheduler.sigmas[-2])
    assert abs(last - solvers.flow_shift(np.array([once[-1]]), shift=shift)[0]) < 1e-6
    assert last > 2.9 * once[-1]


def test_ddim_steps_to_the_next_timestep() -> None:
    """With spacing "trailing" diffusers' step ends one time off where the steps do not divide the
    trained times (its issue 9261); compat = "consistent" ends at the next timestep."""
    scheduler = drop_ins.DDIMScheduler(timestep_spacing="trailing", clip_sample=False)
    scheduler.set_timesteps(30)
    times = scheduler.timesteps.tolist()
    x = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    k = next(i for i in range(29) if times[i] - 1000 // 30 != times[i + 1])

    def after(time: int) -> torch.Tensor:
        now, then = scheduler.point(times[k]), scheduler.point(time)
        x0 = (x - now.sigma * 0.5 * x) / now.alpha
        return then.alpha * x0 + then.sigma * 0.5 * x

    got = scheduler.step(0.5 * x, times[k], x).prev_sample
    assert torch.allclose(got, after(times[k] - 1000 // 30), atol=1e-6)
    scheduler.compat = "consistent"
    got = scheduler.step(0.5 * x, times[k], x).prev_sample
    assert torch.allclose(got, after(times[k + 1]), atol=1e-6)
    assert not torch.allclose(after(times[k + 1]), after(times[k] - 1000 // 30), atol=1e-4)


def test_thresholding_beyond_quantile() -> None:
    """torch.quantile takes 2^24 numbers; dynamic thresholding here takes any."""
    x = torch.rand(1, 1, 4096, 4100, generator=torch.Generator().manual_seed(0)) * 3
    ours = drop_ins.DDIMScheduler(thresholding=True, prediction_type="sample", sample_max_value=2.0)
    ours.set_timesteps(10)
    result = ours.step(x, ours.timesteps[-1], x)
    assert torch.isfinite(result.prev_sample).all()
    assert float(result.pred_original_sample.max()) == 1.0
    theirs = diffusers.DDIMScheduler.from_config(ours.config)
    theirs.set_timesteps(10)
    with pytest.raises(RuntimeError, match="too large"):
        theirs.step(x, theirs.timesteps[-1], x)
