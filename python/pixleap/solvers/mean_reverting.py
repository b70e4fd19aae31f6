"""Diffusions whose end is a degraded image plus noise: any solver, in shifted coordinates.

x_t = mu + alpha_t (x0 - mu) + sigma_t noise is a diffusion of x0 - mu. The mean-reverting SDE
(IR-SDE, Luo et al. 2023, arXiv 2301.11699) has alpha = exp(-integral of theta) and
sigma = sigma_inf sqrt(1 - alpha^2); residual denoising diffusion (RDDM, Liu et al. 2024, arXiv
2308.13712) has alpha = 1 - alpha_bar and sigma = beta_bar with mu the degraded image. Exponential
integrators there are the MR Sampler of Li et al. 2025, arXiv 2502.07856.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import ops
from .._arrays import Array, empty, shape
from .linear_form import LinearForm
from .plan import Pass, SolverPlan, solver_plan
from .schedule import NoiseSchedule, Point, choose

CONSTANT = "mu"


class MeanRevertingSchedule:
    """alpha and sigma of the times 0, 1, ... of a mean-reverting diffusion.

    Args:
        alphas: falling numbers in [0, 1]; 0 only as the last.
        sigmas: numbers >= 0 with sigma / alpha rising.
    """

    def __init__(self, alphas: Sequence[float], sigmas: Sequence[float]) -> None:
        a, s = np.asarray(alphas, np.float64), np.asarray(sigmas, np.float64)
        with np.errstate(divide="ignore"):
            ratios = s / a
        rising = a.ndim == 1 and a.shape == s.shape and len(a) > 1 and (np.diff(ratios) > 0).all()
        if not rising or (a < 0).any() or (s < 0).any() or not np.isfinite(ratios[:-1]).all():
            raise ValueError(
                "MeanRevertingSchedule: arguments 'alphas' and 'sigmas' expected equally long, "
                f"with sigma / alpha rising, got {len(a)} and {len(s)} numbers"
            )
        ratios[0] = max(ratios[0], ratios[1] * 1e-6)  # times are linear in its logarithm
        finite = ratios[np.isfinite(ratios)]
        self.schedule = NoiseSchedule(
            "vp", tuple(ratios.tolist()), float(finite[0]), float(finite[-1])
        )
        self.schedule = dataclasses.replace(self.schedule, num_train_timesteps=len(a))
        self._log_scale = np.log(np.hypot(a, s))

    @classmethod
    def ir_sde(
        cls, thetas: str | Sequence[float] = "cosine", *, steps: int = 100, sigma_inf: float = 0.2,
        eps: float = 0.005,
    ) -> MeanRevertingSchedule:  # fmt: skip
        """IR-SDE. thetas: "cosine" or "linear" as the official code, or the numbers of times
        1, 2, ...; scaled so that alpha of the last time is `eps`."""
        if isinstance(thetas, str):
            choose(thetas, ("cosine", "linear"), "MeanRevertingSchedule.ir_sde", "thetas")
            t = np.arange(steps + 3) / (steps + 2)
            bar = np.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
            values = (
                1 - bar[1:-1] / bar[0] if thetas == "cosine" else np.linspace(1e-4, 0.02, steps + 1)
            )
            thetas = values[1:].tolist()
        theta = np.asarray(thetas, np.float64)
        total = np.concatenate([[0.0], np.cumsum(theta)])
        alphas = np.exp(total * (math.log(eps) / total[-1]))
        return cls(alphas.tolist(), (sigma_inf * np.sqrt(1 - alphas**2)).tolist())

    @classmethod
    def rddm(cls, alphas: Sequence[float], betas: Sequence[float]) -> MeanRevertingSchedule:
        """RDDM with one network: `alphas` and `betas` are the rates of times 1, 2, ...: the share
        of the residual, summing to 1, and the variance of the noise."""
        share = np.concatenate([[0.0], np.cumsum(alphas)])
        share[-1] = 1.0 if abs(share[-1] - 1) < 1e-6 else share[-1]
        sigmas = np.sqrt(np.concatenate([[0.0], np.cumsum(betas)]))
        return cls((1 - share).tolist(), sigmas.tolist())

    def scale(self, point: Point) -> float:
        """x - mu divided by it is of a variance-preserving diffusion."""
        if point.sigma == 0:
            return 1.0
        return math.exp(np.interp(point.time, np.arange(len(self._log_scale)), self._log_scale))

    def start_scale(self, plan: SolverPlan) -> float:
        """sigma of the plan's first point: a run starts at mu + start_scale * noise."""
        return self.scale(plan.points[0]) * plan.points[0].sigma

    def plan(
        self, name: str, sigmas: Any = None, *, prediction_type: str = "epsilon", **arguments: Any
    ) -> SolverPlan:
        """A plan in the coordinates of x, with mu as its constant: `Solver(plan, constants=
        {"mu": degraded})`.

        Args:
            name, sigmas, arguments: as `solver_plan`.
            prediction_type: of the model, which sees x: "epsilon", "sample" (x0) or "residual"
                (mu - x0).
        """
        choose(prediction_type, ("epsilon", "sample", "residual"), "plan", "prediction_type")
        kind = "epsilon" if prediction_type == "epsilon" else "sample"
        base = solver_plan(name, self.schedule, sigmas, prediction_type=kind, **arguments)
        return _shifted(base, self, prediction_type)


