from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .philox import normal


def random_normal(
    shape: Sequence[int],
    *,
    seed: int,
    offset: int = 0,
    first_element: int = 0,
    like: Any = None,
    dtype: str = "float32",
) -> np.ndarray:
    """Standard normals of a Philox stream; see `pixleap.ops.random_normal`."""
    count = int(np.prod(shape))
    return normal((first_element + count,), seed, offset)[first_element:].reshape(shape)
