"""Several models along one trajectory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .._arrays import Array
from .plan import SolverPlan


class StitchedModel:
    """A model that is one of several, by the step of a plan (Pan et al. 2024, arXiv 2402.14167,
    T-Stitch: a small model for the first steps, at high noise).

        model = px.solvers.StitchedModel(plan, [small, large], [0.4])
        image = solver.sample(model, noise)

    Args:
        plan: whose evaluations it answers, in order; after the last it begins anew.
        models: called as model(x, time, ...).
        fractions: for every model but the last, its share of the steps; rounded cumulatively.

    `calls` counts the evaluations of each model.
    """

    def __init__(
        self,
        plan: SolverPlan,
        models: Sequence[Callable[..., Any]],
        fractions: Sequence[float],
    ) -> None:
        if len(models) != len(fractions) + 1 or min(fractions, default=0) < 0 or sum(fractions) > 1:
            raise ValueError(
                "StitchedModel: argument 'fractions' expected one number for each model but the "
                f"last, with a sum up to 1, got {list(fractions)} for {len(models)} models"
            )
        steps = plan.stages[-1].step + 1
        ends = [round(steps * sum(fractions[: i + 1])) for i in range(len(fractions))]
        self.models = list(models)
        self.timesteps = plan.timesteps
        self.assignment = [sum(stage.step >= end for end in ends) for stage in plan.stages]
        self.calls = [0] * len(models)
        self._at = 0

    def __call__(self, x: Array, time: float, *arguments: Any, **named: Any) -> Any:
        if time != self.timesteps[self._at]:
            raise ValueError(
                f"StitchedModel: evaluation {self._at} of the plan is at time "
                f"{self.timesteps[self._at]:g}, got {time:g}"
            )
        chosen = self.assignment[self._at]
        self._at = (self._at + 1) % len(self.timesteps)
        self.calls[chosen] += 1
        return self.models[chosen](x, time, *arguments, **named)

    def restart(self) -> None:
        """Forgets a run that was not finished."""
        self._at = 0
