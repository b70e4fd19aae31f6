from __future__ import annotations

from fractions import Fraction

import numpy as np

_SCALE = 2**74


def to_integers(halves: np.ndarray) -> list[int]:
    """(n, 2) int64 low and high halves as Python integers."""
    return [(int(high) << 64) + (int(low) & (2**64 - 1)) for low, high in halves]


def from_integers(values: list[int]) -> np.ndarray:
    low = np.array([v & (2**64 - 1) for v in values], np.uint64).view(np.int64)
    return np.stack([low, np.array([v >> 64 for v in values], np.int64)], axis=1)


def feature_moments(
    features: np.ndarray, second: np.ndarray, first: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Exact sums of products of the rows, added to exact totals; see
    `pixleap.ops.feature_moments`, which rounds its products."""
    x = np.asarray(features, np.float64)
    d = x.shape[1]
    denominators = [Fraction(float(v)).denominator for v in np.unique(x)]
    unit = max(denominators, default=1)  # features are multiples of 1 / unit, a power of two
    rows = x * unit
    if len(x) * np.abs(rows).max(initial=0.0) ** 2 >= 2**53:  # beyond what float64 adds exactly
        rows = np.array([[int(v) for v in row] for row in rows], object).reshape(x.shape)
    lower = np.tril_indices(d)
    sums = [Fraction(int(v), unit) for v in rows.sum(axis=0)]
    products = [Fraction(int(v), unit**2) for v in (rows.T @ rows)[lower]]

    def add(total: np.ndarray, values: list[Fraction]) -> np.ndarray:
        old = to_integers(total)
        return from_integers([o + int(v * _SCALE) for o, v in zip(old, values, strict=True)])

    if d == 0:
        return second, first
    return add(second, products), add(first, sums)
