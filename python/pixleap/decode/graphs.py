"""Steps of decoding loops captured as CUDA graphs: launched once, replayed at every later call.

A captured step has its addresses and Python numbers fixed. What changes from call to call comes in
as tensors, which are copied into the graph's own, or lies in buffers that the step's owner keeps.
torch is imported where a CUDA device is at hand; on the CPU a step is called as it is.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Tensor = Any


class Replay(Protocol):
    """A captured step: `outputs` are what it returned, `replay` runs it again into them."""

    @property
    def outputs(self) -> Any: ...

    def replay(self) -> None: ...


class Backend(Protocol):
    """Where steps are captured: `CudaBackend`, or its emulation in tests/graph_emulation.py."""

    def warm_up(self, function: Callable[[], Any]) -> Any: ...

    def capture(self, function: Callable[[], Any]) -> Replay: ...


class CudaBackend:
    """Captures on a side stream of a device; its graphs share one memory pool."""

    def __init__(self, device: Any) -> None:
        import torch

        self._torch, self._device = torch, device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def warm_up(self, function: Callable[[], Any]) -> Any:
        """Runs on the side stream, so that libraries are ready for it before a capture."""
        cuda = self._torch.cuda
        current = cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with cuda.stream(self._stream):
            result = function()
        current.wait_stream(self._stream)
        return result

    def capture(self, function: Callable[[], Any]) -> Replay:
        cuda = self._torch.cuda
        graph = cuda.CUDAGraph()
        cuda.synchronize(self._device)
        with cuda.stream(self._stream):
            # Other threads may go on using the device.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                outputs = function()
            except BaseException:
                with contextlib.suppress(RuntimeError):  # void; the first error says why
                    graph.capture_end()
                raise
            graph.capture_end()
        return _CudaReplay(graph, outputs)


@dataclass(frozen=True)
class _CudaReplay:
    graph: Any
    outputs: Any

    def replay(self) -> None:
        self.graph.replay()


def backend_for(device: Any) -> Backend | None:
    """None where steps are called as they are: devices other than CUDA, and with the environment
    variable PIXLEAP_CUDA_GRAPHS=0."""
    if device.type != "cuda" or os.environ.get("PIXLEAP_CUDA_GRAPHS", "1") == "0":
        return None
    return CudaBackend(device)


class _Captured:
    """One graph with the tensors that its inputs are copied into."""

    def __init__(
        self, backend: Backend, function: Callable[..., Any], inputs: Sequence[Tensor]
    ) -> None:
        self._inputs = [x.clone() for x in inputs]
        self._graph = backend.capture(lambda: function(*self._inputs))

    def __call__(self, inputs: Sequence[Tensor]) -> Any:
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        self._graph.replay()
        return self._graph.outputs


class Graphs:
    """The captured steps of one owner.

    Args:
        device: a `torch.device`, on which all tensors of the steps lie.
        most: keys that are kept; then the oldest goes.

    The first call of a key runs the function as it is, which is the warm-up and a valid call; the
    second one captures it, and from then on it is replayed. So a function may change its owner's
    buffers, as long as every call changes the same ones; it must leave Python's state alone, since
    a replay does not come there, and read no tensor on the host.

    What a function returns is overwritten by the next call of ANY key: the graphs share their
    memory. Copy what is to last, or let the function write it to buffers that it does not allocate.
    """

    def __init__(self, device: Any, most: int = 256) -> None:
        self._most = most
        self._backend = backend_for(device)
        self._steps: dict[Hashable, _Captured | None] = {}

    @property
    def active(self) -> bool:
        """Whether steps are captured at all; if not, every call is a plain call."""
        return self._backend is not None

    def __len__(self) -> int:
        """Graphs captured so far."""
        return sum(step is not None for step in self._steps.values())

    def __call__(self, key: Hashable, function: Callable[..., Any], *inputs: Tensor) -> Any:
        """function(*inputs), captured under `key`.

        Args:
            key: whatever else shapes, buffers and numbers in `function` follow from; shapes and
                dtypes of the inputs are added to it. Calls with one key get one graph: the function
                of the second call.
            inputs: tensors on the device, copied into the graph's own.

        Raises:
            RuntimeError: the function does what cannot be captured.
        """
        if self._backend is None:
            return function(*inputs)
        key = (key, *((tuple(x.shape), x.dtype) for x in inputs))
        if key not in self._steps:
            result = self._backend.warm_up(lambda: function(*inputs))
            self._steps[key] = None
            if len(self._steps) > self._most:
                del self._steps[next(iter(self._steps))]
            return result
        step = self._steps[key]
        if step is None:
            try:
                step = self._steps[key] = _Captured(self._backend, function, inputs)
            except RuntimeError as error:
                raise RuntimeError(
                    f"graphs: step {key[0]!r} cannot be captured as a CUDA graph: {error}. A "
                    "captured step must not read a tensor on the host, wait for the device or "
                    "have shapes that depend on values"
                ) from error
        return step(inputs)


class HostRead:
    """A small tensor's way to the host: an asynchronous copy into pinned memory, started after the
    work that makes it and awaited when it is needed, while later work is already queued.

    Args:
        like: a tensor of the shape, dtype and device of what will be read.
    """

    def __init__(self, like: Tensor) -> None:
        import torch

        on_cuda = like.device.type == "cuda"
        self._host = torch.empty(like.shape, dtype=like.dtype, pin_memory=on_cuda)
        self._event = torch.cuda.Event() if on_cuda else None
        self._device = like.device

    def start(self, x: Tensor) -> None:
        """Queues the copy on the current stream."""
        self._host.copy_(x, non_blocking=True)
        if self._event is not None:
            import torch

            self._event.record(torch.cuda.current_stream(self._device))

    def wait(self) -> Any:
        """Waits for the copy that was started last; its numbers as (nested) lists."""
        if self._event is not None:
            self._event.synchronize()
        return self._host.tolist()

    def __call__(self, x: Tensor) -> Any:
        """`start` and `wait`."""
        self.start(x)
        return self.wait()
