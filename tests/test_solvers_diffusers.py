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
from pixleap.integrations.diffusers import run as plan_run

diffusers = pytest.importorskip("diffusers", reason="the diffusers extra is not installed")

from diffusers_probe import diffusers_map, float64, plan_map  # noqa: E402

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
            monkeypatch.setattr(plan_run, "ops", ExactOps)
            got = diffusers_map(ours, module, times, **call)
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
    "HeunDiscreteScheduler": [*grid(prediction_type=PREDICTIONS, _grid=GRIDS), {"begin": 4}],
    "LMSDiscreteScheduler": [*grid(prediction_type=PREDICTIONS), {"call": {"order": 2}}],
    "KDPM2DiscreteScheduler": [*grid(prediction_type=("epsilon", "v_prediction")), {"begin": 4}],
    "KDPM2AncestralDiscreteScheduler": grid(prediction_type=("epsilon", "v_prediction")),
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
                {},
                {"prediction_type": "v_prediction", "final_sigmas_type": "sigma_min"},
                {"predict_x0": False, "final_sigmas_type": "sigma_min"},
                {"lower_order_final": False, "final_sigmas_type": "sigma_min"},
            ),
        ),
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
    "EDMDPMSolverMultistepScheduler": grid(
        prediction_type=("epsilon", "v_prediction"),
        algorithm_type=("dpmsolver++", "sde-dpmsolver++"),
        solver_type=("midpoint", "heun"),
        solver_order=(1, 2),
        sigma_schedule=("karras", "exponential"),
    )
    + [{"solver_order": 3, "steps": 16}],
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
def test_coefficients(name: str, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    """Probed with one-hot inputs, both sides in float64."""
    diffusers.utils.logging.set_verbosity_error()
    for case in CASES[name]:
        difference = compare(name, case, monkeypatch)
        assert difference < 1e-9, (case, difference)
