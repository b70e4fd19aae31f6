"""Guidance by a classifier that is only evaluated, never differentiated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .._arrays import Array, is_torch
from ..solvers.linear_form import LinearForm
from ..solvers.schedule import Point
from .base import Guidance
from .weighting import Number, check_number, scale_of

Rule = Callable[[Array, Array], Array]  # p(target), p(reference) -> scale, each (B,)


class GradientFreeClassifierGuidance(Guidance):
    """reference + w * (cond - reference), where reference is the model's output for the class with
    which a classifier confuses the sample most, and w its per-sample scale (after Shenoy et al.
    2024, arXiv 2411.15393).

    From the paper: the combination, the reference class chosen anew at each evaluation by a
    classifier in inference mode, a scale per sample that follows its confusion. Not included: the
    classifier, decoding the predicted sample for it, the mixture with autoguidance, and the paper's
    own formula and constants of the scale; `rule` takes any, and the default is the plain
    1 + (scale - 1) * (1 - p(target)): no guidance where the classifier is certain, `scale` where
    it gives the target no chance.

        reference = guidance.update(probabilities, target)      # (B,) classes
        x = solver.step(model(x, t, target), model(x, t, reference))

    Args:
        scale: number, the largest scale of the default rule.
        rule: (p_target, p_reference) -> scale, arrays (B,) float64; takes the place of the default.
        interval, interval_in: see `Guidance`.

    `names`: cond, reference. Without an `update` the scale of the one before holds; a run begins
    with `scale` for every sample.
    """

    names = ("cond", "reference")

    def __init__(self, scale: float, *, rule: Rule | None = None, **interval: Any) -> None:
        super().__init__(check_number(scale, self.where, "scale", 0.0), **interval)
        self.rule = rule
        self._current: Number = self.scale

    def reset(self) -> None:
        self._current = self.scale

    def scale_at(self, stage: int, point: Point) -> Number:
        return self._current

    def form(self, stage: int, point: Point) -> LinearForm | None:
        return None if self.active(point) else LinearForm.of("cond")

    def combine(self, stage: int, point: Point, outputs: Any, sample: Array) -> Any:
        if isinstance(self._current, float):
            size = outputs[0].shape[0]
            self._current = np.full(size, self._current)
        return super().combine(stage, point, outputs, sample)

    def update(self, probabilities: Array, target: Array) -> Array:
        """Sets the scale of each sample and returns its reference class.

        Args:
            probabilities: (B, K) of the classifier for the predicted samples.
            target: (B,) integers in [0, K).

        Returns:
            (B,) int64: the most probable class other than the target.
        """
        where = f"{self.where}.update"
        if getattr(probabilities, "ndim", 0) != 2 or probabilities.shape[1] < 2:
            raise ValueError(
                f"{where}: argument 'probabilities' expected shape (B, K) with K >= 2, "
                f"got {tuple(getattr(probabilities, 'shape', ()))}"
            )
        batch = probabilities.shape[0]
        if tuple(target.shape) != (batch,):
            raise ValueError(
                f"{where}: argument 'target' expected shape ({batch},), got {tuple(target.shape)}"
            )
        if is_torch(probabilities):
            p = probabilities.detach().double().clone()
            rows = target.new_ones(batch).cumsum(0) - 1
        else:
            p, rows = np.array(probabilities, np.float64), np.arange(batch)
        own = p[rows, target]
        p[rows, target] = -1.0
        reference = p.argmax(1)
        other = p[rows, reference]
        if self.rule is not None:
            scale = self.rule(own, other)
        else:
            scale = 1.0 + (self.scale - 1.0) * (1.0 - own)
        self._current = scale_of(scale, where, "rule")
        return reference
