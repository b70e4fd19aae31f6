"""A solver's description, traced: for every model evaluation the coefficients of one fused pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import grids
from .linear_form import LinearForm
from .method import Method, Step, conversion, find_method, is_noise
from .schedule import PREDICTION_TYPES, NoiseSchedule, Point, choose

COMPAT = ("consistent", "diffusers")


@dataclass
class Pass:
    """outputs[j] = sum over inputs, the noise last where there is one: one call of `lincomb`.

    clamp: limit of every output, None for none; "threshold" passes are dynamic thresholding.
    """

    outputs: list[str]
    forms: list[LinearForm]
    clamp: float | None = None
    threshold: dict[str, Any] | None = None

    @property
    def inputs(self) -> list[str]:
        names = dict.fromkeys(name for form in self.forms for name in form.terms)
        return [name for name in names if not is_noise(name)]

    @property
    def noise(self) -> list[str]:
        names = dict.fromkeys(name for form in self.forms for name in form.terms)
        return [name for name in names if is_noise(name)]


@dataclass
class Stage:
    """One evaluation of the model, and what follows it.

    sample: name of the model's input; output: name of the model's answer; result: name of the next
    sample. `outputs` of the passes beside it are values that later stages need.
    """

    step: int
    point: Point
    sample: str
    output: str
    passes: list[Pass]
    result: str


@dataclass
class SolverPlan:
    """What `Solver` and `solver_step` run. Made by `solver_plan`."""

    name: str
    method: Method
    points: list[Point]
    prediction_type: str
    stages: list[Stage]
    before: list[Pass] = field(default_factory=list)  # ahead of the first evaluation
    start: str = "x0"
    constants: tuple[str, ...] = ()  # arrays given to `Solver`, the same at every step

    @property
    def timesteps(self) -> list[float]:
        """What the model is told at each evaluation."""
        return [stage.point.time for stage in self.stages]

    @property
    def evaluations(self) -> int:
        """Number of model calls (NFE)."""
        return len(self.stages)

    @property
    def noises(self) -> list[str]:
        """Names of the noise arrays, in order of use."""
        return list(
            dict.fromkeys(n for p in self.before for n in p.noise)
            | dict.fromkeys(n for s in self.stages for p in s.passes for n in p.noise)
        )

    def needed_after(self, stage: int) -> list[str]:
        """Names of the values that later stages read, apart from fresh noise."""
        made: set[str] = set()
        needed: dict[str, None] = {}
        for later in self.stages[stage + 1 :]:
            for p in later.passes:
                needed.update((n, None) for n in p.inputs if n not in made)
                made.update((later.output, *p.outputs))
            made.add(later.result)
        return [n for n in needed if not n.startswith("output")]

    @property
    def coefficients(self) -> np.ndarray:
        """float64 (stage, output, input) of every stage's last pass; absent ones are 0.

        Outputs: next sample first, then what is kept. Inputs in the order of `Pass.inputs`, the
        noise last.
        """
        last = [stage.passes[-1] for stage in self.stages]
        rows = max(len(p.forms) for p in last)
        columns = max(len(p.inputs) + len(p.noise) for p in last)
        table = np.zeros((len(last), rows, columns))
        for k, p in enumerate(last):
            names = [*p.inputs, *p.noise]
            for j, form in enumerate(p.forms):
                table[k, j, : len(names)] = [form.terms.get(name, 0.0) for name in names]
        return table


@dataclass
class Run:
    """A sampling run before it is traced: grid, method, and how far back each step may look."""

    name: str
    method: Method
    options: dict[str, Any]
    schedule: NoiseSchedule
    points: list[Point]
    orders: list[int]
    prediction_type: str
    compat: str
    clip_sample: float | None
    threshold: dict[str, Any] | None

    @property
    def prediction(self) -> str:
        """What the method is given: "derivative" is the noise, for flows the velocity."""
        kind = self.method.prediction
        if kind != "derivative":
            return kind
        return "velocity" if self.schedule.kind == "flow" else "noise"

    @property
    def history(self) -> int:
        """How many earlier predictions are kept."""
        kept = self.method.history
        return int(self.options.get("order", self.method.order)) - 1 if kept is None else kept


def prepare(
    name: str,
    schedule: NoiseSchedule,
    sigmas: str | Sequence[float] | Sequence[Point] | np.ndarray | None = None,
    *,
    timesteps: Sequence[float] | np.ndarray | None = None,
    steps: int | None = None,
    final: str = "zero",
    grid: dict[str, float] | None = None,
    prediction_type: str = "epsilon",
    compat: str = "consistent",
    lower_order_final: bool | None = None,
    orders: Sequence[int] | None = None,
    clip_sample: float | None = None,
    threshold: dict[str, Any] | None = None,
    **options: Any,
) -> Run:
    """Checks the arguments of `solver_plan`."""
    choose(compat, COMPAT, "solver_plan", "compat")
    choose(prediction_type, PREDICTION_TYPES, "solver_plan", "prediction_type")
    method, options = find_method(name, options)
    points = grids.points(
        schedule, sigmas, timesteps=timesteps, steps=steps, final=final, **(grid or {})
    )
    order = int(options.get("order", method.order))
    count = len(points) - 1
    if orders is not None and len(orders) != count:
        raise ValueError(
            f"solver_plan: argument 'orders' expected {count} numbers, one a step, "
            f"got {len(orders)}"
        )
    if method.multistep and count < order and orders is None:
        raise ValueError(f"solver_plan: {name} of order {order} needs {order} steps, got {count}")
    if clip_sample is not None and not clip_sample > 0:
        raise ValueError(f"solver_plan: argument 'clip_sample' expected > 0, got {clip_sample}")
    lowered = count < 15 if lower_order_final is None else lower_order_final
    if orders is None:
        orders = [min(order, i + 1, count - i if lowered else order) for i in range(count)]
        if points[-1].sigma == 0 and method.multistep:
            orders[-1] = 1
    run = Run(
        name,
        method,
        options,
        schedule,
        points,
        list(orders),
        prediction_type,
        compat,
        clip_sample,
        threshold,
    )
    if points[0].alpha == 0:
        _without_signal(run)
    return run


def _without_signal(run: Run) -> None:
    """A first point of pure noise has lambda = -inf: it is no node of a polynomial in lambda."""
    if run.prediction == "noise":
        raise ValueError(
            f"solver_plan: {run.name} works on predicted noise, which says nothing where alpha is "
            "0; start the grid at a smaller sigma, or choose a solver of the predicted sample, "
            "such as ddim, dpmpp_2m or unipc"
        )
    if run.prediction != "velocity":
        run.orders = [min(order, max(1, i)) for i, order in enumerate(run.orders)]


def solver_plan(
    name: str,
    schedule: NoiseSchedule,
    sigmas: str | Sequence[float] | Sequence[Point] | np.ndarray | None = None,
    **arguments: Any,
) -> SolverPlan:
    """Coefficients of a whole sampling run.

    Args:
        name: a solver, as "dpmpp_2m"; `solver_names()` lists them.
        schedule: of the model.
        sigmas, timesteps, steps, final: the grid; see `grids.points`. `grid` are the options of a
            named one (rho, sigma_min, sigma_max, offset, a, b).
        prediction_type: of the model: epsilon, sample, v_prediction, flow_prediction, score, edm
            or edm_v (edm of the other sign).
        compat: "consistent" has the declared order of convergence, "diffusers" the numbers of the
            diffusers library where they differ.
        lower_order_final: multistep methods lower their order over the last steps. None: with
            fewer than 15 steps. A last step to sigma 0 is of order 1 in any case.
        orders: the order of every step instead, as far as its history allows.
        clip_sample: the predicted sample is limited to [-clip_sample, clip_sample].
        threshold: dynamic thresholding of the predicted sample (Saharia et al. 2022), the
            arguments of `px.ops.dynamic_threshold`.
        options: of the solver, as eta or order.

    Raises:
        ValueError: unknown names (the valid ones are listed), a grid that does not decrease, fewer
            steps than the order, a prediction that cannot be converted at a point.
    """
    run = prepare(name, schedule, sigmas, **arguments)
    tracer = Tracer(run)
    for index in range(len(run.points) - 1):
        tracer.step(index)
    return tracer.plan()


class Tracer:
    """Runs a description on forms, one step after another, and cuts it at the model calls."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.sample = "x0"  # name of the current sample
        self.samples = 1
        self.evaluations = 0
        self.stages: list[Stage] = []
        self.before: list[Pass] = []
        self.past: list[tuple[LinearForm, Point]] = []
        self.state: dict[str, LinearForm] = {}
        self.definition: dict[str, LinearForm] = {}  # of the current stage's prediction

    def step(self, index: int) -> None:
        run = self.run

        def draw(k: int) -> LinearForm:
            return LinearForm.of(f"noise {index}.{k}")

        s = Step(run, index, self.past, self.state, draw)
        generator = run.method(s, LinearForm.of(self.sample))
        form, point = next(generator)
        if form.symbol != self.sample:  # noise is added before the model is called
            self._advance(form, {})
        first: Any = None
        while True:
            prediction = self._evaluate(index, point)
            first = prediction if first is None else first
            try:
                form, point = generator.send(prediction)
            except StopIteration as stop:
                result = stop.value
                break
            self._advance(form, {})
        form, state = result if isinstance(result, tuple) else (result, {})
        named = {key: f"{key}@{index}" for key in state}
        self._advance(form, {named[key]: state[key] for key in state})
        self.state = {
            key: value if _held(value) else LinearForm.of(named[key])
            for key, value in state.items()
        }
        self.past = [(first, run.points[index]), *self.past][: run.history]

    def _evaluate(self, index: int, point: Point) -> Any:
        """A new stage; the method's prediction of it, under a name of its own."""
        k = self.evaluations
        self.evaluations += 1
        stage = Stage(index, point, self.sample, f"output{k}", [], "")
        self.stages.append(stage)
        run, x, output = self.run, LinearForm.of(stage.sample), LinearForm.of(stage.output)
        wanted = run.prediction
        kinds = ("sample", "noise") if wanted == "both" else (wanted,)
        forms = {kind: x * a + output * b for kind, (a, b) in self._convert(kinds, point).items()}
        if run.clip_sample is not None or run.threshold is not None:
            a, b = conversion(run.schedule, run.prediction_type, "sample", point)
            limited = f"limited{k}"
            form = x * a + output * b
            stage.passes.append(Pass([limited], [form], run.clip_sample, run.threshold))
            for kind in kinds:
                if kind == "noise" and len(kinds) == 2 and not run.options.get("noise_of_clipped"):
                    continue
                a, b = conversion(run.schedule, "sample", kind, point)
                forms[kind] = (x * a + LinearForm.of(limited) * b).without_zeros()
        # A limited sample is kept as it is; the model's output belongs to the caller.
        self.definition = {
            f"{kind}{k}": form
            for kind, form in forms.items()
            if form.symbol in (None, stage.output)
        }
        values = tuple(
            LinearForm.of(f"{kind}{k}") if f"{kind}{k}" in self.definition else f
            for kind, f in forms.items()
        )
        return values if len(kinds) == 2 else values[0]

    def _convert(self, kinds: Sequence[str], point: Point) -> dict[str, tuple[float, float]]:
        run = self.run
        return {k: conversion(run.schedule, run.prediction_type, k, point) for k in kinds}

    def _advance(self, form: LinearForm, kept: dict[str, LinearForm]) -> None:
        """Ends the current stage: its pass makes the next sample and all that may be needed."""
        result = f"x{self.samples}"
        self.samples += 1
        self.sample = result
        if not self.stages:
            self.before.append(Pass([result], [form]))
            return
        stage = self.stages[-1]
        values = {result: form, **{k: v for k, v in kept.items() if not _held(v)}}
        if stage.result:  # noise before the next evaluation: joins the pass where there is none yet
            last = stage.passes[-1]
            inside = dict(zip(last.outputs, last.forms, strict=True))
            if not last.noise:
                last.outputs.append(result)
                last.forms.append(form.substitute(inside))
            else:
                stage.passes.append(Pass([result], [form]))
        else:
            values.update({name: LinearForm.of(name) for name in self.definition})
            forms = [v.substitute(self.definition) for v in values.values()]
            stage.passes.append(Pass(list(values), forms))
        stage.result = result

    def plan(self) -> SolverPlan:
        run = self.run
        self.prune({self.stages[-1].result})
        return SolverPlan(
            run.name, run.method, run.points, run.prediction_type, self.stages, self.before
        )

    def prune(self, needed: set[str]) -> None:
        """Drops outputs that nothing reads beside `needed`."""
        run = self.run
        for stage in reversed(self.stages):
            for p in reversed(stage.passes):
                wanted = {o: f for o, f in zip(p.outputs, p.forms, strict=True) if o in needed}
                p.outputs, p.forms = list(wanted), [f.without_zeros() for f in wanted.values()]
                needed.update(n for f in p.forms for n in f.terms)
                if not all(math.isfinite(c) for f in p.forms for c in f.terms.values()):
                    a, b = run.points[stage.step : stage.step + 2]
                    raise ValueError(
                        f"solver_plan: {run.name} has no finite step from sigma/alpha "
                        f"{a.ratio:g} to {b.ratio:g}; choose another grid"
                    )
            stage.passes = [p for p in stage.passes if p.outputs]
            needed.add(stage.sample)


def _held(form: LinearForm) -> bool:
    """Whether the value exists already under a name of its own."""
    return form.symbol is not None and not is_noise(form.symbol)
