from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .philox import normal


def lincomb(
    inputs: Sequence[np.ndarray],
    coefficients: Sequence[Sequence[float]] | Sequence[float] | np.ndarray,
    *,
    weights: Sequence[np.ndarray | None] | None = None,
    clamp: float | None = None,
    noise_scale: Sequence[float] | np.ndarray | None = None,
    seed: int = 0,
    offset: int = 0,
    first_element: int = 0,
) -> list[np.ndarray]:
    """Linear combinations of n arrays into m arrays; see `pixleap.ops.lincomb`."""
    arrays = [np.asarray(x, np.float64) for x in inputs]
    if weights is not None:
        arrays = [x if w is None else x * w for x, w in zip(arrays, weights, strict=True)]
    stacked = np.stack(arrays)
    c = np.asarray(coefficients, np.float64)
    if c.ndim == 3:
        results = np.einsum("bji,ib...->jb...", c, stacked)
    else:
        results = np.tensordot(c.reshape(-1, len(arrays)), stacked, axes=1)
    if noise_scale is not None:
        count = stacked[0].size
        noise = normal((first_element + count,), seed, offset)[first_element:]
        noise = noise.reshape(stacked.shape[1:])
        scale = np.asarray(noise_scale, np.float64)
        results = results + (
            np.einsum("bj,b...->jb...", scale, noise)
            if scale.ndim == 2
            else np.multiply.outer(scale, noise)
        )
    if clamp is not None:
        results = np.clip(results, -clamp, clamp)
    return list(results)
