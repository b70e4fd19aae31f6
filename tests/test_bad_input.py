"""A corpus generated from the cases: every array argument of every op in turn is replaced by
something wrong. Each call must give its result or an error that names the op, and never crash;
.ci/run runs it under AddressSanitizer and UndefinedBehaviorSanitizer as well."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

import pixleap as px

from harness import Case, all_cases, as_list, cases_of, ops_with_cases, run_op, to_torch

Replace = Callable[[torch.Tensor], Any]


def expanded(t: torch.Tensor) -> torch.Tensor:
    return t[..., :1].expand(t.shape) if t.dim() and t.shape[-1] else t


# name -> (replacement, whether the call must fail for every op)
MUTATIONS: dict[str, tuple[Replace, bool]] = {
    "none": (lambda t: None, False),
    "string": (lambda t: "array", True),
    "number": (lambda t: 3.5, True),
    "object": (lambda t: object(), True),
    "int16": (lambda t: torch.zeros(t.shape, dtype=torch.int16), True),
    "complex": (lambda t: torch.zeros(t.shape, dtype=torch.complex64), True),
    "big endian": (lambda t: np.zeros(t.shape, ">f4"), True),
    "float64 for float32": (lambda t: t.double() if t.is_floating_point() else t.float(), False),
    "axis added": (lambda t: t[None], False),
    "axis dropped": (lambda t: t[0] if t.dim() and len(t) else t, False),
    "nine axes": (lambda t: t.reshape(t.shape + (1,) * (9 - t.dim())), True),
    "row more": (lambda t: torch.cat([t, t[:1]]) if t.dim() and len(t) else t, False),
    "column more": (
        lambda t: torch.cat([t, t[..., :1]], -1) if t.numel() and t.dim() else t,
        False,
    ),
    "empty": (lambda t: t[:0] if t.dim() else t, False),
    "transposed": (lambda t: t.transpose(0, -1) if t.dim() > 1 else t, False),
    "last stride 2": (lambda t: t.repeat_interleave(2, -1)[..., ::2] if t.dim() else t, False),
    "expanded": (expanded, False),
    "gradient": (lambda t: t.clone().requires_grad_() if t.is_floating_point() else t, False),
    "nan": (lambda t: torch.full_like(t, torch.nan) if t.is_floating_point() else t, False),
    "infinity": (lambda t: torch.full_like(t, torch.inf) if t.is_floating_point() else t, False),
    "huge integers": (
        lambda t: t if t.is_floating_point() else torch.full_like(t, torch.iinfo(t.dtype).max),
        False,
    ),
    "negative integers": (
        lambda t: (
            t if t.is_floating_point() else torch.full_like(t, max(-7, torch.iinfo(t.dtype).min))
        ),
        False,
    ),
}


def first_arrays(op: str) -> Case:
    """A small case of the op with every kind of argument it shows, none of them empty."""

    def arrays(case: Case) -> list[np.ndarray]:
        call = list(case.make(np.random.default_rng(0)))
        return [at(call, path) for path in paths(call)]

    cases = [c for c in cases_of(op) if c.peer is None] or cases_of(op)
    full = [c for c in cases if all(math.prod(x.shape) for x in arrays(c))]
    return max(full, key=lambda case: len(arrays(case)))


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        value = value[step]
    return value


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, (np.ndarray, torch.Tensor)):
        yield path
    elif isinstance(value, dict):
        for k, v in value.items():
            yield from paths(v, (*path, k))
    elif isinstance(value, (list, tuple)):
        for i, v in enumerate(value):
            yield from paths(v, (*path, i))


def replaced(value: Any, path: tuple[Any, ...], f: Replace) -> Any:
    if not path:
        return f(value)
    if isinstance(value, dict):
        return {k: replaced(v, path[1:], f) if k == path[0] else v for k, v in value.items()}
    return type(value)(replaced(v, path[1:], f) if i == path[0] else v for i, v in enumerate(value))


@pytest.mark.parametrize("mutation", MUTATIONS)
@pytest.mark.parametrize("op", ops_with_cases())
def test_wrong_array(op: str, mutation: str) -> None:
    f, must_fail = MUTATIONS[mutation]
    call = to_torch(list(first_arrays(op).make(np.random.default_rng(0))))
    for path in paths(call):
        if path[-1] == "like":  # lends its framework and device only
            continue
        args, kwargs = replaced(call, path, f)
        try:
            run_op(op, args, kwargs)
        except (ValueError, TypeError, RuntimeError) as error:
            assert op in str(error), f"{path}: the message does not name the op: {error}"
        else:
            assert not must_fail, f"{path}: {mutation} was accepted"


@pytest.mark.parametrize("op", ops_with_cases())
def test_wrong_output(op: str) -> None:
    case = first_arrays(op)
    if not case.has_out:
        return
    args, kwargs = to_torch(list(case.make(np.random.default_rng(0))))
    good = run_op(op, args, kwargs)
    for i in range(len(as_list(good))):
        for f in (
            lambda t: t[..., :-1] if t.dim() else t[None],
            lambda t: t.to(torch.int16),
            lambda t: (
                t[:1].expand(t.shape)
                if t.dim() and t.numel() and len(t) > 1
                else torch.stack([t, t])
            ),
            lambda t: None,
            lambda t: "out",
        ):
            bad: Any = [f(t) if i == j else t.clone() for j, t in enumerate(as_list(good))]
            if not isinstance(good, (list, tuple)):
                bad = bad[0]
                if bad is None:  # means: allocate
                    continue
            with pytest.raises((ValueError, TypeError), match=op):
                run_op(op, args, {**kwargs, "out": bad})


def test_read_only_output() -> None:
    out = np.zeros((2, 3), np.float32)
    out.flags.writeable = False
    with pytest.raises(ValueError, match=r"lincomb: argument 'out' expected a writable array"):
        px.ops.lincomb([np.ones((2, 3), np.float32)], [[1.0]], out=[out])


def test_overlapping_output() -> None:
    buffer = np.zeros((5, 3), np.float32)
    with pytest.raises(ValueError, match=r"'out' expected memory apart from 'inputs'"):
        px.ops.lincomb([buffer[:4]], [[1.0]], out=[buffer[1:]])


def test_unaligned_array() -> None:
    raw = np.zeros(41, np.uint8)[1:].view(np.float32)
    with pytest.raises(TypeError, match="an aligned array"):
        px.ops.lincomb([raw], [[1.0]])


def test_sizes_near_overflow() -> None:
    class Huge:
        shape = (2**40, 2**40)

        def __dlpack__(self, **kwargs: Any) -> Any:
            return torch.empty(1).expand(2**40, 2**20).__dlpack__()

    with pytest.raises((TypeError, ValueError), match="lincomb"):
        px.ops.lincomb([Huge()], [[1.0]], out=[np.zeros(3, np.float32)])


def test_messages_say_what_was_expected() -> None:
    x = np.zeros((2, 3), np.float32)
    for args, message in (
        (
            ([x], [[1.0], [2.0, 3.0]]),
            "lincomb: argument 'coefficients' expected 2 x 1 numbers, got 3",
        ),
        (([x, x[:1]], [[1.0, 1.0]]), r"'inputs' expected shape \(2, 3\) as 'inputs', got \(1, 3\)"),
        (
            ([x, x.astype("i4")], [[1.0, 1.0]]),
            "expected dtype float32, bfloat16, float16 or float64, got int32",
        ),
        (([], [[1.0]]), "expected 1 to 16 arrays, got 0"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            px.ops.lincomb(*args)
    with pytest.raises(ValueError, match="set_isa: argument 'name' expected one of scalar"):
        px.set_isa("mmx")
    with pytest.raises(ValueError, match="set_num_threads: argument 'n' expected 1 to 1024, got 0"):
        px.set_num_threads(0)


def test_corpus_covers_every_op() -> None:
    assert {op for op, _ in all_cases()} == set(ops_with_cases())


def test_output_that_overlaps_itself() -> None:
    buffer = torch.zeros(16)
    for out in (buffer[:3].expand(4, 3), buffer.as_strided((4, 3), (2, 1))):
        with pytest.raises(ValueError, match="'out' expected an output without repeated memory"):
            px.ops.lincomb([torch.ones(4, 3)], [[1.0]], out=[out])
    for out in (buffer.as_strided((4, 3), (4, 1)), buffer[:12].view(4, 3)):
        px.ops.lincomb([torch.ones(4, 3)], [[1.0]], out=[out])


def test_infinite_guidance_stays_out_of_the_padding() -> None:
    """Five numbers leave lanes of the last vector unused; their inf * 0 must not count."""
    z = torch.ones(1, 1, 5)
    _, change = px.ops.jacobi_update(
        z, torch.zeros_like(z), z, z, uncond_a=z, guidance=torch.tensor([torch.inf])
    )
    assert change.item() == 0.0  # exp(-inf) = 0: x = b = previous
