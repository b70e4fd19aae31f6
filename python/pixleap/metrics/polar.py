"""tr (C1 C2)^(1/2) by matrix products alone, for GPUs, where symmetric eigenvalues are slow.
Imported where torch is wanted."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch

_LEAST = 1e-7  # singular values below this share of the largest are not resolved in float32


@functools.cache
def polar_coefficients(least: float = _LEAST, done: float = 1e-6) -> list[tuple[float, ...]]:
    """Odd polynomials a x + b x^3 + c x^5 whose composition takes [least, 1] to 1 up to `done`.

    Each is the best one for the interval that the one before leaves (equioscillation, Remez)."""
    steps: list[tuple[float, ...]] = []
    low, high = least, 1.0
    while high - low > done:
        points = np.array([low, *(low + (high - low) * np.array([0.3, 0.8])), high])
        for _ in range(60):
            powers = points[:, None] ** np.array([1, 3, 5])
            signs = np.array([1.0, -1.0, 1.0, -1.0])  # 1 - p alternates
            a, b, c, _ = np.linalg.solve(np.column_stack([powers, signs]), np.ones(4))
            inner = np.sqrt(np.roots([5 * c, 3 * b, a]).astype(complex)).real
            points = np.array([low, *np.sort(inner), high])
        value = np.polyval([c, 0, b, 0, a, 0], points)
        low, high = value.min(), value.max()
        # Keeps the largest at 1, or below it while the next polynomial is steep there: its slope
        # of 13 at 1 would let what rounding adds grow from step to step.
        most = high * (1.001 if low < 0.5 * high else 1.0)
        a, b, c = a / most, b / most, c / most
        low, high = low / most, 1.0
        steps.append((a, b, c))
    return steps


def polar_factor(m: torch.Tensor) -> torch.Tensor:
    """U V^T of m = U s V^T in float64, for singular values from 1e-7 of the largest on; float32
    iterations and one float64 step."""
    norm = torch.linalg.matrix_norm(m.mT @ m).sqrt()  # at least the largest singular value
    x = m / norm.clamp(min=torch.finfo(m.dtype).tiny)
    x = x.float()
    for a, b, c in polar_coefficients():
        gram = x.mT @ x
        x = torch.addmm(a * x, x, torch.addmm(b * gram, gram, gram, beta=1.0, alpha=c))
    x = x.double()
    return torch.addmm(1.5 * x, x, x.mT @ x, beta=1.0, alpha=-0.5)


def trace_sqrt_product_polar(sigma1: Any, sigma2: Any) -> float:
    """tr (sigma1 sigma2)^(1/2) on the device of sigma1, to about 1e-9 where both are well
    conditioned; singular values below 1e-7 of the largest count in part."""
    c1 = torch.as_tensor(sigma1).double()
    c2 = torch.as_tensor(sigma2).to(c1)
    return float(_nuclear_norm(_factor(c1).mT @ _factor(c2)))


def polar_trace(c1: torch.Tensor, c2: torch.Tensor) -> torch.Tensor:
    """tr (c1 c2)^(1/2) as a tensor of no dimension on their device, float64, without waiting for
    the device: for loops and CUDA graphs.

    A matrix that is not positive definite to rounding gets 4 d 2^-52 of its largest diagonal
    element added to its diagonal, where `trace_sqrt_product_polar` takes eigenvectors: a missing
    dimension then counts as the square root of that, some 1e-6 of the largest."""
    return _nuclear_norm(_shifted_factor(c1.double()).mT @ _shifted_factor(c2.double()))


def _nuclear_norm(m: torch.Tensor) -> torch.Tensor:
    return (polar_factor(m) * m).sum()


def _shifted_factor(c: torch.Tensor) -> torch.Tensor:
    plain, info = torch.linalg.cholesky_ex(c)
    diagonal = c.diagonal()
    least = 4 * len(c) * torch.finfo(c.dtype).eps * diagonal.max()
    shift = least.clamp(min=torch.finfo(c.dtype).tiny)
    shifted = torch.linalg.cholesky_ex(c + torch.diag_embed(shift.expand_as(diagonal))).L
    return torch.where(info == 0, plain, shifted)


def _factor(c: torch.Tensor) -> torch.Tensor:
    factor, info = torch.linalg.cholesky_ex(c)
    if int(info) == 0:
        return factor
    values, vectors = torch.linalg.eigh(c)
    return vectors * values.clamp(min=0).sqrt()
