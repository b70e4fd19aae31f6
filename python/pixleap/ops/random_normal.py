from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .. import _native
from .._arrays import Array, empty
from .._arrays import shape as shape_of


def random_normal(
    shape: Sequence[int],
    *,
    seed: int,
    offset: int = 0,
    first_element: int = 0,
    like: Array | None = None,
    dtype: str = "float32",
    out: Array | None = None,
) -> Array:
    """Standard normal numbers that depend on (seed, offset, position) only.

    Element e is number first_element + e of the Philox4x32-10 stream keyed by (seed, offset): the
    same bits on every machine, ISA, thread count and split of a batch.

    Args:
        shape: of the result.
        first_element: position of the first element in the stream.
        like: an array whose framework and device the result takes; None gives NumPy.
        dtype: "float32", "float16" or, with `like` of a framework that has it, "bfloat16".
        out: contiguous array of `shape` to write; like and dtype then count for nothing.

    Returns:
        `out`.

    Raises:
        ValueError, TypeError: a negative first_element, or an `out` that does not fit.

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011); Box-Muller.
    """
    if out is None and like is None:
        out = np.empty(shape, dtype)
    elif out is None:
        shape_of(like, "random_normal", "like")
        out = empty(like, shape, dtype)
    _native.random_normal(out, math.prod(shape), seed, offset, first_element)
    return out
