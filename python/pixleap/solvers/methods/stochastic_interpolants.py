"""SDEs of stochastic interpolants and rectified flows."""

from __future__ import annotations

import math
from typing import Any

from ..method import Step, Value, method
from ..schedule import Point, choose

DIFFUSION = ("sbdm", "sigma", "linear", "constant", "decreasing", "increasing_decreasing")


def diffusion_coefficient(point: Point, form: str, norm: float) -> float:
    """w / 2 of dX = v dt - w / 2 score dt + sqrt(w) dW at a point of the path
    x = (1 - sigma) x0 + sigma noise.

    sbdm: sigma / alpha, for which the SDE is the reverse of the forward process; sigma and linear:
    sigma; constant; decreasing: (norm cos(pi alpha) + 1)^2 / 4; increasing_decreasing:
    sin(pi alpha)^2. All but "decreasing" times `norm`.
    """
    choose(form, DIFFUSION, "sit_sde", "diffusion")
    if form == "sbdm":
        return norm * point.ratio
    if form in ("sigma", "linear"):
        return norm * point.sigma
    if form == "constant":
        return norm
    if form == "decreasing":
        return 0.25 * (norm * math.cos(math.pi * point.alpha) + 1) ** 2
    return norm * math.sin(math.pi * point.alpha) ** 2


@method(
    "sit_sde",
    prediction="both",
    order=1,
    source="Ma et al. 2024, arXiv 2401.08740 (SiT); Albergo et al. 2023, arXiv 2303.08797",
    sit_sde_heun={"heun": True},
)
def sit_sde(
    s: Step,
    x: Value,
    *,
    diffusion: str = "sigma",
    norm: float = 1.0,
    heun: bool = False,
    last: str = "mean",
    noise_of_clipped: bool = True,
) -> Any:
    """Euler-Maruyama, or Heun's scheme after the noise is added. last: the last step is "mean", the
    drift without noise; "tweedie", the predicted sample; "euler", the probability flow's; or
    "noise", as the others."""
    choose(last, ("mean", "tweedie", "euler", "noise"), "sit_sde", "last")
    if s.schedule.kind != "flow":
        raise ValueError(f"sit_sde: expected a schedule of kind flow, got {s.schedule.kind!r}")

    def drift(predicted: Any, point: Point, strength: float) -> Value:
        sample, noise = predicted
        score = noise * (-1 / point.sigma)
        return sample - noise + score * strength  # towards the sample

    step = s.now.sigma - s.next.sigma
    strength = diffusion_coefficient(s.now, diffusion, norm)
    if not math.isfinite(strength):
        raise ValueError(
            f"sit_sde: diffusion {diffusion!r} is infinite at sigma {s.now.sigma:g}; start lower"
        )
    noisy = last == "noise" or not s.last
    deviation = math.sqrt(2 * strength * step) if noisy else 0.0
    if heun and deviation:
        x = x + s.noise() * deviation
    first = yield x, s.now
    if s.last and last == "tweedie":
        return first[0]
    k1 = drift(first, s.now, 0.0 if s.last and last == "euler" else strength)
    if not heun:
        x = x + k1 * step
        return x + s.noise() * deviation if deviation else x
    if s.next.sigma == 0 or s.last:
        return x + k1 * step
    second = yield x + k1 * step, s.next
    k2 = drift(second, s.next, diffusion_coefficient(s.next, diffusion, norm))
    return x + (k1 + k2) * (step / 2)
