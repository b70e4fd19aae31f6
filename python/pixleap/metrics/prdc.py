from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .. import ops
from ._features import Array, check_number, check_pair


class PRDC(NamedTuple):
    precision: float
    recall: float
    density: float
    coverage: float


def prdc(x: Array, y: Array, nearest_k: int = 5) -> PRDC:
    """Precision, recall, density and coverage of generated samples, by k-nearest-neighbour balls.

    The ball of a sample reaches to its k-th nearest neighbour within its own set (itself not
    counted) and does not contain its boundary, as in the `prdc` package. No distance matrix is
    stored; all decisions are those of a float64 brute force.

    Args:
        x: (N, d) features of real samples, NumPy or torch; float32 or float16 as they are, others
            are cast to float32. Torch tensors on a GPU are copied to the host.
        y: (M, d) features of generated samples.
        nearest_k: 1 to 64.

    Returns:
        precision: share of y in some ball of x.
        recall: share of x in some ball of y.
        density: mean number of balls of x that hold a sample of y, over nearest_k.
        coverage: share of balls of x that hold some y.

    Raises:
        ValueError: no more than nearest_k samples, dimensions that differ, NaN or infinity (with
            the first bad row).

    Source: Kynkaanniemi et al., "Improved Precision and Recall Metric for Assessing Generative
    Models" (NeurIPS 2019); Naeem et al., "Reliable Fidelity and Diversity Metrics for Generative
    Models" (ICML 2020).
    """
    check_number("prdc", "nearest_k", nearest_k, 1, 64, whole=True)
    x, y = check_pair("prdc", x, y, nearest_k + 1)
    x_radii, y_radii = (
        np.ascontiguousarray(ops.pairwise_topk(v, k=nearest_k)[0][:, -1]) for v in (x, y)
    )
    x_counts, y_counts = ops.pairwise_count(x, y, x_radii, y_radii)
    return PRDC(
        precision=float((y_counts[:, 1] > 0).mean()),
        recall=float((x_counts[:, 1] > 0).mean()),
        density=float(y_counts[:, 1].mean() / nearest_k),
        coverage=float((x_counts[:, 0] > 0).mean()),
    )
