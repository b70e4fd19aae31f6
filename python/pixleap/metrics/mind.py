from __future__ import annotations

import numpy as np

from ._features import Array, check_number, check_pair, to_numpy
from .sliced_wasserstein import line_distances, project, unit_directions


def mind(
    x: Array,
    y: Array,
    projections: int = 1000,
    *,
    seed: int = 0,
    directions: Array | None = None,
) -> float:
    """Monge Inception Distance: 3 d times the mean squared W_2 over random lines.

    Args:
        x, y: (N, d), (M, d) features (Inception's 2048 in the paper, with N = M = 5,000), NumPy or
            torch; float32 or float16 as they are, others are cast to float32. Torch tensors on a
            GPU are copied to the host.
        projections: number of directions, uniform on the sphere: Philox normals of `seed`.
        directions: (projections, d) unit vectors to use instead, for the value of another
            implementation.

    Returns:
        The distance, on the scale of a Frechet distance. Sets of different sizes are compared
        exactly, by their quantile functions (torch-fidelity draws a subset of the larger).

    Raises:
        ValueError: dimensions that differ, NaN or infinity (with the first bad row), directions
            that are not unit vectors.

    Source: Berthet et al., "MIND: Monge Inception Distance for Generative Models Evaluation"
    (arXiv:2605.06797); torch-fidelity has the same definition.
    """
    x, y = check_pair("mind", x, y)
    check_number("mind", "projections", projections, 1, whole=True)
    d = x.shape[1]
    if directions is None:
        lines = unit_directions(projections, d, seed)
    else:
        lines = np.ascontiguousarray(to_numpy("mind", "directions", directions), np.float32)
        if lines.ndim != 2 or lines.shape[1] != d or len(lines) == 0:
            raise ValueError(
                f"mind: argument 'directions' expected shape (projections, {d}), got {lines.shape}"
            )
        if not (np.abs(np.linalg.norm(lines, axis=1) - 1) < 1e-3).all():
            raise ValueError("mind: argument 'directions' expected rows of norm 1")
    return float(3.0 * d * line_distances(project(x, lines), project(y, lines), 2.0).mean())
