"""Time-Shift sampling: a step starts at the time that its sample's variance belongs to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .._arrays import Array
from .plan import Tracer, prepare
from .reductions import elements, host_moments
from .schedule import NoiseSchedule, Point
from .stateless import Noise
from .stepwise import Draws, run_step


class TimeShiftSolver:
    """Any solver with shifted time steps (Li et al. 2024, arXiv 2305.15583, algorithm 2).

    Before each step but the first the sample's variance is measured; the step is made as if the
    sample were at the time, out of a window around the planned one, whose variance
    sigma^2 + alpha^2 data_variance is nearest. The solver's next point stays the planned one.

        solver = px.solvers.TimeShiftSolver("ddim", schedule, "leading", steps=10, window=20)
        image = solver.sample(model, noise)

    Args:
        name, schedule, sigmas, arguments: as `solver_plan`.
        window: width of the window in model times; candidates are whole times in it.
        cutoff: steps that start at a time not above it are made as planned.
        data_variance: of the elements of the data; 0 is the paper's comparison with 1 - alpha_bar.
        seed, offset, noise: as `Solver`.

    The measured variance is that of a sample's elements, averaged over the batch: the batch shares
    its times. `shifts` holds the planned and the chosen time of every step of the last run.
    """

    def __init__(
        self,
        name: str,
        schedule: NoiseSchedule,
        sigmas: Any = None,
        *,
        window: float,
        cutoff: float = 0.0,
        data_variance: float = 0.0,
        seed: int = 0,
        offset: int = 0,
        noise: Noise | None = None,
        **arguments: Any,
    ) -> None:
        if not (schedule.ratios or schedule.kind == "flow"):
            raise ValueError(
                "TimeShiftSolver: argument 'schedule' expected counted times (kind vp or flow), "
                f"got kind {schedule.kind!r}"
            )
        if not window >= 0:
            raise ValueError(f"TimeShiftSolver: argument 'window' expected >= 0, got {window}")
        self.window, self.cutoff, self.data_variance = window, cutoff, data_variance
        self.seed, self.offset, self.noise = seed, offset, noise
        self._prepare = lambda: prepare(name, schedule, sigmas, **arguments)
        self.points = self._prepare().points
        self.shifts: list[tuple[float, float]] = []

    def candidates(self, previous: Point, now: Point, after: Point) -> list[Point]:
        """Points of the whole times in the window, strictly between the neighbouring points."""
        schedule, half = self._prepare().schedule, self.window / 2
        last = len(schedule.ratios) - 1 if schedule.ratios else schedule.num_train_timesteps
        offsets = np.arange(-np.floor(half), np.floor(half) + 1)
        times = [t for t in now.time + offsets if 0 <= t <= last]
        points = [now, *(schedule.at_time(float(t)) for t in times)]
        return [p for p in points if previous.ratio > p.ratio > after.ratio]

    def choose(self, x: Array, previous: Point, now: Point, after: Point) -> Point:
        """The candidate whose variance is nearest to that of x."""
        m, n = host_moments(x, x), elements(x)
        variance = float(np.mean((m[:, 2] - m[:, 0] ** 2 / n) / max(n - 1, 1)))

        def distance(p: Point) -> float:
            return abs(variance - p.sigma**2 - p.alpha**2 * self.data_variance)

        return min(self.candidates(previous, now, after), key=distance)

    def sample(self, model: Callable[[Array, float], Array], x: Array) -> Array:
        """Runs all steps; `model(x, time)` gives the output."""
        run = self._prepare()
        tracer = Tracer(run)
        values: dict[str, Array] = {tracer.sample: x}
        draws = Draws(self.seed, self.offset, self.noise)
        self.shifts = []
        for index in range(len(run.points) - 1):
            planned = run.points[index]
            if index and planned.time > self.cutoff:
                run.points[index] = self.choose(
                    values[tracer.sample], run.points[index - 1], planned, run.points[index + 1]
                )
            self.shifts.append((planned.time, run.points[index].time))
            run_step(tracer, index, values, model, draws)
        return values[tracer.sample]
