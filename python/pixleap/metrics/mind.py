from __future__ import annotations

import numpy as np

from .. import ops
from ._features import Array, check_number, check_pair, to_numpy
from .sliced_wasserstein import line_distances, project, unit_directions


def mind(
    x: Array,
    y: Array,
    projections: int = 1000,
    *,
    seed: int = 0,
    directions: str | Array = "orthogonal",
) -> float:
    """Monge Inception Distance: 3 d times the mean squared W_2 over random lines.

    Args:
        x, y: (N, d), (M, d) features (Inception's 2048 in the paper, with N = M = 5,000), NumPy or
            torch; float32 or float16 as they are, others are cast to float32. Torch tensors on a
            GPU are copied to the host.
        projections: number of directions.
        directions: "orthogonal": signs and Hadamard transforms of `seed` make up to d directions
            at a time orthogonal and each close to uniform on the sphere, which takes D log D steps
            per sample instead of a matrix product. "independent": uniform on the sphere, as in the
            paper (Philox normals of `seed`). An array (projections, d) of unit vectors: these,
            for the value of another implementation. The first two estimate the same mean.

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
    if isinstance(directions, str):
        if directions not in ("orthogonal", "independent"):
            raise ValueError(
                f"mind: argument 'directions' expected 'orthogonal', 'independent' or an array, "
                f"got {directions!r}"
            )
        if directions == "orthogonal":
            return 3.0 * d * _orthogonal_distances(x, y, projections, seed)
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


def _orthogonal_distances(x: np.ndarray, y: np.ndarray, projections: int, seed: int) -> float:
    """Mean squared W_2 over frames of orthogonal directions, each of at most D."""
    size = 1 << (x.shape[1] - 1).bit_length()
    total = 0.0
    for frame, begin in enumerate(range(0, projections, size)):
        count = min(size, projections - begin)
        flips = (ops.random_normal((3, size), seed=seed, offset=frame) < 0).astype(np.uint8)
        a, b = (ops.hadamard_projection(v, flips, count=count) for v in (x, y))
        total += line_distances(a, b, 2.0).sum()
    return float(total) / projections
