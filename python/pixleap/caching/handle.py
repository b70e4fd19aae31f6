"""`apply_cache`: a cache around the blocks of a torch module."""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from ..ops import lincomb
from .blocks import (
    Layout,
    arguments_of,
    elements,
    find_lists,
    layout_of,
    relative_change,
    unit_stride,
)
from .config import Config, DeltaCache, FirstBlockCache, Forecast
from .state import Call, Run, Span, Statistics

_cached: weakref.WeakSet[Module] = weakref.WeakSet()


class CacheHandle:
    """Returned by `apply_cache`; a context manager that removes the cache at its end.

    Steps are counted by calls of the module, per context, from `reset` on; schedules go by that
    count. It is also the time of the features, unless `set_time` gives another.
    """

    def __init__(
        self,
        module: Module,
        config: Config,
        blocks: str | Sequence[str] | None,
        streams: Sequence[str] | None,
    ) -> None:
        self.module, self.config = module, config
        self.statistics = Statistics()
        lists = find_lists(module, blocks)
        lengths = [len(found) for found in lists.values()]
        starts = [sum(lengths[:i]) for i in range(len(lengths))]
        self._spans = [
            Span(group, starts[stage] + first, starts[stage] + last)
            for group, spans in config.groups(lengths).items()
            for stage, first, last in spans
        ]
        self._names = [f"{name}[{i}]" for name, found in lists.items() for i in range(len(found))]
        self._blocks = [block for found in lists.values() for block in found]
        self._arguments = [arguments_of(block.forward) for block in self._blocks]
        self._layouts: dict[int, Layout] = {}
        self._streams = streams
        self._context = "default"
        self._time: float | None = None
        self._runs: dict[str, Run] = {}
        self._call: Call | None = None
        self._undo: list[Callable[[], None]] = []
        self._install()

    def reset(self) -> None:
        """Starts a new sampling run: forgets features, step counts, time and statistics."""
        self._forget()
        self.statistics = Statistics()

    def set_time(self, time: float | Tensor | None) -> None:
        """The solver's time of the calls that follow, such as sigma or lambda; None: step numbers.

        It serves the weights of forecasts only. Give it anew at every step, once for all contexts:
        two features of one time are refused.
        """
        self._time = None if time is None else float(time)

    @contextlib.contextmanager
    def context(self, name: str) -> Iterator[None]:
        """Keeps features and step counts of the calls within apart from those of other names.

        For guidance that calls the module once with and once without the condition; a batch of both
        needs none. Diffusers' `module.cache_context(name)` does the same while the cache is on.
        """
        before, self._context = self._context, name
        try:
            yield
        finally:
            self._context = before

    def remove(self) -> None:
        """Takes the cache off: the module is what it was before.

        Raises:
            RuntimeError: it was removed already.
        """
        if not self._undo:
            raise RuntimeError("CacheHandle.remove: expected a cache in place, got a removed one")
        while self._undo:
            self._undo.pop()()
        self._forget()

    def __enter__(self) -> CacheHandle:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._undo:
            self.remove()

    def _forget(self) -> None:
        self._runs.clear()
        self._layouts.clear()
        self._call = self._time = None

    def _install(self) -> None:
        module = self.module
        for k, block in enumerate(self._blocks):
            _replace(self._undo, block, "forward", functools.partial(self._block, k, block.forward))
        hooks = (
            module.register_forward_pre_hook(self._before, prepend=True),
            module.register_forward_hook(self._after),
        )
        self._undo += [hook.remove for hook in hooks]
        theirs = getattr(module, "cache_context", None)  # diffusers' CacheMixin
        if theirs is not None:

            @contextlib.contextmanager
            def cache_context(name: str, **kwargs: Any) -> Iterator[None]:
                with self.context(name), theirs(name, **kwargs):
                    yield

            _replace(self._undo, module, "cache_context", cache_context)
        ends = getattr(module, "_reset_stateful_cache", None)  # called at the end of a pipeline
        if ends is not None:

            def reset_stateful_cache(*args: Any, **kwargs: Any) -> None:
                self._forget()
                ends(*args, **kwargs)

            _replace(self._undo, module, "_reset_stateful_cache", reset_stateful_cache)
        _cached.add(module)
        self._undo.append(lambda: _cached.discard(module))

    def _before(self, module: Module, args: Any) -> None:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "apply_cache: expected a call under torch.no_grad() or torch.inference_mode(), got "
                "grad mode: the cache has no gradient"
            )
        if self._call is not None:
            raise RuntimeError(
                "apply_cache: expected the call before to have ended, got one that failed halfway; "
                "reset() starts a new run"
            )
        run = self._runs.get(self._context)
        if run is None:
            run = self._runs[self._context] = Run([self.config.ring() for _ in self._spans])
        if self.config.steps is not None and run.step >= self.config.steps:
            raise RuntimeError(
                f"apply_cache: expected at most {self.config.steps} calls in a run, as 'steps' "
                f"says, got another in context {self._context!r}; call reset() before each run"
            )
        skip = self.config.skipped(run.step)
        time = float(run.step) if self._time is None else self._time
        self._call = Call(run, time, skip, record=skip is None)

    def _after(self, module: Module, args: Any, output: Any) -> None:
        call = self._call
        assert call is not None
        missing = [
            s
            for i, s in enumerate(self._spans)
            if i not in call.done and (call.record or s.group == call.skip)
        ]
        if missing:
            first, last = self._names[missing[0].first], self._names[missing[0].last]
            raise RuntimeError(
                f"apply_cache: expected a call of every block from {first} to {last}, got none of "
                "the first or the last of them (a model that skips layers?)"
            )
        call.run.step += 1
        self._call = None
        statistics = self.statistics
        statistics.blocks_computed += call.computed
        statistics.blocks_saved += call.saved
        if call.saved:
            statistics.forecast += 1
        else:
            statistics.full += 1

    def _block(self, k: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The forward of block k."""
        call = self._call
        if call is None:  # the block by itself, outside of the module's forward
            return forward(*args, **kwargs)
        for i, span in enumerate(self._spans):
            if span.group == call.skip and span.first <= k <= span.last:
                call.saved += 1
                return self._skip(call, i, k, args, kwargs)
        call.computed += 1
        dynamic = isinstance(self.config, FirstBlockCache) and k == 0
        if not (call.record or dynamic):
            return forward(*args, **kwargs)
        by_name = self.config.target == "residual"
        arguments = self._arguments[k](*args, **kwargs)
        starting = [i for i, span in enumerate(self._spans) if span.first == k]
        for i in starting:
            call.run.shapes[i] = {name: tuple(x.shape) for name, x in arguments.items()}
        copies: dict[str, Tensor] = {}
        if by_name and (starting or dynamic):
            ends = [k] * dynamic + [self._spans[i].last for i in starting]
            copies = self._copies(arguments, ends)
            call.inputs.update(dict.fromkeys(starting, copies))
        output = forward(*args, **kwargs)
        if by_name and k not in self._layouts:
            # Shapes as before the call: a block may write into its arguments, not reshape them.
            layout = layout_of(self._blocks[k], arguments, output, self._streams)
            self._layouts[k] = layout
        if dynamic:
            self._decide(call, copies, output)
        if call.record:
            for i, span in enumerate(self._spans):
                if span.last == k:
                    self._record(call, i, output)
        return output

    def _copies(self, arguments: dict[str, Tensor], ends: list[int]) -> dict[str, Tensor]:
        """Copies of the arguments that come back out of the blocks `ends` (of all of them, while
        that is not known): blocks may write into their arguments."""
        layouts = [self._layouts.get(k) for k in ends]
        names = {name for layout in layouts if layout for name in layout.streams()}
        return {
            name: x.clone(memory_format=torch.contiguous_format)
            for name, x in arguments.items()
            if x.is_floating_point() and (None in layouts or name in names)
        }

    def _record(self, call: Call, i: int, output: Any) -> None:
        """Pushes what span i did into its ring."""
        ring, end = call.run.rings[i], self._spans[i].last
        returned, kind = elements(self._blocks[end], output)
        values = [unit_stride(x) for x in returned if x is not None]
        if self.config.target == "residual":
            inputs = call.inputs.pop(i, None)
            if inputs is None:
                return  # its first block was not called; _after reports it
            targets = ring.reserve(values)
            names = self._layouts[end].streams()
            for x, name, target in zip(values, names, targets, strict=True):
                got = tuple(inputs[name].shape) if name in inputs else None
                if got != tuple(x.shape):
                    raise ValueError(
                        f"apply_cache: expected argument {name!r} of "
                        f"{self._names[self._spans[i].first]} in the shape {tuple(x.shape)} of "
                        f"what {self._names[end]} returns, got {got}; use Forecast(target='output')"
                    )
                lincomb([x, inputs[name]], [[1.0, -1.0]], out=[target])
            ring.push(call.time, targets)
        else:
            marks = tuple(None if x is None else str(n) for n, x in enumerate(returned))
            self._layouts[end] = Layout(marks, kind)
            ring.push(call.time, values)
        call.done.add(i)

    def _skip(self, call: Call, i: int, k: int, args: Any, kwargs: Any) -> Any:
        """What block k of the skipped span i returns: its arguments, and the last block the
        forecast."""
        span, ring = self._spans[i], call.run.rings[i]
        arguments = self._arguments[k](*args, **kwargs)
        if k == span.first:
            self._compare(call.run.shapes[i], arguments)
        if self.config.target == "output":
            # Blocks in between are only fed to each other, so they may return the forecast too.
            if k == span.first:
                layout = self._layouts[span.last]
                forecast = dict(zip(layout.streams(), ring.forecast(call.time), strict=True))
                call.outputs[i] = layout.build(forecast.__getitem__)
            if k == span.last:
                call.done.add(i)
            return call.outputs[i]
        layout = self._layouts[k]
        if k == span.first:
            call.inputs[i] = arguments
        if k < span.last:
            return layout.build(arguments.__getitem__)
        inputs = call.inputs[i]
        bases = [unit_stride(inputs[name]) for name in layout.streams()]
        sums = dict(zip(layout.streams(), ring.forecast(call.time, base=bases), strict=True))
        call.done.add(i)
        return layout.build(sums.__getitem__)

    def _compare(self, shapes: dict[str, tuple[int, ...]], arguments: dict[str, Tensor]) -> None:
        """A forecast has the shapes of what was recorded; the call must have them too."""
        for name, x in arguments.items():
            if shapes.get(name, tuple(x.shape)) != tuple(x.shape):
                raise ValueError(
                    f"apply_cache: expected the blocks' argument {name} of shape {shapes[name]} as "
                    f"recorded in this run, got {tuple(x.shape)}; call reset() before each run"
                )

    def _decide(self, call: Call, copies: dict[str, Tensor], output: Any) -> None:
        """FirstBlockCache: after the first block, whether the others are skipped."""
        config, run = self.config, call.run
        assert isinstance(config, FirstBlockCache)
        layout = self._layouts[0]
        name = "hidden_states" if "hidden_states" in layout.names else layout.streams()[0]
        values = elements(self._blocks[0], output)[0]
        x = values[layout.names.index(name)]
        assert x is not None
        x = unit_stride(x)
        if run.head is None:
            [run.head] = lincomb([x, copies[name]], [[1.0, -1.0]])
            return
        if run.head.shape != x.shape:
            raise ValueError(
                f"apply_cache: expected hidden states of shape {tuple(run.head.shape)} as before, "
                f"got {tuple(x.shape)}; call reset() before each run"
            )
        inputs, rows = [x, copies[name], run.head], [[1.0, -1.0, 0.0], [1.0, -1.0, -1.0]]
        residual, difference = lincomb(inputs, rows)
        change = relative_change(difference, run.head, config.norm)
        self.statistics.changes.append(change)
        # Not "not above": 0 / 0 is NaN, and a threshold of 0 computes every step.
        if change < config.threshold and run.step >= config.first:
            call.skip, call.record = "tail", False
        else:
            run.head = residual


def _replace(undo: list[Callable[[], None]], owner: Any, name: str, value: Any) -> None:
    """Sets an attribute of the instance, and how to undo it."""
    attributes = vars(owner)
    if name in attributes:
        undo.append(functools.partial(attributes.__setitem__, name, attributes[name]))
    else:
        undo.append(functools.partial(attributes.__delitem__, name))
    attributes[name] = functools.update_wrapper(value, getattr(owner, name))


def apply_cache(
    module: Module,
    config: Config,
    *,
    blocks: str | Sequence[str] | None = None,
    streams: Sequence[str] | None = None,
) -> CacheHandle:
    """Puts a cache around the blocks of a module, until the handle's `remove`.

    On steps that the configuration skips, blocks return their arguments, and the last one of a
    list the forecast; the rest of the module runs as ever. Values added between blocks (ControlNet)
    count as part of the feature and are forecast with it.

    Args:
        module: whose forward is one step of the sampler: any of diffusers' transformers, or any
            module that runs a ModuleList of blocks one after the other. Called under
            torch.no_grad() or torch.inference_mode().
        config: `Forecast`, `DeltaCache` or `FirstBlockCache`.
        blocks: names of the lists in the order in which they run ("blocks", "net.layers"); None
            looks for `transformer_blocks`, `single_transformer_blocks` and their like.
        streams: argument names of what a block returns, in that order, such as
            ("encoder_hidden_states", "hidden_states"). None finds out: a single tensor continues
            `hidden_states` or the first argument; for two, diffusers' own table or their shapes
            tell. `Forecast(target="output")` does without.

    Returns:
        A handle; call its `reset` before each sampling run (diffusers' pipelines do at their end).

    Raises:
        TypeError: a module or configuration that is none.
        ValueError: no blocks found (the message lists what there is), a module that is cached
            already, a configuration that does not fit the number of blocks. Calls of the module
            raise ValueError for results that cannot be matched with arguments and for shapes that
            change within a run, RuntimeError in grad mode, after a call that failed, or when
            layers are skipped by the module itself.

    Not for modules under torch.compile; compile the blocks' inner modules instead.
    """
    if not isinstance(module, Module):
        raise TypeError(
            "apply_cache: argument 'module' expected a torch.nn.Module, got "
            f"{type(module).__name__}"
        )
    if not isinstance(config, (Forecast, DeltaCache, FirstBlockCache)):
        raise TypeError(
            "apply_cache: argument 'config' expected Forecast, DeltaCache or FirstBlockCache, got "
            f"{type(config).__name__}"
        )
    if module in _cached or getattr(module, "is_cache_enabled", False):
        raise ValueError(
            f"apply_cache: argument 'module' expected a module without a cache, got a "
            f"{type(module).__name__} that has one; remove it first"
        )
    return CacheHandle(module, config, blocks, streams)
