"""CUDA graphs emulated on the CPU: what a step does is recorded and replayed on the same memory.

A capture records every aten call and every native op with its tensors. A replay makes the same
calls again, reads what lies in their inputs then and leaves results where the recorded ones lay. As
on a GPU,

- reading a tensor on the host, shapes that follow from values and random numbers of torch are
  refused while a step is recorded (and counted outside, by `HostReads`);
- a capture has no effect: what the recorded calls wrote is put back;
- Python does not run again: numbers and addresses are those of the capture;
- graphs share their memory, so that a replay leaves the own memory of all others overwritten;
- memory that a step used, was not allocated by it and is gone at a replay is an error.
"""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from pixleap import _native
from pixleap.decode import graphs

# Functions that take numbers to the host (or from it: a copy from pageable memory waits too).
_HOST_FUNCTIONS = {
    "__array__", "__bool__", "__dlpack__", "__float__", "__index__", "__int__", "__contains__",
    "cpu", "item", "numpy", "tolist",
}  # fmt: skip
_FROM_HOST_FUNCTIONS = {"as_tensor", "from_numpy", "frombuffer", "tensor"}
_HOST_OPS = {
    "_local_scalar_dense", "_unique2", "allclose", "equal", "is_nonzero", "item", "masked_select",
    "nonzero", "repeat_interleave", "unique_consecutive", "unique_dim",
}  # fmt: skip
_REFUSED_OPS = {"resize_", "set_"}


def _name(func: Any) -> str:
    return str(func._schema.name).removeprefix("aten::")


def _reads_host(func: Any, args: Any) -> bool:
    if _name(func) in ("index", "index_put", "index_put_", "_index_put_impl_"):
        masks = (torch.bool, torch.uint8)
        return any(isinstance(i, Tensor) and i.dtype in masks for i in args[1])
    return _name(func) in _HOST_OPS


class _Functions(TorchFunctionMode):
    """Reports calls of `names`."""

    def __init__(self, names: set[str], report: Callable[[str], None]) -> None:
        self._names, self._report = names, report

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in self._names:
            self._report(str(resolve_name(func) or func.__name__))
        return func(*args, **(kwargs or {}))


