"""Tensors that behave as a CUDA device's without one: `DeviceTensor` lies in the CPU's memory, says
`cuda:0`, refuses what torch refuses there (NumPy views, tensors of two devices in one call) and
counts what the host reads. Native ops run the CPU's kernels, or CUDA's where they are emulated."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from pixleap import _native

CUDA = torch.device("cuda", 0)
_REFUSED = ("numpy", "__array__", "__dlpack__")
_READS = (
    "__bool__", "__contains__", "__float__", "__index__", "__int__", "allclose", "equal", "item",
    "masked_select", "nonzero", "tolist", "unique",
)  # fmt: skip
# Arguments of native ops that are arrays of the host, wherever the others are.
_ON_HOST = ("lengths", "offsets", "positions", "slots")
# Calls of torch that take tensors of the host beside those of a device.
_MIXED = ("__getitem__", "__setitem__", "copy_", "index_put_")


class DeviceTensor(Tensor):
    """See above; made by `to_device`."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {}, [])


def _plain(x: Any) -> Any:
    with torch._C.DisableTorchFunctionSubclass():
        return x.as_subclass(Tensor) if isinstance(x, DeviceTensor) else x


def _wrap(x: Any) -> Any:
    if type(x) is Tensor:
        with torch._C.DisableTorchFunctionSubclass():
            return x.as_subclass(DeviceTensor)
    return x


def to_device(x: Any) -> Any:
    """Tensors and NumPy arrays inside tuples, lists and dicts, on the device."""
    return tree_map(
        lambda t: _wrap(torch.as_tensor(t).clone()) if isinstance(t, (Tensor, np.ndarray)) else t,
        x,
    )


def to_host(x: Any) -> Any:
    """The way back, which counts nothing."""
    return tree_map(lambda t: _plain(t).clone() if isinstance(t, Tensor) else t, x)


def _call(func: Any, args: Any, kwargs: Any, reads: list[str]) -> Any:
    name = getattr(func, "__name__", "")
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    here = any(isinstance(t, DeviceTensor) for t in tensors)
    device = kwargs.get("device")
    if name == "to":
        device = next((torch.device(a) for a in args[1:] if isinstance(a, (torch.device, str))),
                      device)  # fmt: skip
    if device is not None:
        device = torch.device(device)
        kwargs = {k: v for k, v in kwargs.items() if k != "device"}
        args = tuple(a for a in args if not isinstance(a, (torch.device, str)))
    if here and name in _REFUSED:
        raise TypeError(f"{name}: can't convert cuda:0 device type tensor to numpy")
    if name in ("__getitem__", "__setitem__", "index_put_") and any(
        isinstance(i, DeviceTensor) and str(_plain(i).dtype) == "torch.bool"
        for i in tree_leaves(args[1])
    ):
        reads.append("index of bool")  # how many are true is asked for
    if name == "copy_" and here and not isinstance(args[0], DeviceTensor):
        reads.append("copy_ to the host")
    kwargs.pop("pin_memory", None)
    if here and (name in (*_READS, "cpu") or (device and device.type == "cpu")):
        reads.append(name)
    if here and name not in _MIXED and name != "__get__":
        other = [t for t in tensors if not isinstance(t, DeviceTensor) and t.dim()]
        if other:
            raise RuntimeError(f"{name}: expected all tensors on cuda:0, got one of cpu")
    with torch._C.DisableTorchFunctionSubclass():
        result = func(*tree_map(_plain, args), **tree_map(_plain, kwargs))
        if name == "cpu" or (device and device.type == "cpu"):
            return result.clone() if isinstance(result, Tensor) else result
    return tree_map(_wrap, result) if here or (device and device.type == "cuda") else result


class _Event:
    def record(self, stream: Any) -> None:
        self.recorded = True

    def synchronize(self) -> None:
        assert self.recorded


class _Mode(TorchFunctionMode):
    def __init__(self, reads: list[str]) -> None:
        super().__init__()
        self._reads = reads

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {}, self._reads)


@contextlib.contextmanager
def fake_cuda() -> Iterator[list[str]]:
    """Inside, `device="cuda"` gives `DeviceTensor`s and native ops take them. The names of the
    calls that read a device's numbers on the host."""
    natives = {op: getattr(_native, op) for op in _native.signatures}
    reads: list[str] = []

    def checked(op: str) -> Callable[..., None]:
        def call(*args: Any) -> None:
            names = [name for name, _ in _native.signatures[op]]
            arrays = [
                x
                for name, value in zip(names, args, strict=True)
                if name not in _ON_HOST
                for x in tree_leaves(value)
                if isinstance(x, (Tensor, np.ndarray))
            ]
            if len({isinstance(x, DeviceTensor) for x in arrays}) > 1:
                raise ValueError(f"{op}: arrays of cuda:0 and of the host in one call")
            natives[op](*tree_map(_plain, args))

        return call

    fakes = {
        "is_current_stream_capturing": lambda: False,
        "current_stream": lambda device: None,
        "Event": _Event,
    }
    before = {name: getattr(torch.cuda, name) for name in fakes}
    environment = os.environ.get("PIXLEAP_CUDA_GRAPHS")
    try:
        os.environ["PIXLEAP_CUDA_GRAPHS"] = "0"  # tests/graph_emulation.py is for those
        for name, fake in fakes.items():
            setattr(torch.cuda, name, fake)
        for op in natives:
            setattr(_native, op, checked(op))
        with _Mode(reads):
            yield reads
    finally:
        os.environ.pop("PIXLEAP_CUDA_GRAPHS")
        if environment is not None:
            os.environ["PIXLEAP_CUDA_GRAPHS"] = environment
        for name, real in before.items():
            setattr(torch.cuda, name, real)
        for op, native in natives.items():
            setattr(_native, op, native)
