"""One description of an op's inputs serves the equivalence, dispatch and bad-input tests and
bench/run.py: a `Case`. See tests/cases/lincomb.py for the pattern."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

import pixleap as px

import cases as cases_package

# Relative to the largest magnitude of the expected output, per dtype of the arrays.
TOLERANCE = {"float64": 1e-12, "float32": 2e-6, "bfloat16": 8e-3, "float16": 1e-3}
FLOATS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Case:
    """Inputs for one call of an op.

    make: rng -> (args, kwargs), with NumPy arrays. float32 arrays (also inside lists) are cast to
        the dtype under test; float64 and integer arrays are passed as they are, and so are torch
        tensors (weights packed in a dtype of their own).
    tolerance: per dtype, where TOLERANCE does not fit (say why in the cases file).
    flops, bytes: least work and traffic of the call in float32, for the benchmark's limits.
    peer: the best known torch way to the same result, taking the same (torch) args and kwargs; a
        case with a peer is timed by bench/run.py.
    exact: outputs are compared for equality (tokens, counts).
    """

    name: str
    make: Callable[[np.random.Generator], tuple[tuple[Any, ...], dict[str, Any]]]
    dtypes: tuple[str, ...] = FLOATS
    tolerance: dict[str, float] = field(default_factory=dict)
    flops: float = 0.0
    bytes: float = 0.0
    peer: Callable[..., Any] | None = None
    exact: bool = False
    has_out: bool = True  # the op takes out=
    host: tuple[str, ...] = ()  # arguments that are read on the host, wherever the others are


def ops_with_cases() -> list[str]:
    return sorted(m.name for m in pkgutil.iter_modules(cases_package.__path__))


def cases_of(op: str) -> list[Case]:
    return importlib.import_module(f"cases.{op}").CASES


def all_cases() -> Iterator[tuple[str, Case]]:
    for op in ops_with_cases():
        for case in cases_of(op):
            yield op, case


def map_arrays(f: Callable[[Any], Any], value: Any) -> Any:
    """Applies f to every array inside tuples, lists and dicts."""
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return f(value)
    if isinstance(value, dict):
        return {k: map_arrays(f, v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map_arrays(f, v) for v in value)
    return value


def to_torch(value: Any, dtype: str = "float32", device: str = "cpu") -> Any:
    """NumPy arrays to torch tensors; float32 ones to `dtype`."""

    def convert(x: np.ndarray | torch.Tensor) -> torch.Tensor:
        if isinstance(x, torch.Tensor):
            return x.to(device)
        t = torch.from_numpy(np.ascontiguousarray(x)).to(device)
        return t.to(getattr(torch, dtype)) if t.dtype == torch.float32 else t

    return map_arrays(convert, value)


def to_device(
    op: str, case: Case, args: Any, kwargs: Any, move: Callable[[Any], Any] = lambda t: t.to("cuda")
) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of a call on a device: all arrays but those that the op reads on the host."""

    def moved(name: str, value: Any) -> Any:
        if name in case.host:
            return value
        if isinstance(value, px.masks.key_lengths):
            return px.masks.key_lengths(move(torch.as_tensor(value.lengths)))
        return map_arrays(move, value)

    names = inspect.signature(getattr(px.ops, op)).parameters
    values = [moved(name, value) for name, value in zip(names, args, strict=False)]
    return values, {name: moved(name, value) for name, value in kwargs.items()}


def to_reference(value: Any) -> Any:
    """Torch tensors to NumPy: floats to float64, after the rounding of their dtype."""

    def convert(t: torch.Tensor) -> np.ndarray:
        return (t.double() if t.is_floating_point() else t).detach().cpu().numpy()

    return map_arrays(convert, value)


def strided(value: Any) -> Any:
    """The same values in a larger buffer: unit last stride, everything else apart."""

    def convert(t: torch.Tensor) -> torch.Tensor:
        if t.dim() < 2:
            return t
        big = torch.full([n + 2 for n in t.shape], 99, dtype=t.dtype, device=t.device)
        view = big[tuple(slice(1, 1 + n) for n in t.shape)]
        view.copy_(t)
        return view

    return map_arrays(convert, value)


class Sentinel:
    """An output inside a larger buffer; `check` fails if anything around it was written."""

    def __init__(self, like: torch.Tensor) -> None:
        self.pad = 64
        fill = 113 if not like.is_floating_point() else 113.0
        self.buffer = torch.full(
            (like.numel() + 2 * self.pad,), fill, dtype=like.dtype, device=like.device
        )
        self.fill = self.buffer[:1].clone()
        self.out = self.buffer[self.pad : self.pad + like.numel()].view(like.shape)

    def check(self) -> None:
        for side in (self.buffer[: self.pad], self.buffer[self.buffer.numel() - self.pad :]):
            assert (side == self.fill).all(), "memory next to the output was overwritten"


def as_list(x: Any) -> list[Any]:
    return list(x) if isinstance(x, (list, tuple)) else [x]


def assert_close(actual: Any, expected: Any, case: Case, dtype: str) -> None:
    """Compares op results (torch or NumPy) with the reference's."""
    got, want = as_list(actual), as_list(expected)
    assert len(got) == len(want)
    for a, e in zip(got, want, strict=True):
        a = to_reference(a) if isinstance(a, torch.Tensor) else np.asarray(a)
        e = np.asarray(e)
        assert a.shape == e.shape
        if case.exact or e.dtype.kind in "iub":
            np.testing.assert_array_equal(a, e)
            continue
        scale = np.abs(e[np.isfinite(e)]).max(initial=1e-30)
        tolerance = case.tolerance.get(dtype, TOLERANCE[dtype])
        np.testing.assert_allclose(
            a.astype(np.float64) / scale, e / scale, rtol=0, atol=tolerance, err_msg=case.name
        )


def run_reference(op: str, args: Any, kwargs: Any) -> Any:
    return getattr(px.reference, op)(*to_reference(args), **to_reference(kwargs))


def run_op(op: str, args: Any, kwargs: Any) -> Any:
    return getattr(px.ops, op)(*args, **kwargs)