class HostReads(TorchDispatchMode):
    """Counts, while entered, how often torch's numbers are read on the host: `reads` has the names
    of the calls. A read that torch makes in two layers (`bool(x)`) counts once."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []
        self._functions = _Functions(_HOST_FUNCTIONS - {"item"}, self.reads.append)

    def __enter__(self) -> HostReads:
        self._functions.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._functions.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        scalar = self.reads and self.reads[-1].rpartition(".")[2].startswith("__")
        if _reads_host(func, args) and not (scalar and _name(func) == "_local_scalar_dense"):
            self.reads.append(_name(func))
        return func(*args, **(kwargs or {}))


def _storage(t: Tensor) -> int:
    return int(t.untyped_storage()._cdata)


def _poison(t: Tensor) -> None:
    t.untyped_storage().fill_(0xA5)


class _Recorder(TorchDispatchMode):
    """Runs a step and keeps the calls that it makes."""

    def __init__(self, aliases: dict[int, list[Tensor]]) -> None:
        super().__init__()
        self.calls: list[Callable[[], None]] = []
        self.own: dict[int, Tensor] = {}  # memory allocated by the step, by storage
        self._before: dict[int, tuple[Tensor, Any]] = {}  # other memory that it writes
        self._used: set[int] = set()  # all memory that it uses
        self._aliases = aliases  # of all recorders together

    def refuse(self, what: str) -> None:
        raise RuntimeError(f"'{what}' is not permitted while a step is captured")

    def _keep(self, written: list[Tensor]) -> None:
        for t in written:
            if _storage(t) not in self.own and _storage(t) not in self._before:
                self._before[_storage(t)] = t, t.untyped_storage().clone()

    def _alias(self, x: Any) -> Any:
        """A tensor without those that it is a view of: the recorders' only hold on the memory."""
        if not isinstance(x, Tensor):
            return x.copy() if isinstance(x, np.ndarray) else x
        with _disable_current_modes(), torch.no_grad():
            alias = x.new_empty(0)
            alias.set_(x.untyped_storage(), x.storage_offset(), x.shape, x.stride())
        self._used.add(_storage(alias))
        self._aliases.setdefault(_storage(alias), []).append(alias)
        return alias

    def check_memory(self) -> None:
        """Whether somebody else still holds the memory that was there before the step."""
        for storage in self._used - set(self.own):
            aliases = self._aliases[storage]
            own = aliases[0].untyped_storage()  # Python's object holds it once
            if torch._C._storage_Use_Count(storage) - 1 <= len(aliases):
                raise RuntimeError(
                    f"a replayed step uses {own.nbytes()} bytes of memory "
                    "that were freed since it was captured"
                )

    def undo(self) -> None:
        """A capture has not happened: everything that it wrote is as before, or means nothing."""
        for t, storage in self._before.values():
            t.untyped_storage().copy_(storage)
        self._before.clear()
        self.poison()

    def poison(self) -> None:
        for t in self.own.values():
            _poison(t)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _reads_host(func, args) or _name(func) in (*_REFUSED_OPS, "lift_fresh"):
            self.refuse(_name(func))
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.refuse(f"{_name(func)}, a random number of torch")
        schema, written = func._schema, []
        for i, argument in enumerate(schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = args[i] if i < len(args) else kwargs.get(argument.name)
                written += [t for t in tree_leaves(value) if isinstance(t, Tensor)]
        self._keep(written)
        result = func(*args, **kwargs)
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        known = {_storage(t) for t in given}
        fresh = [
            t for t in tree_leaves(result) if isinstance(t, Tensor) and _storage(t) not in known
        ]
        for t in fresh:
            self.own.setdefault(_storage(t), t)
        if not written and not fresh:
            return result  # a view
        args, kwargs = tree_map(self._alias, (args, kwargs))
        if written:
            self.calls.append(lambda: func(*args, **kwargs))
        elif fresh and not _name(func).startswith(("empty", "new_empty")):
            old = [self._alias(t) for t in tree_leaves(result) if isinstance(t, Tensor)]

            def again() -> None:
                new = [t for t in tree_leaves(func(*args, **kwargs)) if isinstance(t, Tensor)]
                for to, t in zip(old, new, strict=True):
                    to.copy_(t)

            self.calls.append(again)
        return result

    def native(self, op: str, function: Callable[..., None], args: tuple[Any, ...]) -> None:
        outs = [
            value
            for value, (_, kind) in zip(args, _native.signatures[op], strict=True)
            if kind in ("out", "outs")
        ]
        with _disable_current_modes():
            self._keep([t for t in tree_leaves(outs) if isinstance(t, Tensor)])
            function(*args)
        # Index arrays on the host go with the launch: their numbers are those of the capture.
        kept = tree_map(self._alias, args)
        self.calls.append(lambda: function(*kept))


class EmulatedGraph:
    """A recorded step; `outputs` is what it returned."""

    def __init__(self, recorder: _Recorder, outputs: Any, backend: EmulatedBackend) -> None:
        self.recorder, self.outputs, self._backend = recorder, outputs, backend

    def replay(self) -> None:
        backend = self._backend
        backend.replays += 1
        with torch.no_grad():
            self.recorder.check_memory()
            self.recorder.poison()  # nothing may be read that this replay has not written
            for call in self.recorder.calls:
                call()
            for other in backend.graphs:
                if other is not self:
                    other.recorder.poison()


class EmulatedBackend:
    """In the place of `pixleap.decode.graphs.CudaBackend`; see `emulated_graphs`.

    Attributes:
        graphs: what was captured. replays, warm_ups: calls so far.
    """

    def __init__(self) -> None:
        self.graphs: list[EmulatedGraph] = []
        self._aliases: dict[int, list[Tensor]] = {}
        self.replays = self.warm_ups = 0
        self.active = True  # for `Graphs` made from now on
        self.recorder: _Recorder | None = None

    def warm_up(self, function: Callable[[], Any]) -> Any:
        self.warm_ups += 1
        return function()

    def capture(self, function: Callable[[], Any]) -> EmulatedGraph:
        recorder = _Recorder(self._aliases)
        self.recorder = recorder
        functions = _Functions(_HOST_FUNCTIONS | _FROM_HOST_FUNCTIONS, recorder.refuse)
        try:
            with torch.no_grad(), functions, recorder:
                outputs = function()
        finally:
            self.recorder = None
            recorder.undo()
        self.graphs.append(EmulatedGraph(recorder, outputs, self))
        return self.graphs[-1]


@contextlib.contextmanager
def emulated_graphs() -> Iterator[EmulatedBackend]:
    """Inside, every `pixleap.decode.graphs.Graphs` made captures and replays on the CPU."""
    backend = EmulatedBackend()
    natives = {op: getattr(_native, op) for op in _native.signatures}

    def recorded(op: str) -> Callable[..., None]:
        def call(*args: Any) -> None:
            if backend.recorder is None:
                natives[op](*args)
            else:
                backend.recorder.native(op, natives[op], args)

        return call

    before = graphs.backend_for
    try:
        graphs.backend_for = lambda device: backend if backend.active else None
        for op in natives:
            setattr(_native, op, recorded(op))
        yield backend
    finally:
        graphs.backend_for = before
        for op, native in natives.items():
            setattr(_native, op, native)


def assert_replay_equals_eager(
    function: Callable[..., Any], first: tuple[Tensor, ...], second: tuple[Tensor, ...]
) -> None:
    """A step captured with the inputs `first` and replayed with `second` gives what it gives for
    `second` when it is called: bit for bit. For steps without buffers of their own."""
    expected = [t.clone() for t in tree_leaves(function(*(x.clone() for x in second)))]
    with emulated_graphs():
        steps = graphs.Graphs(torch.device("cpu"))
        for inputs in (first, first, second):
            got = steps("step", function, *inputs)
        assert len(steps) == 1
        for a, b in zip(tree_leaves(got), expected, strict=True):
            assert same_bits(a, b)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal in shape, dtype and bits, NaN included."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    pair = (t.detach().contiguous().view(-1) for t in (a, b))
    return a.numel() == 0 or bool(torch.equal(*(t.view(torch.uint8) for t in pair)))


def names(reads: list[str]) -> dict[str, int]:
    """How often each call of `HostReads.reads` was made."""
    return dict(collections.Counter(name.rpartition(".")[2] for name in reads))
