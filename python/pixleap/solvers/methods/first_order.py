"""Methods with one model evaluation and no memory."""

from __future__ import annotations

import math
from typing import Any

from ..method import Step, Value, method


def _spread(s: Step, eta: float) -> float:
    """Standard deviation of the noise of an eta-stochastic step: eta = 1 is the DDPM posterior."""
    ratio = s.next.ratio / s.now.ratio if math.isfinite(s.now.ratio) else 0.0
    return eta * s.next.sigma * math.sqrt(max(0.0, 1 - ratio**2))


@method(
    "ddim", prediction="both", order=1, source="Song et al. 2021, arXiv 2010.02502, equation 12"
)
def ddim(s: Step, x: Value, *, eta: float = 0.0, noise_of_clipped: bool = False) -> Any:
    sample, noise = yield x, s.now
    spread = _spread(s, eta)
    x = sample * s.next.alpha + noise * math.sqrt(max(0.0, s.next.sigma**2 - spread**2))
    return x + s.noise() * spread if spread else x


@method("ddpm", prediction="sample", order=1, source="Ho et al. 2020, equations 6 and 7")
def ddpm(s: Step, x: Value, *, variance: str = "fixed_small") -> Any:
    sample = yield x, s.now
    a, b = s.now, s.next
    kept = b.ratio**2 / a.ratio**2 if math.isfinite(a.ratio) else 0.0
    spread = _spread(s, 1.0)
    mean = sample * (b.alpha * (1 - kept)) + x * (kept * b.alpha / a.alpha if kept else 0.0)
    if variance == "fixed_large":
        # diffusers draws it for the last image too, unless its time is 0.
        drawn = b.sigma or (not s.consistent and a.time > 0)
        spread = math.sqrt(1 - (a.alpha / b.alpha) ** 2) if drawn else 0.0
    elif variance != "fixed_small":
        raise ValueError(
            f"ddpm: option 'variance' expected fixed_small or fixed_large, got {variance!r}"
        )
    return mean + s.noise() * spread if spread else mean


@method("euler", prediction="derivative", order=1, source="Karras et al. 2022; k-diffusion")
def euler(s: Step, x: Value) -> Any:
    d = yield x, s.now
    return s.move(x, d)


@method(
    "euler_ancestral",
    prediction="both",
    order=1,
    source="k-diffusion sample_euler_ancestral; for flows its rectified-flow form",
)
def euler_ancestral(s: Step, x: Value, *, eta: float = 1.0, s_noise: float = 1.0) -> Any:
    sample, noise = yield x, s.now
    spread = min(_spread(s, eta), s.next.sigma)
    x = sample * s.next.alpha + noise * math.sqrt(s.next.sigma**2 - spread**2)
    return x + s.noise() * (spread * s_noise) if spread else x


@method(
    "consistency",
    prediction="sample",
    order=1,
    source="Song et al. 2023, algorithm 1; the boundary condition of Luo et al. 2023 (LCM)",
    lcm={"sigma_data": 0.5, "timestep_scaling": 10.0},
)
def consistency(
    s: Step, x: Value, *, sigma_data: float = 0.0, timestep_scaling: float = 10.0
) -> Any:
    sample = yield x, s.now
    if sigma_data:  # LCM: c_skip x + c_out sample, in scaled time
        t = s.now.time * timestep_scaling
        norm = t**2 + sigma_data**2
        sample = x * (sigma_data**2 / norm) + sample * (t / math.sqrt(norm))
    return (
        sample * s.next.alpha + s.noise() * s.next.sigma if s.next.sigma else sample * s.next.alpha
    )


@method(
    "tcd", prediction="both", order=1, source="Zheng et al. 2024, arXiv 2402.19159, algorithm 4"
)
def tcd(s: Step, x: Value, *, eta: float = 0.3) -> Any:
    sample, noise = yield x, s.now
    if s.next.sigma == 0:
        return sample * s.next.alpha
    middle = s.schedule.at_time(math.floor((1 - eta) * s.next.time))
    x = sample * middle.alpha + noise * middle.sigma
    if eta == 0:
        return x
    kept = s.next.alpha / middle.alpha
    return x * kept + s.noise() * math.sqrt(max(0.0, 1 - kept**2))
