"""DPM-Solver with steps as long as an error tolerance allows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Generator
from typing import Any

import numpy as np

from .._arrays import Array
from .method import Method, Step, Value
from .plan import Tracer, prepare
from .reductions import elements, host_moments
from .schedule import NoiseSchedule, Point
from .stepwise import Draws, run_step


def _pair(s: Step, x: Value, *, order: int) -> Generator[Any, Any, Any]:
    """DPM-Solver-2 or 3 (algorithms 4, 5 of arXiv 2206.00927) with the solution of one order less,
    from the same evaluations, as the state "low"."""

    def ahead(point: Point) -> Value:
        return x * (point.alpha / a.alpha) - e0 * (point.sigma * math.expm1(point.lam - a.lam))

    a, b, h = s.now, s.next, s.h
    e0 = yield x, a
    r1, r2 = (0.5, 0.0) if order == 2 else (1 / 3, 2 / 3)
    p1 = s.schedule.at_lambda(a.lam + r1 * h)
    e1 = yield ahead(p1), p1
    second = ahead(b) - (e1 - e0) * (b.sigma * math.expm1(h) / (2 * r1))
    if order == 2:
        return second, {"low": ahead(b)}
    p2 = s.schedule.at_lambda(a.lam + r2 * h)
    grow = math.expm1(r2 * h)
    middle = ahead(p2) - (e1 - e0) * (p2.sigma * r2 / r1 * (grow / (r2 * h) - 1))
    e2 = yield middle, p2
    third = ahead(b) - (e2 - e0) * (b.sigma / r2 * (math.expm1(h) / h - 1))
    return third, {"low": second}


class AdaptiveSolver:
    """DPM-Solver-12 and -23 with adaptive steps in lambda (Lu et al. 2022, arXiv 2206.00927,
    appendix C; the PID control of k-diffusion's sample_dpm_adaptive).

    Args:
        schedule: of the model.
        order: 3 (an embedded 2) or 2 (an embedded 1).
        rtol, atol: of the local error, the root mean square difference of both solutions over
            max(atol, rtol * the root mean square of the sample before or after). k-diffusion takes
            that maximum per element, this class per sample.
        start, end: levels sigma / alpha (a flow's sigma) between which it runs; None: the
            schedule's largest and smallest. `end` must be above 0.
        step: first step in lambda.
        pcoeff, icoeff, dcoeff, safety: of the control; a step is kept when the factor for the next
            is at least `safety`.
        prediction_type, clip_sample, threshold: as `solver_plan`.
        max_evaluations: RuntimeError beyond.

    `evaluations`, `accepted` and `rejected` count what the last run did. The batch shares its
    steps: the error is the root mean square over it.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        *,
        order: int = 3,
        rtol: float = 0.05,
        atol: float = 0.0078,
        start: float | None = None,
        end: float | None = None,
        step: float = 0.05,
        pcoeff: float = 0.0,
        icoeff: float = 1.0,
        dcoeff: float = 0.0,
        safety: float = 0.81,
        prediction_type: str = "epsilon",
        clip_sample: float | None = None,
        threshold: dict[str, float] | None = None,
        max_evaluations: int = 10_000,
    ) -> None:
        if order not in (2, 3):
            raise ValueError(f"AdaptiveSolver: argument 'order' expected 2 or 3, got {order}")
        for name, value in (("rtol", rtol), ("atol", atol), ("step", step), ("safety", safety)):
            if not value > 0:
                raise ValueError(f"AdaptiveSolver: argument '{name}' expected > 0, got {value}")
        high = schedule.sigma_max if start is None else start
        low = schedule.sigma_min if end is None else end
        if not 0 < low < high:
            raise ValueError(
                f"AdaptiveSolver: expected 0 < end < start, got start {high:g} and end {low:g}"
            )
        run = prepare(
            "dpm_solver_2s", schedule, [high, low], prediction_type=prediction_type,
            clip_sample=clip_sample, threshold=threshold,
        )  # fmt: skip
        pair = Method("dpm_solver_pair", _pair, "noise", order, 0, "", {}, False)
        self._run = dataclasses.replace(run, method=pair, options={"order": order})
        self.order, self.rtol, self.atol, self.first = order, rtol, atol, step
        k = order
        self._powers = np.array([pcoeff + icoeff + dcoeff, -(pcoeff + 2 * dcoeff), dcoeff]) / k
        self.safety, self.max_evaluations = safety, max_evaluations
        self.evaluations = self.accepted = self.rejected = 0

    @property
    def points(self) -> list[Point]:
        """Where a run starts and ends."""
        return self._run.points

    def error(self, low: Array, high: Array, before: Array) -> float:
        """What the tolerance allows is 1."""
        n = elements(low)
        difference, earlier = host_moments(low, high), host_moments(before, before)
        squares = difference[:, 2] + difference[:, 3] - 2 * difference[:, 4]
        rms = np.sqrt(np.maximum(difference[:, 2], earlier[:, 2]) / n)
        allowed = np.maximum(self.atol, self.rtol * rms)
        return float(np.sqrt(np.mean(np.maximum(squares, 0) / n / allowed**2)))

    def sample(self, model: Callable[[Array, float], Array], x: Array) -> Array:
        """From noise of the level `start` to a sample of the level `end`."""
        now, goal = self.points
        h, errors = self.first, [1.0, 1.0]
        output: Array | None = None
        self.evaluations = self.accepted = self.rejected = 0
        while goal.lam - now.lam > 1e-9:
            h = min(h, goal.lam - now.lam)
            last = now.lam + h >= goal.lam - 1e-9
            after = goal if last else self._run.schedule.at_lambda(now.lam + h)
            tracer = Tracer(dataclasses.replace(self._run, points=[now, after], orders=[1]))
            values = {tracer.sample: x}
            saved = 0 if output is None else 1
            output = run_step(tracer, 0, values, model, Draws(), output)
            self.evaluations += self.order - saved
            if self.evaluations > self.max_evaluations:
                raise RuntimeError(
                    f"AdaptiveSolver: more than {self.max_evaluations} evaluations at "
                    f"sigma / alpha {now.ratio:g}; loosen rtol and atol"
                )
            high = values[tracer.sample]
            error = self.error(values["low@0"], high, x)
            if not math.isfinite(error):
                raise ValueError(f"AdaptiveSolver: samples not finite below {now.ratio:g}")
            inverse = 1 / (np.array([error, *errors]) + 1e-8)
            factor = 1 + math.atan(float(np.prod(inverse**self._powers)) - 1)
            if factor >= self.safety:
                x, now, output = high, after, None
                errors = [error, errors[0]]
                self.accepted += 1
            else:
                self.rejected += 1
            h *= factor
        return x
