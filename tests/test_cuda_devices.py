"""What a GPU would be given: every case of every op with its arrays on a device, by arrays of the
host that say through DLPack that they are on CUDA device 0. Fronts check devices, and the call ends
where a kernel would start: in a build without CUDA with the error that says so, in one that
emulates CUDA (docs/cuda.md) with the result."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
import torch

import pixleap as px
from pixleap import _native

from harness import (
    Case,
    all_cases,
    as_list,
    assert_close,
    run_op,
    run_reference,
    to_device,
    to_torch,
)

EMULATES = hasattr(_native, "emulate_cuda")
pytestmark = [
    pytest.mark.cuda_emulated,
    pytest.mark.skipif(
        _native.built_with_cuda and not EMULATES,
        reason="this build has CUDA kernels, which must not be given memory of the host",
    ),
]
MOST_ELEMENTS = 60_000
CASES = [
    pytest.param(op, case, id=f"{op}-{case.name}") for op, case in all_cases() if not case.peer
]
CPU_ONLY = {
    "gumbel_softmax",
    "matrix_sqrt",
    "nuclear_norm",
    "token_probabilities",
    "trace_sqrt_product",
}
CAPSULE = ctypes.pythonapi.PyCapsule_GetPointer
CAPSULE.restype, CAPSULE.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)


class OnDevice:
    """A tensor that says it is on a GPU."""

    is_cuda = True
    device = torch.device("cpu")  # where copies for it have to be

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.shape, self.dtype, self.ndim = tensor.shape, tensor.dtype, tensor.ndim

    def __dlpack__(self, **kwargs: Any) -> Any:
        capsule = self.tensor.__dlpack__()
        # DLManagedTensor: the data's address, then the device's type; 2 is CUDA.
        ctypes.c_int32.from_address(CAPSULE(capsule, b"dltensor") + 8).value = 2
        return capsule

    def new_empty(self, shape: Any, dtype: torch.dtype | None = None) -> OnDevice:
        return OnDevice(self.tensor.new_empty(tuple(shape), dtype=dtype))

    def __getitem__(self, index: Any) -> OnDevice:
        return OnDevice(self.tensor[index])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tensor, name)


def back(x: Any) -> Any:
    return x.tensor if isinstance(x, OnDevice) else x


@pytest.fixture(autouse=True)
def copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies for such an array say the same."""

    def on_device_of(like: Any, numbers: np.ndarray) -> Any:
        return OnDevice(torch.from_numpy(numbers))

    monkeypatch.setattr(px.masks, "on_device_of", on_device_of)


@pytest.mark.parametrize(("op", "case"), CASES)
def test_arrays_on_a_device_reach_the_kernel(op: str, case: Case) -> None:
    args, kwargs = (to_torch(x, case.dtypes[0]) for x in case.make(np.random.default_rng(7)))
    expected = run_reference(op, args, kwargs)
    if sum(np.size(x) for x in as_list(expected)) > MOST_ELEMENTS:
        pytest.skip(f"more than {MOST_ELEMENTS} elements of output")
    args, kwargs = to_device(op, case, args, kwargs, OnDevice)
    try:
        result = run_op(op, args, kwargs)
    except RuntimeError as error:
        assert "no CUDA kernel" in str(error)
        assert op in CPU_ONLY or not EMULATES
        return
    result = [back(x) for x in result] if isinstance(result, (list, tuple)) else back(result)
    assert_close(result, expected, case, case.dtypes[0])  # without a kernel: nothing to do
