"""Editing without inversion: the denoising diffusion consistent model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .. import ops
from .._arrays import Array, empty, shape
from .grids import points
from .method import conversion
from .schedule import PREDICTION_TYPES, NoiseSchedule, choose


class ConsistentEditor:
    """Source and target side by side, the source held to its image (Xu et al. 2024, arXiv
    2312.04965, InfEdit: DDCM with virtual inversion, algorithm 2).

    The noise that leads from the source's image to its sample is known, so nothing is inverted: the
    target's predicted sample is the image plus the difference of both branches, and both branches
    take the same step.

        edit = px.solvers.ConsistentEditor(schedule, "leading", steps=12)
        source, target = edit.start(image)
        for t in edit.timesteps:
            source, target = edit.step(model(source, t, old), model(target, t, new))
        result = edit.prediction

    Args:
        schedule, sigmas, timesteps, steps, grid: as `solver_plan`; the last level is 0.
        eta: share of the next level's variance that is fresh noise; 1, the paper's, is multistep
            consistency sampling.
        prediction_type: of the model.
        seed, offset: of the noise.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        sigmas: str | Sequence[float] | None = None,
        *,
        timesteps: Sequence[float] | None = None,
        steps: int | None = None,
        grid: dict[str, float] | None = None,
        eta: float = 1.0,
        prediction_type: str = "epsilon",
        seed: int = 0,
        offset: int = 0,
    ) -> None:
        choose(prediction_type, PREDICTION_TYPES, "ConsistentEditor", "prediction_type")
        if not 0 <= eta <= 1:
            raise ValueError(f"ConsistentEditor: argument 'eta' expected in [0, 1], got {eta}")
        self.points = points(
            schedule, sigmas, timesteps=timesteps, steps=steps, final="zero", **(grid or {})
        )
        if self.points[0].alpha == 0:
            raise ValueError("ConsistentEditor: start the grid where alpha is above 0")
        self.schedule, self.eta, self.prediction_type = schedule, eta, prediction_type
        self.seed, self.offset = seed, offset
        self.index = 0
        self.prediction: Array = None  # the edited image as predicted by the last step
        self._image: Array = None
        self._pair: list[Array] = []

    @property
    def timesteps(self) -> list[float]:
        """What the model is told at each step."""
        return [p.time for p in self.points[:-1]]

    def start(self, image: Array) -> tuple[Array, Array]:
        """The source's and the target's first sample: the image at the first level, the same."""
        size = shape(image, "ConsistentEditor", "image")
        first = self.points[0]
        self._image, self.index = image, 0
        self._pair = [empty(image, size), empty(image, size)]
        self.prediction = empty(image, size)
        ops.lincomb(
            [image], (first.alpha, first.alpha), out=self._pair, noise_scale=(first.sigma,) * 2,
            seed=self.seed, offset=self.offset,
        )  # fmt: skip
        return self._pair[0], self._pair[1]

    def step(self, source_output: Array, target_output: Array) -> tuple[Array, Array]:
        """The model's answers in, the next samples out; after the last step both end, the target
        as `prediction`."""
        if not self._pair or self.index >= len(self.points) - 1:
            raise ValueError("ConsistentEditor.step: call start(image) first, then once per time")
        now, after = self.points[self.index : self.index + 2]
        a, b = conversion(self.schedule, self.prediction_type, "noise", now)
        fresh = self.eta * after.sigma**2
        kept = math.sqrt(after.sigma**2 - fresh)
        # Columns: image, source, target, both outputs. The target's predicted sample:
        k, d = (1 - now.sigma * a) / now.alpha, now.sigma * b / now.alpha
        predicted = [1.0, -k, k, d, -d]
        # The noise of the source's sample and the difference of the predicted noises:
        direction = [-now.alpha / now.sigma, 1 / now.sigma - a, a, -b, b]
        image = [1.0, 0.0, 0.0, 0.0, 0.0]
        source = [after.alpha * i + kept * n for i, n in zip(image, direction, strict=True)]
        target = [after.alpha * i + kept * n for i, n in zip(predicted, direction, strict=True)]
        noise = math.sqrt(fresh)
        ops.lincomb(
            [self._image, *self._pair, source_output, target_output],
            (*source, *target, *predicted),
            out=[*self._pair, self.prediction],
            noise_scale=(noise, noise, 0.0) if noise else None,
            seed=self.seed, offset=self.offset + 1 + self.index,
        )  # fmt: skip
        self.index += 1
        return self._pair[0], self._pair[1]

    def edit(self, model: Any, image: Array, source: Any, target: Any) -> Array:
        """The whole run: `model(x, time, condition)` for both conditions; returns the edit."""
        x, y = self.start(image)
        for t in self.timesteps:
            x, y = self.step(model(x, t, source), model(y, t, target))
        return self.prediction
