from __future__ import annotations

import numpy as np


def _cubic(d: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel, A = -0.75."""
    a, d = -0.75, np.abs(d)
    inner = ((a + 2) * d - (a + 3)) * d**2 + 1
    outer = a * (((d - 5) * d + 8) * d - 4)
    return np.where(d <= 1, inner, np.where(d < 2, outer, 0.0))


def upsampling_matrix(n: int, height: int) -> np.ndarray:
    """Matrix (height, n) of the bicubic interpolation along one axis."""
    if n == height:
        return np.eye(n)
    matrix = np.zeros((height, n))
    position = (np.arange(height) + 0.5) * n / height - 0.5
    for tap in range(-1, 3):
        at = np.floor(position).astype(int) + tap
        np.add.at(matrix, (np.arange(height), np.clip(at, 0, n - 1)), _cubic(position - at))
    return matrix


def _averaging(height: int, m: int) -> np.ndarray:
    """Matrix (m, height) of the adaptive average along one axis."""
    matrix = np.zeros((m, height))
    for i in range(m):
        first, last = i * height // m, -(-(i + 1) * height // m)
        matrix[i, first:last] = 1 / (last - first)
    return matrix


def next_scale_update(
    tokens: np.ndarray,
    codebook: np.ndarray,
    phi_weight: np.ndarray,
    phi_bias: np.ndarray,
    f_hat: np.ndarray,
    next_size: int,
    *,
    phi_ratio: float = 0.5,
) -> tuple[np.ndarray, np.ndarray]:
    """Adds one scale's tokens to the feature map; see `pixleap.ops.next_scale_update`."""
    batch, channels, height, _ = f_hat.shape
    n = round(tokens.shape[1] ** 0.5)
    codes = np.asarray(codebook, np.float64)[tokens].reshape(batch, n, n, channels)
    up = upsampling_matrix(n, height)
    h = np.einsum("Yy,Xx,byxc->bcYX", up, up, codes)
    padded = np.pad(h, ((0, 0), (0, 0), (1, 1), (1, 1)))
    convolved = np.asarray(phi_bias, np.float64)[None, :, None, None] + sum(
        np.einsum(
            "oi,biYX->boYX",
            np.asarray(phi_weight[:, :, ky, kx], np.float64),
            padded[:, :, ky : ky + height, kx : kx + height],
        )
        for ky in range(3)
        for kx in range(3)
    )
    f_hat_new = f_hat + (1 - phi_ratio) * h + phi_ratio * convolved
    down = _averaging(height, next_size)
    pooled = np.einsum("yY,xX,bcYX->byxc", down, down, f_hat_new)
    return f_hat_new, pooled.reshape(batch, next_size * next_size, channels)
