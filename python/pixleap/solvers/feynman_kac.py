"""Feynman-Kac correctors: annealed, guided and product distributions by weighted particles."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import ops
from .._arrays import Array, empty, shape
from .grids import points
from .method import conversion
from .reductions import host_moments
from .schedule import PREDICTION_TYPES, NoiseSchedule, choose


class FeynmanKacSampler:
    """Samples of prod q_i^exponent_i from the scores of the q_i (Skreta et al. 2025, arXiv
    2503.02819, propositions 3.1 to 3.3, without tempered noise).

    The reverse SDE with the score S = sum exponent_i s_i does not keep the marginals of that
    product; particles carry log-weights d log w = g^2 / 2 (|S|^2 - sum exponent_i |s_i|^2) dt that
    make good for it and are resampled systematically. Annealing has one model and its exponent (the
    inverse temperature); classifier-free guidance (1 - w, w) for (unconditional, conditional); a
    product of experts (1, 1).

    Written for y = x / alpha, for which every schedule is the variance-exploding SDE in
    rho = sigma / alpha; a step from rho to rho' uses (rho^2 - rho'^2) / rho of the predicted noise,
    so that a last step to 0 ends at the predicted sample.

    Args:
        schedule, sigmas, timesteps, steps, final, grid: as `solver_plan`.
        exponents: one for each model output; their sum must be positive.
        prediction_type: of the models.
        particles: how many samples that follow each other in the batch are one population; None:
            the whole batch.
        threshold: a population is resampled when its effective sample size falls below this
            fraction of the particles; 1 always, 0 never.
        seed, offset: of the noise.

    `log_weights` (B,) float64 are the normalised logarithms; `step` resets those it resamples.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        sigmas: Any = None,
        *,
        exponents: Sequence[float],
        timesteps: Any = None,
        steps: int | None = None,
        final: str = "zero",
        grid: dict[str, float] | None = None,
        prediction_type: str = "epsilon",
        particles: int | None = None,
        threshold: float = 0.5,
        seed: int = 0,
        offset: int = 0,
    ) -> None:
        choose(prediction_type, PREDICTION_TYPES, "FeynmanKacSampler", "prediction_type")
        self.exponents = np.asarray(exponents, np.float64)
        if self.exponents.ndim != 1 or not self.exponents.sum() > 0:
            raise ValueError(
                "FeynmanKacSampler: argument 'exponents' expected numbers with a positive sum, "
                f"got {exponents}"
            )
        if not 0 <= threshold <= 1:
            raise ValueError(
                f"FeynmanKacSampler: argument 'threshold' expected in [0, 1], got {threshold}"
            )
        self.points = points(
            schedule, sigmas, timesteps=timesteps, steps=steps, final=final, **(grid or {})
        )
        if self.points[0].alpha == 0:
            raise ValueError("FeynmanKacSampler: start the grid where alpha is above 0")
        self.schedule, self.prediction_type = schedule, prediction_type
        self.particles, self.threshold = particles, threshold
        self.seed, self.offset = seed, offset
        self.index = 0
        self.log_weights = np.zeros(0)
        self._x: Array = None

    @property
    def timesteps(self) -> list[float]:
        """What the models are told at each step."""
        return [p.time for p in self.points[:-1]]

    def initial_noise(self, like: Array) -> Array:
        """Normal noise of the product at the first point: sigma / sqrt(sum of exponents)."""
        x = ops.random_normal(
            shape(like, "FeynmanKacSampler", "like"),
            seed=self.seed,
            offset=self.offset + (1 << 40),
            like=like,
        )
        scale = self.points[0].sigma / math.sqrt(float(self.exponents.sum()))
        return ops.lincomb([x], (scale,), out=[x])[0]

    def start(self, x: Array) -> Array:
        """Begins a run; see `initial_noise`."""
        count = shape(x, "FeynmanKacSampler", "x")[0]
        if count % (self.particles or count):
            raise ValueError(
                f"FeynmanKacSampler: a batch of {count} does not divide into populations of "
                f"{self.particles}"
            )
        self._x, self.index = x, 0
        self.log_weights = np.full(count, -math.log(self.particles or count))
        return x

    def step(self, *outputs: Array) -> Array:
        """One output for each exponent in, the next model input out."""
        if self._x is None or self.index >= len(self.points) - 1:
            raise ValueError("FeynmanKacSampler.step: call start(x) first, then once per time")
        if len(outputs) != len(self.exponents):
            raise ValueError(
                f"FeynmanKacSampler.step: expected {len(self.exponents)} outputs, "
                f"got {len(outputs)}"
            )
        now, after = self.points[self.index : self.index + 2]
        a, b = conversion(self.schedule, self.prediction_type, "noise", now)
        spent = now.ratio**2 - after.ratio**2
        self.log_weights += 0.5 * spent / now.ratio**2 * self._excess(self._x, outputs, a, b)
        c = -after.alpha * spent / now.ratio
        keep = after.alpha / now.alpha + c * a * float(self.exponents.sum())
        x = empty(self._x, tuple(self._x.shape))
        ops.lincomb(
            [self._x, *outputs], (keep, *(c * b * self.exponents).tolist()), out=[x],
            noise_scale=(after.alpha * math.sqrt(spent) if after.sigma else 0.0,),
            seed=self.seed, offset=self.offset + 2 * self.index,
        )  # fmt: skip
        self._x = self._resample(x)
        self.index += 1
        return self._x

    def _excess(self, x: Array, outputs: Sequence[Array], a: float, b: float) -> np.ndarray:
        """|sum e_i n_i|^2 - sum e_i |n_i|^2 of the predicted noises n_i = a x + b output_i."""
        own = [host_moments(x, o) for o in outputs]
        squared: Any = -sum(
            e * (a * a * m[:, 2] + b * b * m[:, 3] + 2 * a * b * m[:, 4])
            for e, m in zip(self.exponents, own, strict=True)
        )
        for i, ei in enumerate(self.exponents):
            for j, ej in enumerate(self.exponents[: i + 1]):
                m = own[i][:, 3] if i == j else host_moments(outputs[i], outputs[j])[:, 4]
                product = a * a * own[i][:, 2] + a * b * (own[i][:, 4] + own[j][:, 4]) + b * b * m
                squared = squared + (1 if i == j else 2) * ei * ej * product
        return squared

    def _resample(self, x: Array) -> Array:
        log = self.log_weights.reshape(-1, self.particles or len(self.log_weights))
        log -= log.max(axis=1, keepdims=True)
        log -= np.log(np.exp(log).sum(axis=1, keepdims=True))
        n = log.shape[1]
        size = 1 / (np.exp(2 * log).sum(axis=1) * n)
        again = (size < self.threshold) | (self.threshold == 1)
        offset = self.offset + 2 * self.index + 1
        chosen = ops.systematic_resample(log, seed=self.seed, offset=offset)
        chosen = np.where(again[:, None], chosen, np.arange(n))
        rows = (chosen + np.arange(len(log))[:, None] * n).reshape(-1)
        log[again] = -math.log(n)
        self.log_weights = log.reshape(-1)
        return x[rows.tolist()] if again.any() else x

    def sample(self, model: Callable[[Array, float], Any], x: Array) -> Array:
        """Runs all steps: `model(x, time)` gives as many outputs as there are exponents."""
        x = self.start(x)
        for t in self.timesteps:
            answer = model(x, t)
            x = self.step(*answer) if isinstance(answer, (tuple, list)) else self.step(answer)
        return x
