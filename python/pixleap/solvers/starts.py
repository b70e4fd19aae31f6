"""What a run may start from: PFGM++'s prior, One More Step, Gaussian teleportation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import ops
from .._arrays import Array, empty, is_torch, shape
from .method import conversion
from .reductions import elements, host_moments, per_sample
from .schedule import NoiseSchedule, Point


def pfgmpp_noise(noise: Array, sigma: float, *, D: int, seed: int = 0) -> Array:
    """Noise of PFGM++ (Xu et al. 2023, arXiv 2302.04265, algorithm 2 and appendix B).

    Perturbations of data of N elements at r = sigma sqrt(D) have density proportional to
    1 / (|x|^2 + r^2)^((N + D) / 2): the direction of normal noise, with a radius
    r sqrt(b / (1 - b)) for b of Beta(N / 2, D / 2). The sampler itself is EDM's, with sigma: "edm"
    or "heun" on a schedule of kind ve. D to infinity gives sigma * noise back.

    Args:
        noise: (B, ...) standard normal.
        D: augmented dimensions, >= 1.
        seed: of the radii.
    """
    if D < 1 or not sigma > 0:
        raise ValueError(f"pfgmpp_noise: expected D >= 1 and sigma > 0, got {D} and {sigma}")
    count = shape(noise, "pfgmpp_noise", "noise")[0]
    b = np.random.default_rng(seed).beta(elements(noise) / 2, D / 2, size=count)
    norm = np.sqrt(host_moments(noise, noise)[:, 2])
    scale = sigma * math.sqrt(D) * np.sqrt(b / (1 - b)) / norm
    out = empty(noise, tuple(noise.shape))
    return ops.lincomb([noise], per_sample(scale[:, None, None], noise), out=[out])[0]


def one_more_step(
    model: Callable[[Array, float], Array],
    schedule: NoiseSchedule,
    start: Point,
    x: Array,
    *,
    prediction_type: str = "v_prediction",
    time: float | None = None,
    seed: int = 0,
    offset: int = 1 << 40,
) -> Array:
    """A start with the model's own mean (Hu, Zhang et al. 2024, arXiv 2311.15744, OMS).

    Schedules that end with some signal left are trained on samples that pure noise is none of. One
    step from alpha = 0 with another network, which predicts the sample from noise, gives
    x = alpha x0 + sigma z at the plan's first point.

    Args:
        model: (x, time) -> output of the OMS network at pure noise.
        start: first point of the plan that follows: `plan.points[0]`.
        x: standard normal noise.
        prediction_type: of `model`: "v_prediction", "sample" or "flow_prediction".
        time: what `model` is told; None: the schedule's last time.
    """
    if time is None:
        last = float(len(schedule.ratios) - 1) if schedule.ratios else schedule.sigma_max
        time = float(schedule.num_train_timesteps) if schedule.kind == "flow" else last
    pure = Point(0.0, 1.0, time)
    a, b = conversion(schedule, prediction_type, "sample", pure)
    output = model(x, time)
    out = empty(x, tuple(x.shape))
    return ops.lincomb(
        [x, output], (a * start.alpha, b * start.alpha), out=[out],
        noise_scale=(start.sigma,), seed=seed, offset=offset,
    )[0]  # fmt: skip


class GaussianTeleport:
    """The probability flow of a Gaussian in closed form, in the place of a run's first steps (Wang
    and Vastola 2024, arXiv 2412.09726, section 5: analytical teleportation).

    At high noise a model's score is nearly that of a Gaussian with the data's mean and covariance;
    along it x / alpha - mean stretches by sqrt((v + rho'^2) / (v + rho^2)) in every
    eigendirection of variance v, rho = sigma / alpha.

    Args:
        mean: (...) of one sample.
        vectors: (k, elements) orthonormal rows, the leading eigenvectors of the covariance.
        variances: (k,) >= 0.
        residual: variance in all other directions.

    NumPy arrays; `__call__` takes torch tensors too.
    """

    def __init__(
        self, mean: np.ndarray, vectors: np.ndarray, variances: np.ndarray, residual: float = 0.0
    ) -> None:
        self.mean = np.asarray(mean, np.float64)
        self.vectors = np.asarray(vectors, np.float64)
        self.variances = np.asarray(variances, np.float64)
        self.residual = residual
        expected = (len(self.variances), self.mean.size)
        if self.variances.ndim != 1 or self.vectors.shape != expected or residual < 0:
            raise ValueError(
                f"GaussianTeleport: argument 'vectors' expected shape {expected} and residual "
                f">= 0, got {self.vectors.shape} and {residual}"
            )

    @classmethod
    def of_data(cls, data: np.ndarray, rank: int) -> GaussianTeleport:
        """From samples (n, ...): mean, `rank` leading directions, the others' mean variance."""
        flat = np.asarray(data, np.float64).reshape(len(data), -1)
        if not 1 <= rank <= min(len(flat) - 1, flat.shape[1]):
            raise ValueError(
                f"GaussianTeleport: argument 'rank' expected 1 to "
                f"{min(len(flat) - 1, flat.shape[1])}, got {rank}"
            )
        mean = flat.mean(axis=0)
        _, singular, vectors = np.linalg.svd(flat - mean, full_matrices=False)
        variances = singular**2 / (len(flat) - 1)
        others = flat.shape[1] - rank
        residual = float(variances[rank:].sum() / others) if others else 0.0
        shape = np.shape(data)[1:]
        return cls(mean.reshape(shape), vectors[:rank], variances[:rank], residual)

    def __call__(self, x: Array, start: Point, end: Point) -> Array:
        """The sample at `end` that the flow from x (B, ...) at `start` reaches."""
        a, b = start.ratio, end.ratio
        if not math.isfinite(a) or not b < a:
            raise ValueError(
                f"GaussianTeleport: expected a lower level at the end, with signal at the start; "
                f"got sigma / alpha {a:g} to {b:g}"
            )

        def grow(v: Any) -> Any:
            # Directions without variance at an end without noise: all lands on the mean.
            return np.sqrt((v + b * b) / (v + a * a))

        rest = float(grow(self.residual))
        mean, vectors = (per_sample(v, x) for v in (self.mean.reshape(-1), self.vectors))
        gains = per_sample(grow(self.variances) - rest, x)
        flat = x.reshape(len(x), -1)
        flat = flat.double() if is_torch(flat) else flat.astype(np.float64)
        centred = flat / start.alpha - mean
        moved = (mean + centred * rest + (centred @ vectors.T * gains) @ vectors) * end.alpha
        moved = moved.reshape(x.shape)
        return moved.to(x.dtype) if is_torch(x) else moved.astype(x.dtype)
