"""Allocation of outputs in the caller's framework: all that ops do besides the native call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = Any  # a torch tensor, a NumPy array or any object with __dlpack__


def is_torch(x: Array) -> bool:
    """Whether `x` is a torch tensor; does not import torch."""
    return hasattr(x, "new_empty")


def shape(x: Array, op: str, name: str, ndim: int | None = None) -> tuple[int, ...]:
    """Shape of an argument, for the allocation of outputs; the error that the native front would
    give where there is none."""
    if not hasattr(x, "shape"):
        raise TypeError(
            f"{op}: argument '{name}' expected an array (torch, NumPy or DLPack), "
            f"got {type(x).__name__}"
        )
    if ndim is not None and len(x.shape) != ndim:
        raise ValueError(
            f"{op}: argument '{name}' expected {ndim} dimensions, got shape {tuple(x.shape)}"
        )
    return tuple(x.shape)


def empty(like: Array, shape: Sequence[int], dtype: str | None = None) -> Array:
    """Uninitialised array of `like`'s framework and device.

    dtype: None for that of `like`, else a name such as "float32" or "int64".
    Arrays of other frameworks (their arrays may be immutable) get NumPy outputs.
    """
    if is_torch(like):
        if dtype is None:
            return like.new_empty(shape)
        from . import _torch

        return like.new_empty(shape, dtype=_torch.dtype(dtype))
    if type(like).__module__.startswith("cupy"):
        import cupy

        return cupy.empty(shape, dtype or like.dtype)
    return np.empty(shape, dtype or like.dtype)
