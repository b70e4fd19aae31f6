"""What a solver is: a generator that does plain arithmetic on named values, and its registry.

A description is a generator function. It is called once per step with a `Step` and the sample; it
yields (sample, point) wherever the model is to be evaluated and receives the model's prediction,
converted to the kind the method declares: "noise", "sample", "velocity" (noise - sample),
"derivative" (of x / scale by `Step.u`: the noise, for flows the velocity) or "both" (sample and
noise). It returns the sample of the next step, or that and a dict of values that later steps find
in `Step.state`:

    @method("heun", prediction="derivative", order=2, source="Karras et al. 2022, algorithm 1")
    def heun(s, x):
        d = yield x, s.now
        if s.next.sigma == 0:
            return s.move(x, d)
        ahead = yield s.move(x, d), s.next
        return s.move(x, (d + ahead) / 2)

The values may be `LinearForm`s (the tracer) or arrays (the reference): the text is the same.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .schedule import NoiseSchedule, Point, choose

if TYPE_CHECKING:
    from .plan import Run

Value = Any  # a LinearForm while a plan is traced, an array in the reference
Result = Any  # Value, or (Value, dict of Values)
Description = Callable[..., Generator[tuple[Value, Point], Value, Result]]

PREDICTIONS = ("noise", "sample", "velocity")


@dataclass(frozen=True)
class Method:
    """A registered solver.

    order: of convergence with exact history; for methods with an `order` option its default.
    history: how many earlier predictions a step may look at; None: order - 1.
    """

    name: str
    function: Description
    prediction: str
    order: int
    history: int | None
    source: str
    options: dict[str, Any]
    multistep: bool

    def __call__(self, step: Step, x: Value) -> Generator[tuple[Value, Point], Value, Result]:
        return self.function(step, x, **step.options)


METHODS: dict[str, Method] = {}
ALIASES: dict[str, tuple[str, dict[str, Any]]] = {}


def method(
    name: str,
    *,
    prediction: str,
    order: int,
    source: str,
    history: int | None = 0,
    **aliases: dict[str, Any],
) -> Callable[[Description], Description]:
    """Registers a description. Keyword-only parameters of the function are its options, and
    `aliases` maps further names to options, as dpmpp_2m={"order": 2}."""

    def register(function: Description) -> Description:
        options = {
            p.name: p.default
            for p in inspect.signature(function).parameters.values()
            if p.kind is p.KEYWORD_ONLY
        }
        METHODS[name] = Method(
            name, function, prediction, order, history, source, options, history != 0
        )
        for alias, values in aliases.items():
            ALIASES[alias] = (name, values)
        return function

    return register


def find_method(name: str, options: dict[str, Any]) -> tuple[Method, dict[str, Any]]:
    """The method of a name or alias and its full options; errors list what is valid."""
    choose(name, sorted({*METHODS, *ALIASES}), "solver_plan", "name")
    base, preset = ALIASES.get(name, (name, {}))
    found = METHODS[base]
    for option in options:
        if option not in found.options:
            valid = ", ".join(found.options) or "none"
            raise ValueError(
                f"solver_plan: {name} has no option '{option}', expected one of: {valid}"
            )
    return found, {**found.options, **preset, **options}


class Step:
    """One step of a run, as a description sees it.

    order: how many predictions the step may use, warm-up and end considered. past: predictions of
    earlier steps with their points, latest first. state: what the step before returned beside the
    sample.
    """

    def __init__(
        self,
        run: Run,
        index: int,
        past: list[tuple[Value, Point]],
        state: dict[str, Value],
        draw: Callable[[int], Value],
    ) -> None:
        self.index, self.past, self.state = index, past, state
        self.points, self.schedule, self.options = run.points, run.schedule, run.options
        self.order, self.orders = run.orders[index], run.orders
        self.consistent = run.compat == "consistent"  # not diffusers' numbers where they differ
        self._velocity = run.prediction == "velocity"
        self._draw, self._drawn = draw, 0

    @property
    def now(self) -> Point:
        return self.points[self.index]

    @property
    def next(self) -> Point:
        return self.points[self.index + 1]

    @property
    def previous(self) -> Point:
        return self.points[self.index - 1]

    @property
    def last(self) -> bool:
        return self.index == len(self.points) - 2

    @property
    def h(self) -> float:
        """lambda of the next point minus lambda of this one."""
        return self.next.lam - self.now.lam

    def replaced(self, **changes: Any) -> Step:
        """A copy with other attributes, for descriptions that run another one inside."""
        step = copy.copy(self)
        vars(step).update(changes)
        return step

    def nodes(self, m0: Value) -> list[tuple[Value, Point]]:
        """The predictions this step may use, latest first, m0 at `now` among them."""
        return [(m0, self.now), *self.past][: self.order]

    def noise(self) -> Value:
        """Standard normal noise, independent at every call."""
        self._drawn += 1
        return self._draw(self._drawn - 1)

    def u(self, point: Point) -> float:
        """The variable in which the probability flow is a plain ODE d(x / scale)/du = derivative:
        sigma / alpha with scale alpha for noise; sigma with scale 1 for the velocity of flows."""
        return point.sigma if self._velocity else point.ratio

    def at_u(self, u: float) -> Point:
        """The point with this u, for evaluations between grid points."""
        return self.schedule.at_sigma(u) if self._velocity else self.schedule.at_ratio(u)

    def scale(self, point: Point) -> float:
        return 1.0 if self._velocity else point.alpha

    def move(
        self, x: Value, derivative: Value, start: Point | None = None, end: Point | None = None
    ) -> Value:
        """From one point (`now`) to another (`next`) along a constant derivative."""
        a, b = start or self.now, end or self.next
        stretch = self.scale(b) / self.scale(a) if self.scale(a) else math.inf
        return x * stretch + derivative * (self.scale(b) * (self.u(b) - self.u(a)))


def conversion(
    schedule: NoiseSchedule, prediction_type: str, wanted: str, point: Point
) -> tuple[float, float]:
    """(a, b) with prediction = a * x + b * model_output at `point`.

    From x = alpha x0 + sigma noise and output = p x0 + q noise, solved for what is wanted:
    "sample" x0, "noise", or "velocity" noise - x0.
    """
    choose(wanted, PREDICTIONS, "solver", "prediction")
    p, q = schedule.prediction(prediction_type, point)
    alpha, sigma = point.alpha, point.sigma
    determinant = alpha * q - sigma * p
    if determinant == 0 or not math.isfinite(determinant):
        raise ValueError(
            f"solver_plan: prediction_type {prediction_type!r} says nothing about the "
            f"{wanted} at alpha {alpha:g}, sigma {sigma:g}; choose a grid without that point, or "
            "a model with v_prediction"
        )
    sample = (q / determinant, -sigma / determinant)
    noise = (-p / determinant, alpha / determinant)
    if wanted == "sample":
        return sample
    if wanted == "noise":
        return noise
    return noise[0] - sample[0], noise[1] - sample[1]


def is_noise(name: str) -> bool:
    """Whether a value is fresh normal noise."""
    return name.startswith("noise ")
