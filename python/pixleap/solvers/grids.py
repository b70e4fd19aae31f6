"""Grids of noise levels: where a sampler of n steps evaluates its model."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from .schedule import NoiseSchedule, Point, choose, flow_shift

Grid = Callable[..., np.ndarray]


def karras(n: int, low: float, high: float, rho: float = 7.0) -> np.ndarray:
    """Levels equidistant in sigma^(1/rho) (Karras et al. 2022, equation 5)."""
    ramp = np.linspace(high ** (1 / rho), low ** (1 / rho), n)
    return ramp**rho


def exponential(n: int, low: float, high: float) -> np.ndarray:
    """Levels equidistant in log sigma; also what Lu et al. 2022 call uniform in lambda."""
    return np.exp(np.linspace(math.log(high), math.log(low), n))


def polyexponential(n: int, low: float, high: float, rho: float = 1.0) -> np.ndarray:
    """log sigma runs from high to low as ramp^rho (k-diffusion)."""
    ramp = np.linspace(1, 0, n) ** rho
    return np.exp(ramp * (math.log(high) - math.log(low)) + math.log(low))


def beta(n: int, low: float, high: float, a: float = 0.6, b: float = 0.6) -> np.ndarray:
    """Levels at the quantiles of a beta distribution (Lee et al. 2024). Needs scipy."""
    from scipy.stats import beta as distribution

    return low + distribution.ppf(1 - np.linspace(0, 1, n), a, b) * (high - low)


LEVELS: dict[str, Grid] = {
    "karras": karras,
    "exponential": exponential,
    "lu": exponential,
    "polyexponential": polyexponential,
    "beta": beta,
}


def linspace(n: int, count: int) -> np.ndarray:
    """n of the times count - 1 ... 0, both ends included, rounded."""
    return np.linspace(0, count - 1, n).round()[::-1]


def leading(n: int, count: int, offset: int = 0) -> np.ndarray:
    """Multiples of count // n, as DDIM; `offset` is added (Stable Diffusion: 1)."""
    return (np.arange(n) * (count // n))[::-1] + float(offset)


def trailing(n: int, count: int) -> np.ndarray:
    """From count - 1 down in steps of count / n, rounded (Lin et al. 2024, table 2)."""
    return np.round(count - np.arange(n) * (count / n)) - 1


def sgm_uniform(n: int, count: int) -> np.ndarray:
    """n + 1 equidistant times without the last, as the generative-models repository."""
    return np.linspace(count - 1, 0, n + 1)[:-1]


def simple(n: int, count: int) -> np.ndarray:
    """Every (count / n)-th time from the end, as ComfyUI's "simple"."""
    return count - 1 - np.floor(np.arange(n) * (count / n))


TIMES: dict[str, Grid] = {
    "linspace": linspace,
    "leading": leading,
    "trailing": trailing,
    "sgm_uniform": sgm_uniform,
    "simple": simple,
}

GRIDS = (*LEVELS, *TIMES)


def _decreasing(values: Sequence[float] | np.ndarray, name: str) -> list[float]:
    numbers = [float(v) for v in values]
    if len(numbers) < 2:
        raise ValueError(
            f"solver_plan: argument '{name}' expected at least 2 levels, got {numbers}"
        )
    bad = [(a, b) for a, b in itertools.pairwise(numbers) if not a > b]
    if bad:
        raise ValueError(
            f"solver_plan: argument '{name}' expected strictly decreasing numbers, "
            f"got {bad[0][0]:g} followed by {bad[0][1]:g}"
        )
    return numbers


def points(
    schedule: NoiseSchedule,
    sigmas: str | Sequence[float] | Sequence[Point] | np.ndarray | None = None,
    *,
    timesteps: Sequence[float] | np.ndarray | None = None,
    steps: int | None = None,
    final: str = "zero",
    **options: float,
) -> list[Point]:
    """steps + 1 points from noise to image.

    Args:
        sigmas: the name of a grid, or the decreasing levels themselves, the last one included:
            sigma / alpha, or a flow's sigma in [0, 1]. Names: karras, exponential, lu,
            polyexponential, beta (levels between the schedule's sigma_min and sigma_max), linspace,
            leading, trailing, sgm_uniform, simple (times). Points are taken as they are.
        timesteps: decreasing model times instead of sigmas; `final` is appended.
        steps: number of steps for a named grid.
        final: "zero" appends sigma 0; "sigma_min" the schedule's smallest level.
        options: of the named grid: rho, a, b, offset, sigma_min, sigma_max.

    Raises:
        ValueError: unknown names (the valid ones are listed), levels that do not decrease.
    """
    if sigmas is not None and not isinstance(sigmas, str) and isinstance(sigmas[0], Point):
        return list(sigmas)
    choose(final, ("zero", "sigma_min"), "solver_plan", "final")
    end = schedule.at_ratio(0.0) if final == "zero" else schedule.at_sigma(schedule.sigma_min)
    if timesteps is not None:
        if sigmas is not None:
            raise ValueError("solver_plan: expected either 'sigmas' or 'timesteps', got both")
        times = [float(t) for t in timesteps]
        inner = [schedule.at_time(t) for t in times]
    elif not isinstance(sigmas, str) and sigmas is not None:
        levels = [schedule.at_sigma(s) for s in _decreasing(sigmas, "sigmas")]  # type: ignore[arg-type]
        return levels
    else:
        name = choose(sigmas or "karras", GRIDS, "solver_plan", "sigmas")
        if steps is None or steps < 1:
            raise ValueError(f"solver_plan: argument 'steps' expected >= 1, got {steps}")
        inner = _named(schedule, name, steps, options)
    if schedule.kind == "flow" and timesteps is None:
        shifted = flow_shift(np.array([p.sigma for p in inner]), shift=schedule.shift)
        inner = [schedule.at_sigma(float(s)) for s in shifted]
    if inner[-1].ratio > end.ratio:
        inner.append(end)
    elif final == "zero" or inner[-1].ratio < end.ratio:
        raise ValueError("solver_plan: the levels end below their final one")
    _decreasing([p.ratio for p in inner], "timesteps")
    return inner


def _named(
    schedule: NoiseSchedule, name: str, steps: int, options: dict[str, float]
) -> list[Point]:
    if name in LEVELS:
        low = options.pop("sigma_min", schedule.sigma_min)
        high = options.pop("sigma_max", schedule.sigma_max)
        if steps == 1:
            return [schedule.at_sigma(high)]
        if schedule.kind == "flow":
            high = min(high, 1.0)
        return [schedule.at_sigma(float(s)) for s in LEVELS[name](steps, low, high, **options)]
    if schedule.ratios:
        times = TIMES[name](steps, len(schedule.ratios), **options)
        return [schedule.at_time(float(t)) for t in times]
    # Continuous schedules have no counted times: the same shapes over flow sigmas in (0, 1].
    if schedule.kind != "flow":
        raise ValueError(
            f"solver_plan: grid {name!r} spaces discrete times; a schedule of kind "
            f"{schedule.kind!r} has none, expected one of {', '.join(LEVELS)}"
        )
    if name == "linspace":
        sigmas = np.linspace(schedule.sigma_max, schedule.sigma_min, steps)
    else:
        sigmas = schedule.sigma_max * (1 - np.arange(steps) / steps)
    return [schedule.at_sigma(float(s)) for s in sigmas]
