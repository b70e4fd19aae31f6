"""Allocation of outputs in the caller's framework: all that ops do besides the native call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import _native

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


def empty_large(like: Array, shape: Sequence[int], dtype: str) -> Array:
    """`empty`, from pages of 2 MB where the system gives them: NumPy asks for those, torch does
    not, and the first touch of 4 KiB ones took 7 % of decoding a batch, whose caches they were."""
    if not is_torch(like):
        return empty(like, shape, dtype)
    import torch

    from . import _torch

    kind = _torch.dtype(dtype)
    size = math.prod(shape) * kind.itemsize
    plain = type(like) in (torch.Tensor, torch.nn.Parameter) and like.device.type == "cpu"
    if size < 1 << 22 or not plain:
        return empty(like, shape, dtype)
    room = np.empty(size + 64, np.uint8)  # NumPy aligns to 16 bytes, vectors want 64
    start = -room.ctypes.data % 64
    return torch.from_numpy(room[start : start + size]).view(kind).view(*shape)


def on_device_of(like: Array, numbers: np.ndarray) -> Array:
    """Numbers of the host for an op on `like`: as they are, or a copy on its GPU."""
    if getattr(like, "is_cuda", False):
        import torch

        return torch.from_numpy(numbers).to(like.device)
    if type(like).__module__.startswith("cupy"):
        import cupy

        return cupy.asarray(numbers)
    return numbers


def workspace(like: Array, count: int) -> list[Array]:
    """Scratch of a CUDA kernel, `count` float64 numbers where `like` is; none for the CPU, whose
    kernels find their own. So that ops allocate nothing on a device but what its framework keeps.
    """
    on_cuda = bool(getattr(like, "is_cuda", False)) or type(like).__module__.startswith("cupy")
    if on_cuda or hasattr(_native, "emulate_cuda"):
        return [empty(like, (count,), "float64")]
    return []


def pair_workspace(op: str, x: Array, y: Array | None, per_row: int = 0) -> list[Array]:
    """`workspace` of a pairwise op: a centre, norms, and `per_row` numbers per row of x."""
    rows, depth = shape(x, op, "x", 2)
    columns = 0 if y is None else shape(y, op, "y", 2)[0]
    return workspace(x, (depth + rows + columns) // 2 + 1 + rows * per_row)
