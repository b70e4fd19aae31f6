"""Samplers with Langevin steps: predictor-corrector and denoising MCMC."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import ops
from .._arrays import Array, empty
from .method import conversion
from .plan import solver_plan
from .reductions import host_moments, per_sample
from .schedule import NoiseSchedule, Point
from .solver import Solver

CORRECTOR_OFFSET = 1 << 39  # apart from the plan's noises and from initial_noise


class PredictorCorrector:
    """Langevin steps between the steps of a predictor (Song et al. 2021, arXiv 2011.13456,
    algorithms 2 to 5 and appendix G; repository yang-song/score_sde).

    Before each predictor step `corrector_steps` times x += e score + sqrt(2 e) z with
    e = 2 a (snr |z| / |score|)^2, the norms averaged over the batch; a is 1 for VE and 1 - beta of
    the time for VP.

    Args:
        schedule: of kind vp or ve.
        sigmas, arguments: grid, prediction_type and the like of `solver_plan`.
        predictor: a solver; "none" for Langevin steps alone (annealed Langevin dynamics).
        snr: signal-to-noise ratio of the corrector.
        seed, offset: of the noise.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        sigmas: Any = None,
        *,
        predictor: str = "reverse_diffusion",
        snr: float = 0.16,
        corrector_steps: int = 1,
        seed: int = 0,
        offset: int = 0,
        **arguments: Any,
    ) -> None:
        if schedule.kind not in ("vp", "ve"):
            raise ValueError(
                f"PredictorCorrector: expected a schedule of kind vp or ve, got {schedule.kind!r}"
            )
        if not snr > 0 or corrector_steps < 0:
            raise ValueError(
                "PredictorCorrector: expected snr > 0 and corrector_steps >= 0, "
                f"got {snr} and {corrector_steps}"
            )
        name = "ddim" if predictor == "none" else predictor
        self.schedule, self.snr, self.corrector_steps = schedule, snr, corrector_steps
        self.plan = solver_plan(name, schedule, sigmas, **arguments)
        self.predict = predictor != "none"
        self.seed, self.offset = seed, offset
        self._solver = Solver(self.plan, seed=seed, offset=offset)
        self._drawn = 0

    def _scale(self, point: Point) -> float:
        if self.schedule.kind == "ve":
            return 1.0
        time = round(point.time)
        before = self.schedule.at_time(time - 1).alpha if time > 0 else 1.0
        return (self.schedule.at_time(time).alpha / before) ** 2

    def correct(self, x: Array, output: Array, point: Point) -> Array:
        """One Langevin step, written into x."""
        a, b = conversion(self.schedule, self.plan.prediction_type, "noise", point)
        z = ops.random_normal(
            tuple(x.shape), seed=self.seed, offset=self.offset + CORRECTOR_OFFSET + self._drawn,
            like=x,
        )  # fmt: skip
        self._drawn += 1
        m = host_moments(x, output)
        score = np.sqrt(a * a * m[:, 2] + b * b * m[:, 3] + 2 * a * b * m[:, 4]) / point.sigma
        noise = np.sqrt(host_moments(z, z)[:, 2])
        step = 2 * self._scale(point) * (self.snr * noise.mean() / score.mean()) ** 2
        c = -float(step) / point.sigma
        ops.lincomb([x, output, z], (1 + c * a, c * b, math.sqrt(2 * step)), out=[x])
        return x

    def sample(self, model: Callable[[Array, float], Array], x: Array) -> Array:
        """Runs the whole plan from noise x, which stays as it is."""
        start = ops.lincomb([x], (1.0,), out=[empty(x, tuple(x.shape))])[0]
        x, self._drawn, before = self._solver.start(start), 0, -1
        for stage in self.plan.stages:
            if stage.step != before:
                before = stage.step
                for _ in range(self.corrector_steps):
                    x = self.correct(x, model(x, stage.point.time), stage.point)
            if self.predict:
                x = self._solver.step(model(x, stage.point.time))
        return x


