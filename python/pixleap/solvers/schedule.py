"""Noise schedules: which mixture of sample and noise belongs to which time of the model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction", "flow_prediction", "score", "edm", "edm_v")


@dataclass(frozen=True)
class Point:
    """A noise level: x = alpha * x0 + sigma * noise, and the time that the model is told."""

    alpha: float
    sigma: float
    time: float

    @property
    def ratio(self) -> float:
        """sigma / alpha, the noise level of Karras et al.; inf where alpha is 0."""
        return self.sigma / self.alpha if self.alpha else math.inf

    @property
    def lam(self) -> float:
        """log(alpha / sigma), half the log signal-to-noise ratio."""
        if self.sigma == 0:
            return math.inf
        return math.log(self.alpha / self.sigma) if self.alpha else -math.inf


def choose(value: str, valid: Sequence[str], where: str, argument: str) -> str:
    """`value`, if it is among `valid`; else the error that lists them."""
    if value not in valid:
        raise ValueError(
            f"{where}: argument '{argument}' expected one of {', '.join(valid)}, got {value!r}"
        )
    return value


@dataclass(frozen=True)
class NoiseSchedule:
    """x = alpha(t) * x0 + sigma(t) * noise, made by `vp`, `vp_continuous`, `edm`, `ve` or `flow`.

    kind: "vp" (alpha^2 + sigma^2 = 1), "edm" (the same with x already divided by
    sqrt(sigma^2 + sigma_data^2), as the network is fed), "ve" (alpha = 1) or "flow"
    (alpha = 1 - sigma). `ratios` are the levels sigma / alpha of the times 0, 1, ... the model was
    trained on, rising; empty for continuous schedules.
    """

    kind: str
    ratios: tuple[float, ...] = ()
    sigma_min: float = 0.002  # smallest and largest trained level: ratio, or sigma for flow
    sigma_max: float = 80.0
    sigma_data: float = 0.5
    shift: float = 1.0
    num_train_timesteps: int = 1000
    time_is_sigma: bool = False  # ve: the model is told sigma, not log(sigma) / 4

    @classmethod
    def vp(
        cls,
        betas: str | Sequence[float] = "linear",
        *,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        num_train_timesteps: int = 1000,
        zero_snr: bool = False,
    ) -> NoiseSchedule:
        """Discrete variance-preserving schedule of DDPM and Stable Diffusion.

        Args:
            betas: "linear", "scaled_linear" (linear in sqrt(beta)), "cosine" (Nichol and Dhariwal
                2021, betas capped at 0.999), or the betas themselves, each in (0, 1).
            zero_snr: rescale so that the last time has no signal (Lin et al. 2024, algorithm 1).

        Raises:
            ValueError: an unknown name, or betas outside (0, 1).
        """
        n = num_train_timesteps
        if not isinstance(betas, str):
            beta = np.asarray(betas, np.float64)
        elif betas == "linear":
            beta = np.linspace(beta_start, beta_end, n)
        elif betas == "scaled_linear":
            beta = np.linspace(beta_start**0.5, beta_end**0.5, n) ** 2
        else:
            choose(betas, ("linear", "scaled_linear", "cosine"), "NoiseSchedule.vp", "betas")
            t = np.arange(n + 1) / n
            bar = np.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
            beta = np.minimum(1 - bar[1:] / bar[:-1], 0.999)
        if beta.ndim != 1 or len(beta) < 2 or not ((beta > 0) & (beta < 1)).all():
            raise ValueError(
                "NoiseSchedule.vp: argument 'betas' expected at least 2 numbers in (0, 1), "
                f"got {beta}"
            )
        root = np.sqrt(np.cumprod(1 - beta))
        if zero_snr:
            root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
        with np.errstate(divide="ignore"):
            ratios = np.sqrt(1 - root**2) / root
        finite = ratios[np.isfinite(ratios)]
        return cls(
            "vp",
            tuple(ratios.tolist()),
            float(ratios[0]),
            float(finite[-1]),
            num_train_timesteps=len(beta),
        )

    @classmethod
    def edm(
        cls, *, sigma_min: float = 0.002, sigma_max: float = 80.0, sigma_data: float = 0.5
    ) -> NoiseSchedule:
        """Karras et al. 2022, in the scale that the network is fed: x = y / sqrt(sigma^2 + data^2).

        The model is told log(sigma) / 4 and answers with the raw network output F
        (prediction_type "edm") or with a denoised sample ("sample"). The last point is the image
        itself, unscaled.
        """
        return cls("edm", (), sigma_min, sigma_max, sigma_data)

    @classmethod
    def ve(
        cls, *, sigma_min: float = 0.002, sigma_max: float = 80.0, time_is_sigma: bool = True
    ) -> NoiseSchedule:
        """Variance exploding: x = x0 + sigma * noise; the model is told sigma or log(sigma) / 4."""
        return cls("ve", (), sigma_min, sigma_max, time_is_sigma=time_is_sigma)

    @classmethod
    def flow(cls, *, shift: float = 1.0, num_train_timesteps: int = 1000) -> NoiseSchedule:
        """Rectified flow: x = (1 - sigma) * x0 + sigma * noise; the model is told
        sigma * num_train_timesteps. `shift` moves named grids; see `flow_shift`."""
        if not shift > 0:
            raise ValueError(f"NoiseSchedule.flow: argument 'shift' expected > 0, got {shift}")
        return cls(
            "flow",
            sigma_min=1 / num_train_timesteps,
            sigma_max=1.0,
            shift=shift,
            num_train_timesteps=num_train_timesteps,
        )

    def at_ratio(self, ratio: float) -> Point:
        """The point with sigma / alpha = ratio (>= 0, inf allowed where there is no signal)."""
        if not ratio >= 0:
            raise ValueError(f"NoiseSchedule: argument 'ratio' expected >= 0, got {ratio}")
        if self.kind == "flow":
            return self.at_sigma(ratio / (1 + ratio) if math.isfinite(ratio) else 1.0)
        if ratio == 0:
            return Point(1.0, 0.0, 0.0)
        if self.kind == "ve":
            return Point(1.0, ratio, ratio if self.time_is_sigma else math.log(ratio) / 4)
        if self.kind == "edm":
            scale = 1 / math.hypot(ratio, self.sigma_data)
            return Point(scale, ratio * scale, math.log(ratio) / 4)
        if math.isinf(ratio):
            return Point(0.0, 1.0, float(len(self.ratios) - 1))
        alpha = 1 / math.hypot(1, ratio)
        return Point(alpha, ratio * alpha, self._time_of(ratio))

    def at_sigma(self, sigma: float) -> Point:
        """The point with this sigma: of (1 - sigma) x0 + sigma noise for flows, else the ratio."""
        if self.kind != "flow":
            return self.at_ratio(sigma)
        if not 0 <= sigma <= 1:
            raise ValueError(f"NoiseSchedule: a flow's sigma is expected in [0, 1], got {sigma}")
        return Point(1 - sigma, sigma, sigma * self.num_train_timesteps)

    def at_lambda(self, lam: float) -> Point:
        """The point with log(alpha / sigma) = lam."""
        return self.at_ratio(math.exp(-lam))

    def at_time(self, time: float) -> Point:
        """The point of a model time. Between trained times log(sigma / alpha) is linear in time."""
        if self.kind == "flow":
            return self.at_sigma(time / self.num_train_timesteps)
        if not self.ratios:
            return self.at_ratio(time if self.time_is_sigma else math.exp(4 * time))
        last = len(self.ratios) - 1
        if not 0 <= time <= last:
            raise ValueError(f"NoiseSchedule: a time in [0, {last}] is expected, got {time}")
        low = int(time)
        if low == time:
            ratio = self.ratios[low]
        else:
            a, b = math.log(self.ratios[low]), math.log(self.ratios[low + 1])
            ratio = math.exp(a + (b - a) * (time - low))
        return dataclasses.replace(self.at_ratio(ratio), time=float(time))

    def _time_of(self, ratio: float) -> float:
        known = np.asarray(self.ratios)
        if math.isinf(known[-1]):
            known = known[:-1]
        return float(np.interp(math.log(ratio), np.log(known), np.arange(len(known))))

    def prediction(self, kind: str, point: Point) -> tuple[float, float]:
        """(p, q) with model output = p * x0 + q * noise at `point`."""
        choose(kind, PREDICTION_TYPES, "NoiseSchedule.prediction", "prediction_type")
        alpha, sigma = point.alpha, point.sigma
        if kind == "epsilon":
            return 0.0, 1.0
        if kind == "sample":
            return 1.0, 0.0
        if kind == "v_prediction":
            norm = math.hypot(alpha, sigma)
            return -sigma / norm, alpha / norm
        if kind == "flow_prediction":
            return -1.0, 1.0
        if kind == "score":
            return 0.0, -1.0 / sigma
        norm = math.hypot(point.ratio, self.sigma_data)
        if kind == "edm_v":  # of the other sign, as a v-prediction
            return -point.ratio / (self.sigma_data * norm), self.sigma_data / norm
        return point.ratio / (self.sigma_data * norm), -self.sigma_data / norm


def flow_shift(sigmas: np.ndarray, *, shift: float = 1.0, mu: float | None = None) -> np.ndarray:
    """Time shift of a rectified flow's sigmas in [0, 1].

    shift: s * sigma / (1 + (s - 1) sigma), Stable Diffusion 3 (Esser et al. 2024).
    mu: dynamic, exp(mu) / (exp(mu) + 1 / sigma - 1), as FLUX; takes the place of `shift`.
    """
    factor = shift if mu is None else math.exp(mu)
    sigmas = np.asarray(sigmas, np.float64)
    return factor * sigmas / (1 + (factor - 1) * sigmas)


def dynamic_shift_mu(
    tokens: int,
    *,
    base_tokens: int = 256,
    max_tokens: int = 4096,
    base_shift: float = 0.5,
    max_shift: float = 1.15,
) -> float:
    """FLUX's `mu` for a number of image tokens: linear from base_shift to max_shift."""
    slope = (max_shift - base_shift) / (max_tokens - base_tokens)
    return base_shift + slope * (tokens - base_tokens)
