"""Discretisations of the reverse SDE of score-based models."""

from __future__ import annotations

import math
from typing import Any

from ..method import Step, Value, method

_SOURCE = "Song et al. 2021, arXiv 2011.13456"


def _check(s: Step, name: str) -> None:
    if s.schedule.kind not in ("vp", "ve"):
        raise ValueError(f"{name}: expected a schedule of kind vp or ve, got {s.schedule.kind!r}")


@method("reverse_diffusion", prediction="noise", order=1, source=f"{_SOURCE}, equations 46, 47")
def reverse_diffusion(s: Step, x: Value, *, last_noise: bool = False) -> Any:
    """The predictor that discretises the reverse SDE as the forward chain is: VP
    x_i = sqrt(1 - beta) x_{i-1} + sqrt(beta) z, VE x_i = x_{i-1} + sqrt(sigma_i^2 - ...) z. The
    last step is without its noise, as the official sampler denoises."""
    _check(s, "reverse_diffusion")
    noise = yield x, s.now
    a, b = s.now, s.next
    if s.schedule.kind == "vp":
        root = a.alpha / b.alpha
        variance = 1 - root**2
        x = x * (2 - root) - noise * (variance / a.sigma)
    else:
        variance = a.sigma**2 - b.sigma**2
        x = x - noise * (variance / a.sigma)
    return x if s.last and not last_noise else x + s.noise() * math.sqrt(variance)


@method("euler_maruyama", prediction="noise", order=1, source=f"{_SOURCE}, section 4.1")
def euler_maruyama(
    s: Step, x: Value, *, last_noise: bool = False, probability_flow: bool = False
) -> Any:
    """Euler-Maruyama for dx = (-beta x / 2 - beta score) dt + sqrt(beta) dw (VE: without the drift
    of x), with the integral of beta over the step, -2 log(alpha / alpha'). `probability_flow`: half
    the score and no noise."""
    _check(s, "euler_maruyama")
    noise = yield x, s.now
    a, b = s.now, s.next
    if s.schedule.kind == "vp":
        beta = 2 * math.log(b.alpha / a.alpha)
        x, variance = x * (1 + beta / 2), beta
    else:
        variance = a.sigma**2 - b.sigma**2
    x = x - noise * (variance / a.sigma * (0.5 if probability_flow else 1.0))
    quiet = probability_flow or (s.last and not last_noise)
    return x if quiet else x + s.noise() * math.sqrt(variance)
