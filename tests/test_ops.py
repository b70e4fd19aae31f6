"""Every op, every instruction set the machine has, every case, against the float64 reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import pixleap as px

from harness import (
    Case,
    Sentinel,
    all_cases,
    as_list,
    assert_close,
    map_arrays,
    run_op,
    run_reference,
    strided,
    to_device,
    to_reference,
    to_torch,
)

# Timed cases are large: every ISA computes them once, and what is said of layouts, threads and
# neighbouring memory is tested on the small ones, and on all by the machine's own ISA for threads.
# `-m "not large"` leaves them out.
CASES = [
    pytest.param(op, case, id=f"{op}-{case.name}", marks=[pytest.mark.large] if case.peer else [])
    for op, case in all_cases()
]
SMALL = [param for param in CASES if not param.marks]
# In the environment a run is meant for one ISA (how CI forces the emulated ones).
ISAS = px.available_isas()


def build(case: Case, dtype: str) -> tuple[Any, Any]:
    args, kwargs = case.make(np.random.default_rng(7))
    return to_torch(args, dtype), to_torch(kwargs, dtype)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("op", "case"), CASES)
def test_equals_reference(op: str, case: Case, isa: str) -> None:
    px.set_isa(isa)
    for dtype in case.dtypes:
        args, kwargs = build(case, dtype)
        expected = run_reference(op, args, kwargs)
        assert_close(run_op(op, args, kwargs), expected, case, dtype)


@pytest.mark.parametrize(("op", "case"), SMALL)
def test_strided_inputs(op: str, case: Case) -> None:
    args, kwargs = build(case, case.dtypes[0])
    expected = run_reference(op, args, kwargs)
    try:
        actual = run_op(op, strided(args), strided(kwargs))
    except ValueError as error:  # a documented refusal is fine, a wrong result is not
        assert "contiguous" in str(error) or "stride" in str(error), error
        return
    assert_close(actual, expected, case, case.dtypes[0])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("op", "case"), SMALL)
def test_out_between_sentinels(op: str, case: Case, isa: str) -> None:
    if not case.has_out:
        return
    px.set_isa(isa)
    for dtype in case.dtypes:
        args, kwargs = build(case, dtype)
        first = run_op(op, args, kwargs)
        guards = [Sentinel(t) for t in as_list(first)]
        out: Any = [g.out for g in guards]
        if not isinstance(first, (list, tuple)):
            out = out[0]
        second = run_op(op, args, {**kwargs, "out": out})
        for guard, a, b in zip(guards, as_list(first), as_list(second), strict=True):
            guard.check()
            assert b.data_ptr() == guard.out.data_ptr() or b.numel() == 0
            assert torch.equal(a.isnan(), b.isnan()) if a.is_floating_point() else True
            assert torch.equal(
                a.nan_to_num() if a.is_floating_point() else a,
                b.nan_to_num() if b.is_floating_point() else b,
            )


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("op", "case"), CASES)
def test_same_bits_for_any_thread_count(op: str, case: Case, isa: str) -> None:
    if case.peer is not None and isa != ISAS[-1]:
        return
    px.set_isa(isa)
    args, kwargs = build(case, case.dtypes[0])
    results = []
    for threads in (1, 2, 5):
        px.set_num_threads(threads)
        results.append(to_reference(as_list(run_op(op, args, kwargs))))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("op", "case"), SMALL)
def test_numpy_and_dlpack_inputs(op: str, case: Case) -> None:
    class Exported:  # nothing but the DLPack protocol
        def __init__(self, array: np.ndarray) -> None:
            self.array, self.shape, self.dtype = array, array.shape, array.dtype

        def __dlpack__(self, **kwargs: Any) -> Any:
            return self.array.__dlpack__(**kwargs)

        def __dlpack_device__(self) -> Any:
            return self.array.__dlpack_device__()

    if "float32" not in case.dtypes:
        return
    args, kwargs = case.make(np.random.default_rng(7))
    expected = run_op(op, to_torch(args), to_torch(kwargs))
    for convert in (lambda x: x, Exported):
        actual = run_op(op, map_arrays(convert, args), map_arrays(convert, kwargs))
        for a, e in zip(as_list(actual), as_list(expected), strict=True):
            a = a.array if isinstance(a, Exported) else a  # an argument that was written into
            assert isinstance(a, np.ndarray)
            np.testing.assert_array_equal(a, e.numpy())


@pytest.mark.cuda
@pytest.mark.parametrize(("op", "case"), CASES)
def test_cuda_equals_reference(op: str, case: Case) -> None:
    for dtype in case.dtypes:
        args, kwargs = build(case, dtype)
        expected = run_reference(op, args, kwargs)
        args, kwargs = to_device(op, case, args, kwargs)
        try:
            actual = run_op(op, args, kwargs)
        except RuntimeError as error:
            if "no CUDA kernel" in str(error):
                pytest.skip(str(error))
            raise
        assert_close(actual, expected, case, dtype)
