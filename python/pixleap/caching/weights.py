"""Forecasts as weights on raw features.

Every extrapolation that is linear in the features is a weight per feature. Written so, TaylorSeer
and Lagrange need the same memory and one pass over it, and differ in a few numbers only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np


def lagrange(times: Sequence[float], at: float) -> list[float]:
    """`lagrange_weights` without checks, on Python floats: a ring asks for them at every step."""
    weights = []
    for i, own in enumerate(times):
        weight = 1.0
        for j, other in enumerate(times):
            if j != i:
                weight *= (at - other) / (own - other)
        weights.append(weight)
    return weights


def taylor(times: Sequence[float], at: float) -> list[float]:
    """`taylor_weights` as the repository has it, without checks."""
    factors: list[list[float]] = []  # per order, the weights of the raw features
    for n in range(len(times)):
        updated = [[float(i == n) for i in range(len(times))]]
        for previous in factors:
            gap = times[n] - times[n - 1]
            updated.append([(a - b) / gap for a, b in zip(updated[-1], previous, strict=True)])
        factors = updated
    return _expand(factors, at - times[-1])


def _taylor_paper(times: Sequence[float], at: float) -> list[float]:
    n = len(times)
    gap = times[-1] - times[-2] if n > 1 else 1.0
    factors = [
        [0.0] * (n - 1 - order)
        + [(-1.0) ** k * math.comb(order, k) / gap**order for k in range(order, -1, -1)]
        for order in range(n)
    ]
    return _expand(factors, at - times[-1])


def _expand(factors: list[list[float]], distance: float) -> list[float]:
    weights = [0.0] * len(factors)
    for order, row in enumerate(factors):
        scale = distance**order / math.factorial(order)
        weights = [w + scale * f for w, f in zip(weights, row, strict=True)]
    return weights


Formula = Callable[[Sequence[float], float], list[float]]
FORMULAS: dict[str, Formula] = {"lagrange": lagrange, "taylor": taylor}
_TAYLOR: dict[str, Formula] = {"repository": taylor, "paper": _taylor_paper}


def lagrange_weights(times: Sequence[float] | np.ndarray, at: float) -> np.ndarray:
    """Weights that carry features known at `times` to the time `at`.

    sum_i weights[i] * feature[i] is the value at `at` of the polynomial of degree n - 1 through the
    n features: exact for features that are such polynomials in time, with an error of order n in
    the spacing for smooth ones, whatever the spacing.

    Args:
        times: (n,), n >= 1, finite and distinct; in any order. The solver's time: step index,
            sigma or lambda (half the log signal-to-noise ratio); features are smoothest in lambda.
        at: the time to forecast.

    Returns:
        (n,) float64; they add up to 1.

    Raises:
        ValueError: times that are empty, not finite or not distinct.

    Source: Lagrange; Berrut and Trefethen, Barycentric Lagrange Interpolation (2004).
    """
    return np.array(lagrange(*_checked("lagrange_weights", times, at)))


def taylor_weights(
    times: Sequence[float] | np.ndarray, at: float, *, formula: str = "repository"
) -> np.ndarray:
    """TaylorSeer's forecast as weights on raw features, for comparison.

    It puts backward differences in the place of derivatives. They differ from the derivative at the
    newest feature by terms of first order in the spacing, so no order above 1 makes the error
    smaller than second order in it; `lagrange_weights` of the same features does.

    Args:
        times: (n,), n >= 1, finite and distinct, oldest first; n - 1 is TaylorSeer's order. Its
            step numbers count down in some models and up in others; the weights are the same.
        at: the time to forecast.
        formula: "repository": each update divides by the newest gap,
            factor[i + 1] = (factor[i] - previous factor[i]) / gap, as the official code and
            diffusers' TaylorSeerState do. "paper": i-th differences over N^i, with the newest gap
            for N (the paper's equation, which knows one interval only). Equal on even times.

    Returns:
        (n,) float64; they add up to 1.

    Raises:
        ValueError: times that are empty, not finite or not distinct; an unknown formula.

    Source: Liu et al., From Reusing to Forecasting: Accelerating Diffusion Models with TaylorSeers
    (arXiv 2503.06923); TaylorSeer-DiT/taylor_utils; diffusers hooks/taylorseer_cache.py (0.42.1).
    """
    if formula not in _TAYLOR:
        raise ValueError(
            f"taylor_weights: argument 'formula' expected one of {sorted(_TAYLOR)}, got {formula!r}"
        )
    return np.array(_TAYLOR[formula](*_checked("taylor_weights", times, at)))


def _checked(
    function: str, times: Sequence[float] | np.ndarray, at: float
) -> tuple[list[float], float]:
    try:
        nodes = np.asarray(times, np.float64)
        point = float(at)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{function}: arguments 'times' and 'at' expected real numbers, got {times!r}, {at!r}"
        ) from error
    if nodes.ndim != 1 or nodes.size == 0:
        raise ValueError(
            f"{function}: argument 'times' expected shape (n,) with n >= 1, got {nodes.shape}"
        )
    if not (np.isfinite(nodes).all() and math.isfinite(point)):
        raise ValueError(
            f"{function}: arguments 'times' and 'at' expected finite numbers, got {times!r}, {at!r}"
        )
    if np.unique(nodes).size != nodes.size:
        raise ValueError(f"{function}: argument 'times' expected distinct times, got {times!r}")
    return nodes.tolist(), point