class DenoisingMCMC:
    """Denoising Langevin Gibbs: a Markov chain over samples and their noise levels, whose states a
    solver denoises (Kim and Ye 2023, arXiv 2209.14593, section 3.2).

    Chains stay near the data, so that few steps denoise them. `step` alternates a Langevin step of
    x at its level and a draw of the level from its posterior given x; the noise level's prior is
    whatever `log_posterior` holds.

    Args:
        schedule: of the model.
        levels: decreasing levels sigma / alpha (a flow's sigma) above 0.
        log_posterior: x -> (B, levels) log-probabilities of the levels up to a constant; the
            paper's is a noise level classifier.
        step_size: the Langevin step is step_size * sigma^2 / 2, so 2 is a full score step.
        prediction_type: of the model.
        seed, offset: of the noise.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        levels: Sequence[float],
        log_posterior: Callable[[Array], Array],
        *,
        step_size: float = 0.5,
        prediction_type: str = "epsilon",
        seed: int = 0,
        offset: int = 0,
    ) -> None:
        numbers = [float(v) for v in levels]
        if not numbers or numbers[-1] <= 0 or numbers != sorted(set(numbers), reverse=True):
            raise ValueError(
                f"DenoisingMCMC: argument 'levels' expected to decrease and stay above 0, "
                f"got {numbers}"
            )
        if not step_size > 0:
            raise ValueError(f"DenoisingMCMC: argument 'step_size' expected > 0, got {step_size}")
        self.schedule, self.levels, self.step_size = schedule, numbers, step_size
        self.points = [schedule.at_sigma(s) for s in numbers]
        self.log_posterior, self.prediction_type = log_posterior, prediction_type
        self.seed, self.offset = seed, offset
        self._kinds = np.array(
            [conversion(schedule, prediction_type, "noise", p) for p in self.points]
        )
        self._drawn = 0

    def _offset(self) -> int:
        self._drawn += 1
        return self.offset + self._drawn - 1

    def times(self, level: np.ndarray, like: Array) -> Array:
        """(B,) times of the model for a (B,) array of level indices."""
        return per_sample(np.array([p.time for p in self.points])[level], like)

    def step(
        self, model: Callable[[Array, Array], Array], x: Array, level: np.ndarray
    ) -> tuple[Array, np.ndarray]:
        """One step of all chains; `model(x, times)` with a time for every sample. x is written."""
        output = model(x, self.times(level, x))
        sigma = np.array([p.sigma for p in self.points])[level]
        a, b = self._kinds[level].T
        c = -self.step_size * sigma / 2
        table = np.stack([1 + c * a, c * b], axis=1)[:, None, :]
        ops.lincomb(
            [x, output], per_sample(table, x), out=[x],
            noise_scale=per_sample(sigma[:, None] * math.sqrt(self.step_size), x),
            seed=self.seed, offset=self._offset(),
        )  # fmt: skip
        return x, self.draw(x)

    def draw(self, x: Array) -> np.ndarray:
        """(B,) level indices from their posterior: the Gumbel-max trick, on the kernel's noise."""
        logits = self.log_posterior(x)
        logits = np.asarray(logits.cpu() if hasattr(logits, "cpu") else logits, np.float64)
        z = ops.random_normal((2, *logits.shape), seed=self.seed, offset=self._offset())
        exponential = (z.astype(np.float64) ** 2).sum(axis=0) / 2
        return np.argmax(logits - np.log(exponential), axis=1)

    def denoise(
        self,
        model: Callable[[Array, Array], Array],
        x: Array,
        level: np.ndarray,
        name: str = "euler",
        *,
        steps: int = 1,
        grid: str = "karras",
        **arguments: Any,
    ) -> Array:
        """Solver `name` from every chain's own level to 0: one run for each level that occurs."""
        result = empty(x, tuple(x.shape))
        for k in np.unique(level):
            rows = np.flatnonzero(level == k).tolist()
            plan = solver_plan(
                name, self.schedule, self._grid(int(k), steps, grid),
                prediction_type=self.prediction_type, **arguments,
            )  # fmt: skip
            solver = Solver(plan, seed=self.seed, offset=self._offset())
            part = solver.start(x[rows])
            for t in solver.timesteps:
                part = solver.step(model(part, per_sample(np.full(len(rows), t), x)))
            result[rows] = part
        return result

    def _grid(self, k: int, steps: int, grid: str) -> list[float]:
        from .grids import LEVELS

        high = self.levels[k]
        low = min(self.schedule.sigma_min, high / 2)
        inner = [high] if steps == 1 else LEVELS[grid](steps, low, high).tolist()
        return [*inner, 0.0]
