"""Gradient of the Frechet distance with respect to features. Imported where torch is wanted."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .frechet_features import SAFE_PIVOT, centred_factor, check_features, covariance

# Below this ratio of singular values their squares have lost too much to rounding.
_GRAM_RATIO = 1e-4
_SMALL = 256


def polar_factor(m: np.ndarray) -> np.ndarray:
    """U V^T of m = U s V^T, over the singular values above rounding."""
    if m.shape[0] < m.shape[1]:
        return polar_factor(m.T).T
    if m.shape[1] > _SMALL:  # eigenvectors of the Gram matrix cost a third
        values, vectors = np.linalg.eigh(m.T @ m)
        if values[0] > _GRAM_RATIO**2 * values[-1]:
            return (m @ (vectors / np.sqrt(values))) @ vectors.T
    u, s, vt = np.linalg.svd(m, full_matrices=False)
    kept = s > max(m.shape) * np.finfo(np.float64).eps * s.max(initial=0.0)
    return u[:, kept] @ vt[kept]


def _solve(root: np.ndarray, b: np.ndarray) -> np.ndarray:
    pivots = np.abs(np.diagonal(root))
    if pivots.min() > SAFE_PIVOT * pivots.max():
        return np.linalg.solve(root, b)
    return np.linalg.pinv(root) @ b


def _transport(a: np.ndarray, b: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """tr (C1 C2)^(1/2) of centred rows, and its gradients with respect to a and b."""
    n1, n2, d = len(a), len(b), a.shape[1]
    s1, s2 = (v / np.sqrt(len(v) - 1) if len(v) <= d else centred_factor(v) for v in (a, b))
    w = polar_factor(s1 @ s2.T)
    to_second, to_first = w @ s2, w.T @ s1  # gradients with respect to s1 and s2
    trace = float(np.vdot(to_second, s1))

    def pull_back(rows: np.ndarray, root: np.ndarray, gradient: np.ndarray, n: int) -> np.ndarray:
        if n <= d:
            return gradient / np.sqrt(n - 1)
        # rows = sqrt(n - 1) Q root with orthonormal Q, and the same Q leads back.
        return rows @ _solve(root, gradient) / (n - 1)

    return trace, pull_back(a, s1, to_second, n1), pull_back(b, s2, to_first, n2)


class _Distance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        (first, mu1), (second, mu2) = check_features(x, y)
        a, b = first - mu1, second - mu2
        trace, da, db = _transport(a, b)
        value = np.sum((mu1 - mu2) ** 2) + np.trace(covariance(a)) + np.trace(covariance(b))
        gradients = []
        for rows, transported, mu, other in ((a, da, mu1, mu2), (b, db, mu2, mu1)):
            n = len(rows)
            g = 2.0 * (rows / (n - 1) - transported)
            g += 2.0 * (mu - other) / n - g.mean(axis=0)  # rows were centred
            gradients.append(torch.from_numpy(g))
        ctx.save_for_backward(*gradients)
        ctx.types = x.dtype, x.device, y.dtype, y.device
        return torch.tensor(value - 2.0 * trace, dtype=torch.float64)

    @staticmethod
    def backward(ctx: Any, *grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        dx, dy = ctx.saved_tensors
        x_dtype, x_device, y_dtype, y_device = ctx.types
        scale = grad[0].cpu()
        return (scale * dx).to(x_device, x_dtype), (scale * dy).to(y_device, y_dtype)


def differentiable_distance(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return _Distance.apply(x, y)
