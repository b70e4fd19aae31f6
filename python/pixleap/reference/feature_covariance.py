from __future__ import annotations

from fractions import Fraction

import numpy as np

from .feature_moments import _SCALE, to_integers


def feature_covariance(
    second: np.ndarray, first: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """In rational numbers; see `pixleap.ops.feature_covariance`."""
    sums = [Fraction(v, _SCALE) for v in to_integers(first)]
    products = [Fraction(v, _SCALE) for v in to_integers(second)]
    d = len(sums)
    covariance = np.empty((d, d))
    for i in range(d):
        for j in range(i + 1):
            total = products[i * (i + 1) // 2 + j] - sums[i] * sums[j] / count
            covariance[i, j] = covariance[j, i] = float(total / (count - 1))
    return np.array([float(s / count) for s in sums]), covariance
