"""Steps traced and run one at a time, for samplers that choose a step when they are at it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .._arrays import Array
from .plan import Pass, Tracer
from .stateless import Noise, run_pass


@dataclass
class Draws:
    """Where noise comes from: see `Solver`. Every noise gets the offset of its first use."""

    seed: int = 0
    offset: int = 0
    noise: Noise | None = None
    names: list[str] = field(default_factory=list)

    def run(self, p: Pass, values: dict[str, Array]) -> None:
        self.names += [name for name in p.noise if name not in self.names]
        run_pass(p, self.names, values, self.seed, self.offset, 0, self.noise)


def run_step(
    tracer: Tracer,
    index: int,
    values: dict[str, Array],
    model: Callable[[Array, float], Array],
    draws: Draws,
    first_output: Array | None = None,
) -> Array:
    """Traces step `index` and runs it on `values`, which holds the current sample under
    `tracer.sample` before and after, and what later steps need; returns the model's first output.

    first_output: that output, where it is known.
    """
    tracer.stages, tracer.before = [], []
    tracer.step(index)
    past = [form for value, _ in tracer.past for form in _forms(value)]
    known = [*past, *tracer.state.values()]
    kept = {tracer.sample, *(name for form in known for name in form.terms)}
    tracer.prune(set(kept))
    for p in tracer.before:
        draws.run(p, values)
    for stage in tracer.stages:
        output = first_output
        if output is None:
            output = model(values[stage.sample], stage.point.time)
        values[stage.output], first_output = output, None
        for p in stage.passes:
            draws.run(p, values)
    output = values[tracer.stages[0].output]
    for name in list(values):
        if name not in kept:
            del values[name]
    return output


def _forms(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
