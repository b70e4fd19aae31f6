"""Gradient of the Frechet distance with respect to features. Imported where torch is wanted."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .frechet_features import SAFE_PIVOT, centred_factor, check_features, factor

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


class _Rows:
    """Centred rows a and a factor S of their covariance, and the way back from a gradient with
    respect to S."""

    def __init__(self, x: np.ndarray, mu: np.ndarray) -> None:
        self.n, d = x.shape
        self.few = self.n <= d
        self.centred = x - mu
        self.root = factor(x, mu) if self.few else centred_factor(self.centred)

    def pull_back(self, gradient: np.ndarray) -> np.ndarray:
        if self.few:  # the reflection of `factor`
            root_n = np.sqrt(self.n)
            first = gradient.sum(axis=0, keepdims=True) / root_n
            rows = np.concatenate([first, gradient - first / (root_n - 1.0)])
            return rows / np.sqrt(self.n - 1)
        # a = sqrt(n - 1) Q S with orthonormal Q, and the same Q leads back.
        pivots = np.abs(np.diagonal(self.root))
        if pivots.min() > SAFE_PIVOT * pivots.max():
            transport = np.linalg.solve(self.root, gradient)
        else:
            transport = np.linalg.pinv(self.root) @ gradient
        return self.centred @ transport / (self.n - 1)


class _Distance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        (first, mu1), (second, mu2) = check_features(x, y)
        a, b = _Rows(first, mu1), _Rows(second, mu2)
        w = polar_factor(a.root @ b.root.T)
        to_a = w @ b.root  # gradient of the trace of the square root with respect to a.root
        value = np.sum((mu1 - mu2) ** 2) - 2.0 * np.vdot(to_a, a.root)
        value += np.vdot(a.root, a.root) + np.vdot(b.root, b.root)
        gradients: list[torch.Tensor] = []
        for needed, rows, shift, moved in (
            (ctx.needs_input_grad[0], a, mu1 - mu2, lambda: to_a),
            (ctx.needs_input_grad[1], b, mu2 - mu1, lambda: w.T @ a.root),
        ):
            g = np.empty((0, 0))
            if needed:
                g = rows.pull_back(moved())
                g = 2.0 * (rows.centred / (rows.n - 1) - g)
                g += 2.0 * shift / rows.n - g.mean(axis=0)
            gradients.append(torch.from_numpy(g))
        ctx.save_for_backward(*gradients)
        ctx.types = x.dtype, x.device, y.dtype, y.device
        return torch.tensor(value, dtype=torch.float64)

    @staticmethod
    def backward(ctx: Any, *grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        dx, dy = ctx.saved_tensors
        x_dtype, x_device, y_dtype, y_device = ctx.types
        scale = grad[0].cpu()
        need_x, need_y = ctx.needs_input_grad
        return (
            (scale * dx).to(x_device, x_dtype) if need_x else None,
            (scale * dy).to(y_device, y_dtype) if need_y else None,
        )


def differentiable_distance(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return _Distance.apply(x, y)
