from __future__ import annotations

from typing import Any

import numpy as np

from .. import ops
from ._features import Array, check_number, check_pair


def _mmd2(x: np.ndarray, y: np.ndarray, unbiased: bool, kernel: dict[str, Any]) -> float:
    """Squared MMD: the U-statistic for each set with itself, or the mean over all pairs."""
    n, m = len(x), len(y)
    result = -2.0 * ops.pairwise_kernel_sum(x, y, **kernel).sum() / n / m
    for points in (x, y):
        total = ops.pairwise_kernel_sum(points, **kernel).sum()
        count = len(points)
        if unbiased:
            result += total / count / (count - 1)
            continue
        if kernel["kernel"] == "gaussian":
            total += count
        else:
            squares = ops.moments(points, points)[:, 2]
            total += ((kernel["gamma"] * squares + kernel["coef0"]) ** kernel["degree"]).sum()
        result += total / count / count
    return float(result)


def kernel_distance(
    x: Array,
    y: Array,
    *,
    degree: int = 3,
    gamma: float | None = None,
    coef0: float = 1.0,
    unbiased: bool = True,
    subsets: int | None = None,
    subset_size: int = 1000,
    seed: int = 0,
) -> float | tuple[float, float]:
    """Kernel Inception Distance: squared MMD under the kernel (gamma a.b + coef0)^degree.

    Over the full sets, tiled: no kernel matrix is stored, at any N. Subsets are the usual way
    because the matrix was; the full sets use every pair and have the smaller variance.

    Args:
        x, y: (N, d), (M, d) features, NumPy or torch; float32 or float16 as they are, others are
            cast to float32. Torch tensors on a GPU are copied to the host.
        degree: 1 to 16.
        gamma: None for 1 / d.
        unbiased: leave out the pairs of a sample with itself (the result can be negative).
        subsets: None, or how many random subsets to average over.
        subset_size, seed: of the subsets, drawn without replacement from RandomState(seed), for x
            then for y: the draws of torch-fidelity.

    Returns:
        The squared MMD; with subsets its mean and standard deviation over them.

    Raises:
        ValueError: fewer than 2 samples, dimensions that differ, NaN or infinity (with the first
            bad row), values whose kernel overflows float32.

    Source: Binkowski et al., "Demystifying MMD GANs" (ICLR 2018).
    """
    name = "kernel_distance"
    x, y = check_pair(name, x, y, 2)
    check_number(name, "degree", degree, 1, 16, whole=True)
    gamma = 1.0 / x.shape[1] if gamma is None else gamma
    check_number(name, "gamma", gamma, 0)
    kernel = {"kernel": "polynomial", "gamma": gamma, "coef0": coef0, "degree": degree}
    if subsets is None:
        return _finite(name, _mmd2(x, y, unbiased, kernel))
    check_number(name, "subsets", subsets, 1, whole=True)
    check_number(name, "subset_size", subset_size, 2, min(len(x), len(y)), whole=True)
    random = np.random.RandomState(seed)
    values = []
    for _ in range(subsets):
        a, b = (v[random.choice(len(v), subset_size, replace=False)] for v in (x, y))
        values.append(_mmd2(a, b, unbiased, kernel))
    return _finite(name, float(np.mean(values))), float(np.std(values))


def _finite(name: str, value: float) -> float:
    if not np.isfinite(value):
        raise ValueError(f"{name}: arguments 'x' and 'y' are so large that the kernel overflows")
    return value


def cmmd(
    x: Array, y: Array, sigma: float = 10.0, *, scale: float = 1000.0, unbiased: bool = False
) -> float:
    """CMMD: squared MMD under exp(-|a - b|^2 / (2 sigma^2)), times `scale`, of CLIP embeddings.

    Args:
        x, y: (N, d), (M, d) embeddings, as for `kernel_distance`. The official ones are of CLIP
            ViT-L/14 at 336 pixels, scaled to unit norm; nothing is normalised here.
        scale: 1000 in the official results.
        unbiased: False is the official estimator: the mean over all pairs, those of a sample with
            itself included (biased, of minimum variance, never negative). True leaves them out.

    Raises:
        ValueError: fewer than 2 samples, dimensions that differ, NaN or infinity (with the first
            bad row), a sigma that is not positive.

    Source: Jayasumana et al., "Rethinking FID: Towards a Better Evaluation Metric for Image
    Generation" (CVPR 2024); google-research/cmmd.
    """
    x, y = check_pair("cmmd", x, y, 2)
    check_number("cmmd", "sigma", sigma, 0)
    return scale * _mmd2(x, y, unbiased, {"kernel": "gaussian", "gamma": 0.5 / sigma / sigma})
