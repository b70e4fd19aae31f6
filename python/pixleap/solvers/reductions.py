"""Per-sample sums on the host, for what a sampler decides by its samples."""

from __future__ import annotations

import numpy as np

from .. import ops
from .._arrays import Array, is_torch


def host_moments(a: Array, b: Array) -> np.ndarray:
    """`px.ops.moments` as (B, 6) NumPy float64: sum a, sum b, sum a*a, sum b*b, sum a*b,
    max |a - b|. Waits for the device."""
    out = ops.moments(a, b)
    return out.cpu().numpy() if is_torch(out) else np.asarray(out)


def elements(x: Array) -> int:
    """Elements of one sample."""
    return int(np.prod(tuple(x.shape)[1:]))


def per_sample(values: np.ndarray, like: Array) -> Array:
    """Host numbers as a float64 array where `like` is, for `px.ops.lincomb`."""
    values = np.ascontiguousarray(values, np.float64)
    if not is_torch(like):
        return values
    import torch

    return torch.from_numpy(values).to(like.device)