def _shifted(plan: SolverPlan, reverting: MeanRevertingSchedule, kind: str) -> SolverPlan:
    """The plan with z = (x - mu) / scale put in the place of every sample."""
    mu = LinearForm.of(CONSTANT)
    points = {plan.start: plan.points[0]}
    for stage in plan.stages:
        points.update((o, plan.points[stage.step + 1]) for p in stage.passes for o in p.outputs)
        points[stage.result] = plan.points[stage.step + 1]
    for stage in plan.stages:
        points[stage.sample] = stage.point
    made = {o for p in plan.before for o in p.outputs} | {s.sample for s in plan.stages}
    samples = {plan.start, *made, *(s.result for s in plan.stages)}
    inner = {}
    for name in samples:
        scale = reverting.scale(points[name])
        inner[name] = (LinearForm.of(name) - mu) / scale
    for stage in plan.stages:
        output = LinearForm.of(stage.output)
        if kind != "epsilon":
            inner[stage.output] = output - mu if kind == "sample" else -output

    def moved(p: Pass) -> Pass:
        if p.clamp is not None or p.threshold is not None:
            raise ValueError("MeanRevertingSchedule.plan: no clip_sample or threshold here")
        forms = []
        for name, form in zip(p.outputs, p.forms, strict=True):
            form = form.substitute(inner)
            if name in samples:
                form = form * reverting.scale(points[name]) + mu
            forms.append(form)
        return Pass(p.outputs, forms)

    stages = [
        dataclasses.replace(stage, passes=[moved(p) for p in stage.passes]) for stage in plan.stages
    ]
    before = [moved(p) for p in plan.before]
    return dataclasses.replace(plan, stages=stages, before=before, constants=(CONSTANT,))


class ResidualDenoising:
    """RDDM with predicted residual and predicted noise (Liu et al. 2024, arXiv 2308.13712,
    equation 13): x_t = x0 + alpha_bar_t residual + beta_bar_t noise, residual = degraded - x0.

        solver = px.solvers.ResidualDenoising(alphas, betas, steps=5)
        x = solver.start(degraded)
        for t in solver.timesteps:
            x = solver.step(*model(x, t))  # residual, noise

    Args:
        alphas, betas: the rates of times 1, 2, ..., as in `MeanRevertingSchedule.rddm`.
        steps: evaluations, at times equidistant down to 0; model times count from 0, as the
            official code's.
        eta: 0 deterministic, 1 the posterior's noise.
        seed, offset: of the noise; the start's noise has offset + 2^40.
    """

    def __init__(
        self,
        alphas: Sequence[float],
        betas: Sequence[float],
        *,
        steps: int,
        eta: float = 0.0,
        seed: int = 0,
        offset: int = 0,
    ) -> None:
        if len(alphas) != len(betas) or not 1 <= steps <= len(alphas):
            raise ValueError(
                "ResidualDenoising: expected as many alphas as betas, and 1 to "
                f"{len(alphas)} steps, "
                f"got {len(alphas)}, {len(betas)} and {steps}"
            )
        self.alphas = np.concatenate([[0.0], np.cumsum(alphas)])
        self.betas = np.sqrt(np.concatenate([[0.0], np.cumsum(betas)]))
        self.levels = np.linspace(len(alphas), 0, steps + 1).round().astype(int).tolist()
        self.eta, self.seed, self.offset = eta, seed, offset
        self.index = 0
        self._x: Array = None

    @property
    def timesteps(self) -> list[float]:
        """What the model is told at each step."""
        return [float(t - 1) for t in self.levels[:-1]]

    def start(self, degraded: Array) -> Array:
        """The degraded image with noise: the first model input, where alpha_bar is 1."""
        self._x = empty(degraded, shape(degraded, "ResidualDenoising", "degraded"))
        ops.lincomb(
            [degraded], (1.0,), out=[self._x], noise_scale=(float(self.betas[self.levels[0]]),),
            seed=self.seed, offset=self.offset + (1 << 40),
        )  # fmt: skip
        self.index = 0
        return self._x

    def step(self, residual: Array, noise: Array) -> Array:
        """The model's answers in, the next model input out; in place."""
        if self._x is None or self.index >= len(self.levels) - 1:
            raise ValueError("ResidualDenoising.step: call start(degraded) first, once per time")
        a, b = self.levels[self.index : self.index + 2]
        now, after = self.betas[a], self.betas[b]
        # The posterior's variance: that of the removed noise, times what is left over the whole.
        spread = self.eta * (now**2 - after**2) * after**2 / now**2 if now else 0.0
        kept = math.sqrt(max(after**2 - spread, 0.0))
        ops.lincomb(
            [self._x, residual, noise],
            (1.0, -float(self.alphas[a] - self.alphas[b]), -float(now - kept)),
            out=[self._x],
            noise_scale=(math.sqrt(spread),),
            seed=self.seed,
            offset=self.offset + self.index,
        )
        self.index += 1
        return self._x
