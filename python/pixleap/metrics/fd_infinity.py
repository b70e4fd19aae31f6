from __future__ import annotations

import numpy as np

from ._features import (
    Array,
    check_features,
    check_number,
    mean_and_covariance,
    to_numpy,
)
from .frechet import frechet_distance


def fd_infinity(
    x: Array,
    y: Array | tuple[Array, Array],
    *,
    points: int = 15,
    smallest: int | None = None,
    seed: int = 0,
) -> float:
    """Frechet distance extrapolated to infinitely many samples of x.

    The distance of N samples is biased by about c / N. It is computed for `points` numbers of
    samples, each a fresh random subset, and a line over 1 / N is extended to 0.

    Args:
        x: (N, d) features of generated samples, NumPy or torch.
        y: (M, d) features of the reference, or its (mean (d,), covariance (d, d)).
        points: at least 2 sizes, evenly spaced from `smallest` to N.
        smallest: None for N / 10 (5,000 of 50,000, as in the original code), at least 2.
        seed: of the subsets.

    Returns:
        The intercept, which can be slightly negative where the sets agree.

    Raises:
        ValueError: fewer than 2 samples, dimensions that differ, NaN or infinity (with the first
            bad row), sizes out of range, a covariance that is none.

    Source: Chong and Forsyth, "Effectively Unbiased FID and Inception Score and where to find
    them" (CVPR 2020).
    """
    name = "fd_infinity"
    x = check_features(name, "x", x, 4)
    if isinstance(y, tuple):
        if len(y) != 2:
            raise ValueError(
                f"{name}: argument 'y' expected (mean, covariance), got {len(y)} items"
            )
        mean, covariance = (to_numpy(name, "y", v).astype(np.float64) for v in y)
    else:
        y = check_features(name, "y", y, 2)
        mean, covariance = mean_and_covariance(y, np.arange(len(y)))
    if mean.shape != x.shape[1:]:
        raise ValueError(
            f"{name}: argument 'y' expected {x.shape[1]} features as 'x', got shape {mean.shape}"
        )
    check_number(name, "points", points, 2, whole=True)
    smallest = max(2, len(x) // 10) if smallest is None else smallest
    check_number(name, "smallest", smallest, 2, len(x) - 1, whole=True)
    random = np.random.default_rng(seed)
    sizes = np.linspace(smallest, len(x), points).astype(np.int64)
    distances = [
        frechet_distance(
            *mean_and_covariance(x, random.permutation(len(x))[:size]), mean, covariance
        )
        for size in sizes
    ]
    _, intercept = np.polyfit(1.0 / sizes, distances, 1)
    return float(intercept)
