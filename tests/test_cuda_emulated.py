"""Every op with a CUDA kernel, run by the emulation of CUDA's threads (csrc/cuda/emulate), against
the float64 reference: in a build with PIXLEAP_CUDA_EMULATE=ON. Three orders in which threads go on
show a missing barrier as a wrong result; a barrier that cannot end raises."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pixleap import _native

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
    to_torch,
)

pytestmark = pytest.mark.cuda_emulated
# A CUDA thread costs about as much as a thread of the CPU: larger cases repeat what small ones
# show, and would take minutes.
MOST_ELEMENTS = 300_000
MOST_FLOPS = 1e8
CASES = [pytest.param(op, case, id=f"{op}-{case.name}") for op, case in all_cases()]
ORDERS = (("forward", 0), ("reverse", 0), ("shuffle", 11))
# Major compute capabilities of the emulated device: 9 has kernels of its own for some ops.
CAPABILITIES = {"attention": (8, 9), "attention_varlen": (8, 9), "linear": (8, 9)}


def inputs(case: Case, dtype: str) -> tuple[Any, Any]:
    args, kwargs = case.make(np.random.default_rng(7))
    return to_torch(args, dtype), to_torch(kwargs, dtype)


def elements(value: Any) -> int:
    sizes: list[int] = []
    map_arrays(lambda t: sizes.append(t.numel()) or t, value)
    return sum(sizes)


def skip_large(args: Any, kwargs: Any, case: Case) -> None:
    size = elements((args, kwargs))
    if size > MOST_ELEMENTS:
        pytest.skip(f"{size} elements, above {MOST_ELEMENTS} of the emulation")
    if case.flops > MOST_FLOPS:
        pytest.skip(f"{case.flops:.1e} operations, above {MOST_FLOPS:.0e} of the emulation")


def run_emulated(
    order: tuple[str, int], op: str, args: Any, kwargs: Any, capability: int = 9
) -> Any:
    _native.emulate_cuda(*order, capability)
    before = _native.emulated_launches()
    try:
        result = run_op(op, args, kwargs)
    except RuntimeError as error:
        if "no CUDA kernel" in str(error):
            pytest.skip(str(error))
        raise
    finally:
        _native.emulate_cuda("off")
    if _native.emulated_launches() == before and elements(as_list(result)):
        pytest.skip("no CUDA kernel of the op")
    return result


def same_bits(a: Any, b: Any) -> bool:
    def bits(t: torch.Tensor) -> torch.Tensor:
        return t.reshape(-1).clone().view(torch.uint8) if t.numel() else t

    return all(torch.equal(bits(x), bits(y)) for x, y in zip(as_list(a), as_list(b), strict=True))


@pytest.mark.parametrize(("op", "case"), CASES)
def test_equals_reference_between_sentinels(op: str, case: Case) -> None:
    for dtype in case.dtypes:
        args, kwargs = inputs(case, dtype)
        skip_large(args, kwargs, case)
        expected = None
        for capability in CAPABILITIES.get(op, (9,)):
            first = run_emulated(ORDERS[0], op, *inputs(case, dtype), capability)
            if expected is None:
                expected = run_reference(op, *inputs(case, dtype))
            assert_close(first, expected, case, dtype)
            for order in ORDERS:
                args, kwargs = inputs(case, dtype)
                guards = [Sentinel(t) for t in as_list(first)] if case.has_out else []
                if guards:
                    out = [g.out for g in guards]
                    kwargs["out"] = out if isinstance(first, (list, tuple)) else out[0]
                result = run_emulated(order, op, args, kwargs, capability)
                for guard in guards:
                    guard.check()
                assert_close(result, expected, case, dtype)
                assert same_bits(result, first), f"other bits in order {order}"


@pytest.mark.parametrize(("op", "case"), CASES)
def test_strided_inputs(op: str, case: Case) -> None:
    dtype = case.dtypes[0]
    args, kwargs = inputs(case, dtype)
    skip_large(args, kwargs, case)
    expected = None
    for order in ORDERS:
        args, kwargs = inputs(case, dtype)
        try:
            actual = run_emulated(order, op, strided(args), strided(kwargs))
        except ValueError as error:  # a documented refusal is fine, a wrong result is not
            assert "contiguous" in str(error) or "stride" in str(error), error
            return
        if expected is None:
            expected = run_reference(op, args, kwargs)
        assert_close(actual, expected, case, dtype)
