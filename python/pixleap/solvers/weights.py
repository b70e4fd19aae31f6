"""Weights of multistep methods: integrals of Lagrange polynomials against a density."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(32)


def lagrange_integrals(
    nodes: Sequence[float],
    start: float,
    end: float,
    density: Callable[[np.ndarray], Any] = np.ones_like,
) -> list[float]:
    """integral from start to end of density(u) l_j(u) du, l_j the Lagrange basis of `nodes`.

    Gauss-Legendre with 32 points: for the densities of diffusion solvers exact to rounding, where a
    Riemann sum of 10,000 terms leaves 1e-4.
    """
    u = start + (end - start) * (_NODES + 1) / 2
    w = _WEIGHTS * (end - start) / 2 * density(u)
    return quadrature(nodes, u, w)


def quadrature(nodes: Sequence[float], u: np.ndarray, w: np.ndarray) -> list[float]:
    """sum of w * l_j(u) for each Lagrange polynomial l_j of `nodes`."""
    result = []
    for j, node in enumerate(nodes):
        basis = np.ones_like(u)
        for i, other in enumerate(nodes):
            if i != j:
                basis = basis * (u - other) / (node - other)
        result.append(float(w @ basis))
    return result


def combine(weights: Sequence[float], values: Sequence[Any]) -> Any:
    """sum of weight * value."""
    total = values[0] * weights[0]
    for w, v in zip(weights[1:], values[1:], strict=True):
        total = total + v * w
    return total
