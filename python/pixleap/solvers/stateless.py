"""A plan's passes as calls of `lincomb`, and the sampler that owns nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .. import ops
from .._arrays import Array, empty, shape
from .method import is_noise
from .plan import Pass, SolverPlan

MAX_OUTPUTS = 4  # of one `lincomb`
Noise = Callable[[str], Array]  # name of the noise -> standard normal array


@dataclass
class Call:
    """One `lincomb` by names: outputs[j] = sum of coefficients[j, i] * inputs[i] + noise."""

    inputs: list[str]
    outputs: list[str]
    coefficients: tuple[float, ...]
    noise: str | None
    noise_scale: tuple[float, ...]
    clamp: float | None
    threshold: dict[str, Any] | None


def call_of(p: Pass, external_noise: bool) -> Call:
    """The call that a pass is. `external_noise`: noise comes as arrays, not from the kernel."""
    noise = [] if external_noise else p.noise
    inputs = p.inputs + (p.noise if external_noise else [])
    if len(noise) > 1 or len(p.outputs) > MAX_OUTPUTS:
        raise ValueError(
            f"solver: a step expected at most one noise and {MAX_OUTPUTS} outputs, got "
            f"{', '.join([*noise, *p.outputs])}"
        )

    def rows(names: Sequence[str]) -> tuple[float, ...]:
        return tuple(f.terms.get(n, 0.0) for f in p.forms for n in names)

    name = noise[0] if noise else None
    return Call(inputs, p.outputs, rows(inputs), name, rows(noise), p.clamp, p.threshold)


def solver_start(
    plan: SolverPlan,
    x: Array,
    *,
    seed: int = 0,
    offset: int = 0,
    first_element: int = 0,
    noise: Noise | None = None,
    constants: Mapping[str, Array] | None = None,
) -> dict[str, Array]:
    """The state that `solver_step` begins with: the start, with the noise that some solvers add
    before the first evaluation.

    Args:
        x: the noise of the first point, (B, ...).
        constants: arrays that the plan names beside the sample.
        seed, offset, first_element, noise: as for `solver_step`.
    """
    values = {plan.start: x, **(constants or {})}
    for p in plan.before:
        run_pass(p, plan.noises, values, seed, offset, first_element, noise)
    return _state(plan, -1, values, plan.stages[0].sample)


def _state(
    plan: SolverPlan, stage: int, values: Mapping[str, Array], sample: str
) -> dict[str, Array]:
    needed = plan.needed_after(stage)
    kept = {name: values[name] for name in needed if name in values and name != sample}
    return {"x": values[sample], **kept}


def solver_step(
    plan: SolverPlan,
    stage: int,
    state: Mapping[str, Array],
    output: Array,
    *,
    seed: int = 0,
    offset: int = 0,
    first_element: int = 0,
    noise: Noise | None = None,
) -> dict[str, Array]:
    """One stage of a plan, without memory of its own.

    Args:
        stage: counts the model evaluations, 0 to plan.evaluations - 1.
        state: what the stage before returned; for stage 0 what `solver_start` returned.
        output: of the model at state["x"] and plan.timesteps[stage], shaped like state["x"].
        seed, offset, first_element: of the noise; see `px.ops.lincomb`. Every noise of the plan has
            an offset of its own, so one pair serves the whole run.
        noise: arrays instead, by the names in plan.noises.

    Returns:
        The next state, new arrays: "x" is the next model input, at the end the result.

    Raises:
        ValueError, TypeError: a stage out of range, a state of another stage, arrays that do not
        fit.
    """
    if not 0 <= stage < len(plan.stages):
        raise ValueError(
            f"solver_step: argument 'stage' expected 0 to {len(plan.stages) - 1}, got {stage}"
        )
    current = plan.stages[stage]
    values = dict(state)
    values[current.sample] = values.pop("x")
    values[current.output] = output
    for p in current.passes:
        run_pass(p, plan.noises, values, seed, offset, first_element, noise)
    return _state(plan, stage, values, current.result)


def run_pass(
    p: Pass,
    noises: Sequence[str],
    values: dict[str, Array],
    seed: int,
    offset: int,
    first_element: int,
    noise: Noise | None,
) -> None:
    """A pass into new arrays, which join `values`. `noises`: names in the order of their use."""
    call = call_of(p, noise is not None)
    for name in call.inputs:
        if name in values:
            continue
        if noise is None or not is_noise(name):
            raise ValueError(f"solver_step: argument 'state' lacks {name!r} of this stage")
        values[name] = noise(name)
    like = values[call.inputs[0]]
    out = [empty(like, shape(like, "solver_step", call.inputs[0])) for _ in call.outputs]
    run_call(
        call,
        [values[name] for name in call.inputs],
        call.coefficients,
        out,
        noise_scale=call.noise_scale,
        seed=seed,
        offset=offset + (noises.index(call.noise) if call.noise else 0),
        first_element=first_element,
    )
    values.update(zip(call.outputs, out, strict=True))


def run_call(
    call: Call, inputs: list[Array], coefficients: Any, out: list[Array], **noise: Any
) -> None:
    """The native calls of a pass; `noise`: arguments of `px.ops.lincomb`."""
    ops.lincomb(inputs, coefficients, out=out, clamp=call.clamp, **noise)
    if call.threshold is not None:
        ops.dynamic_threshold(out[0], out=out[0], **call.threshold)
