from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from .. import _native, ops
from ._features import Array, check_number, check_pair

_BLOCK = 4096  # samples projected at a time
_CHUNK = 64  # projections sorted at a time


def unit_directions(count: int, d: int, seed: int) -> np.ndarray:
    """(count, d) float32 unit vectors, uniform on the sphere: Philox normals scaled to norm 1."""
    directions = ops.random_normal((count, d), seed=seed)
    norms = np.sqrt(ops.moments(directions, directions)[:, 2])
    directions /= np.maximum(norms, 1e-30)[:, None].astype(np.float32)
    return directions


def project(x: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """(projections, N) float32, each projection contiguous, so that sorting runs along memory."""
    out = np.empty((len(directions), len(x)), np.float32)
    for begin in range(0, len(x), _BLOCK):
        block = x[begin : begin + _BLOCK]
        packed = ops.linear_pack(block, dtype="float32")
        end = begin + len(block)
        ops.linear(directions[None], packed, len(block), out=out[None, :, begin:end])
    return out


def _couplings(n: int, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Which order statistics of n and of m equally weighted points meet, and with what weight, in
    their optimal transport on the line. None where each meets its own."""
    if n == m:
        return None
    ends = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)  # in units of 1 / (n m)
    weights = np.diff(ends, prepend=0) / (float(n) * m)
    return (ends - 1) // m, (ends - 1) // n, weights


def line_distances(x: np.ndarray, y: np.ndarray, p: float) -> np.ndarray:
    """(projections,) float64: W_p^p of each row of x (projections, N) and y (projections, M), which
    are sorted in place."""
    coupling = _couplings(x.shape[1], y.shape[1])

    def chunk(begin: int) -> np.ndarray:
        a, b = x[begin : begin + _CHUNK], y[begin : begin + _CHUNK]
        a.sort(axis=1)
        b.sort(axis=1)
        if coupling is not None:
            a, b = a[:, coupling[0]], b[:, coupling[1]]
        gap = np.abs(a - b)
        gap = gap * gap if p == 2 else gap**p
        if coupling is not None:
            return gap.astype(np.float64) @ coupling[2]
        return gap.mean(axis=1, dtype=np.float64)

    with ThreadPoolExecutor(_native.num_threads()) as pool:  # sorting releases the GIL
        return np.concatenate(list(pool.map(chunk, range(0, len(x), _CHUNK))))


def _controls(
    x: np.ndarray, y: np.ndarray, directions: np.ndarray, a: np.ndarray, b: np.ndarray
) -> np.ndarray:
    """(2, projections) float64, of mean 0 over the sphere: the squared distance of the projected
    means, and the sum of the projected variances, each less its known mean."""
    d = x.shape[1]
    means = [v.mean(axis=0, dtype=np.float64) for v in (x, y)]
    gap = means[0] - means[1]
    shift = (directions.astype(np.float64) @ gap) ** 2 - gap @ gap / d
    spread = np.zeros(len(directions))
    for values, points, mean in ((a, x, means[0]), (b, y, means[1])):
        spread += values.var(axis=1, dtype=np.float64)
        for begin in range(0, len(points), _BLOCK):
            block = points[begin : begin + _BLOCK] - mean
            spread -= np.einsum("nd,nd->", block, block) / len(points) / d
    return np.stack([shift, spread])


def sliced_wasserstein(
    x: Array,
    y: Array,
    projections: int = 1000,
    p: float = 2.0,
    control_variate: str | None = None,
    seed: int = 0,
) -> float:
    """Sliced Wasserstein distance: the p-th root of the mean W_p^p over random lines.

    Exact on every line, for sets of different sizes, too.

    Args:
        x, y: (N, d), (M, d) features, NumPy or torch; float32 or float16 as they are, others are
            cast to float32. Torch tensors on a GPU are copied to the host.
        projections: number of directions, uniform on the sphere: Philox normals of `seed`.
        p: >= 1.
        control_variate: what the Gaussians of equal moments say about each line, whose mean over
            the sphere is known, takes a part of the Monte Carlo error away, at no cost but two
            moments: "lower" (the gap of the means), "upper" (plus both variances), "gaussian" (a
            least-squares fit of both parts), or None. The fitted coefficients bias the estimate by
            O(1 / projections).

    Raises:
        ValueError: dimensions that differ, NaN or infinity (with the first bad row), parameters
            out of range.

    Source: Bonneel et al., "Sliced and Radon Wasserstein Barycenters of Measures" (2015); Nguyen
    and Ho, "Sliced Wasserstein Estimation with Control Variates" (ICLR 2024).
    """
    name = "sliced_wasserstein"
    x, y = check_pair(name, x, y)
    check_number(name, "projections", projections, 1, whole=True)
    if not (isinstance(p, (int, float)) and 1 <= p < np.inf):
        raise ValueError(f"{name}: argument 'p' expected a finite number >= 1, got {p!r}")
    if control_variate not in (None, "gaussian", "lower", "upper"):
        raise ValueError(
            f"{name}: argument 'control_variate' expected None, 'gaussian', 'lower' or 'upper', "
            f"got {control_variate!r}"
        )
    directions = unit_directions(projections, x.shape[1], seed)
    a, b = project(x, directions), project(y, directions)
    controls = _controls(x, y, directions, a, b) if control_variate else np.zeros((0, projections))
    if control_variate == "lower":
        controls = controls[:1]
    elif control_variate == "upper":
        controls = controls.sum(axis=0, keepdims=True)
    values = line_distances(a, b, p)
    centred = controls - controls.mean(axis=1, keepdims=True)
    weights = np.linalg.lstsq(centred.T, values - values.mean(), rcond=None)[0]
    estimate = values.mean() - weights @ controls.mean(axis=1)
    return float(max(estimate, 0.0) ** (1.0 / p))
