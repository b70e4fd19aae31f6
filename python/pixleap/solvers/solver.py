"""Runs a plan in buffers of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from .. import ops
from .._arrays import Array, empty, shape
from .buffers import allocate
from .linear_form import LinearForm
from .method import is_noise
from .plan import Pass, SolverPlan
from .schedule import Point
from .stateless import MAX_OUTPUTS, Call, Noise, call_of, run_call


class Guidance(Protocol):
    """How several model outputs become one.

    names: of the outputs that `Solver.step` takes, in order. `form` gives their combination where
    it is linear with numbers known beforehand: it is folded into the solver's pass. Where it
    depends on the outputs, `form` gives None and `combine` the arrays that take part and their
    weights per sample, (B, arrays) float64: NumPy for arrays of the host, else on their device.
    `sample` is what the model was given. `needs` names the outputs that an evaluation uses (None
    may stand for others); `reset` begins a run.
    """

    names: Sequence[str]

    def reset(self) -> None: ...

    def needs(self, stage: int, point: Point) -> Sequence[str]: ...

    def form(self, stage: int, point: Point) -> LinearForm | None: ...

    def combine(
        self, stage: int, point: Point, outputs: Sequence[Array], sample: Array
    ) -> tuple[list[Array], Array]: ...


class _Ready:
    """A call with its arrays in place but for the model's outputs, which go in at `slots`:
    (position, number of the output).

    table, at: with guidance whose weights are known late, the coefficients by the model's output
    and the column of that.
    """

    def __init__(self, call: Call, offset: int) -> None:
        self.call, self.offset = call, offset
        self.slots: list[tuple[int, int]] = []
        self.table: np.ndarray | None = None
        self.at = 0
        self.inputs: list[Array] = []
        self.out: list[Array] = []
        self.coefficients: Any = call.coefficients
        self.noise_scale = call.noise_scale

    def bind(self, values: Mapping[str, Array], copy: tuple[str, Array] | None) -> bool:
        """Arrays for names; `copy`: a value that is written a second time, in another dtype.
        Returns whether that is done here."""
        call = self.call
        self.inputs = [values.get(name) for name in call.inputs]
        self.out = [values[name] for name in call.outputs]
        self.coefficients, self.noise_scale = call.coefficients, call.noise_scale
        copies = copy is not None and copy[0] in call.outputs and len(self.out) < MAX_OUTPUTS
        if copy is not None and copies:
            j, n = call.outputs.index(copy[0]), len(call.inputs)
            self.out.append(copy[1])
            self.coefficients += call.coefficients[j * n : (j + 1) * n]
            self.noise_scale += call.noise_scale[j : j + 1]
        if self.table is not None:
            self.table = np.array(self.coefficients).reshape(len(self.out), -1)
        return copies

    def with_weights(self, parts: list[Array], weights: Array) -> tuple[list[Array], Array]:
        """Inputs and per-sample coefficients (B, outputs, inputs) with the model's output made of
        `parts` by `weights` (B, parts)."""
        table, at = self.table, self.at
        assert table is not None
        new = np.empty if isinstance(weights, np.ndarray) else weights.new_empty
        base = table if isinstance(weights, np.ndarray) else weights.new_tensor(table)
        n = len(parts)
        coefficients = new((weights.shape[0], table.shape[0], table.shape[1] - 1 + n))
        coefficients[:, :, :at] = base[:, :at]
        coefficients[:, :, at : at + n] = base[:, at, None] * weights[:, None, :]
        coefficients[:, :, at + n :] = base[:, at + 1 :]
        return [*self.inputs[:at], *parts, *self.inputs[at + 1 :]], coefficients


class Solver:
    """Runs a plan in buffers of its own: one fused pass per model evaluation.

        solver = px.solvers.Solver(plan, seed=3)
        x = solver.start(noise)
        for t in solver.timesteps:
            x = solver.step(model(x, t))

    Args:
        plan: of `solver_plan`.
        guidance: of `px.guidance`; `step` then takes as many outputs as it has names.
        seed, offset, first_element: of the noise, see `px.ops.lincomb`: a batch split over several
            solvers gets the same noise when each says where its first element lies.
        noise: name -> array, instead of the kernel's noise; see `SolverPlan.noises`.
        constants: the arrays that the plan names in `SolverPlan.constants`, shaped like the start.
        state_dtype: "float32" keeps samples and history in float32 while the model is fed and
            answers in another dtype; None: the dtype of the start.

    `step` returns a buffer of the solver that later steps write again: copy what is to be kept.
    """

    def __init__(
        self,
        plan: SolverPlan,
        *,
        guidance: Guidance | None = None,
        seed: int = 0,
        offset: int = 0,
        first_element: int = 0,
        noise: Noise | None = None,
        constants: Mapping[str, Array] | None = None,
        state_dtype: str | None = None,
    ) -> None:
        self.plan, self.guidance, self.noise = plan, guidance, noise
        self.constants = dict(constants or {})
        if set(self.constants) != set(plan.constants):
            raise ValueError(
                f"Solver: argument 'constants' expected {', '.join(plan.constants) or 'none'}, "
                f"got {', '.join(self.constants) or 'none'}"
            )
        self.seed, self.first_element, self.state_dtype = seed, first_element, state_dtype
        self.index = 0  # of the next stage
        self._names = list(guidance.names) if guidance else ["output"]
        noises = {name: offset + i for i, name in enumerate(plan.noises)}

        def ready(p: Pass) -> _Ready:
            call = call_of(p, noise is not None)
            return _Ready(call, noises.get(call.noise or "", 0))

        self._before = [ready(p) for p in plan.before]
        self._stages = [[ready(p) for p in stage.passes] for stage in plan.stages]
        for k, group in enumerate(self._stages):
            for r in group:
                self._fold(k, r)
        self._slots, self._count = allocate(plan)
        self._buffers: list[Array] = []
        self._input: Array = None  # the model's, where its dtype is not that of the state
        self._like: tuple[Any, ...] = ()
        self._samples: list[Array] = []

    @property
    def timesteps(self) -> list[float]:
        """What the model is told at each evaluation."""
        return self.plan.timesteps

    def _fold(self, k: int, ready: _Ready) -> None:
        """Puts the guidance's outputs in the place of the model's."""
        stage, call = self.plan.stages[k], ready.call
        if stage.output not in call.inputs:
            return
        at, n = call.inputs.index(stage.output), len(call.inputs)
        table = np.array(call.coefficients).reshape(-1, n)
        form = LinearForm.of("output")
        if self.guidance is not None:
            guided = self.guidance.form(k, stage.point)
            if guided is None:  # weights per sample: known when the outputs are
                ready.table, ready.at = table, at
                return
            form = guided
        unknown = [name for name in form.terms if name not in self._names]
        if unknown:
            raise ValueError(f"Solver: guidance uses {unknown}, but names {self._names}")
        names = [name for name in self._names if form.terms.get(name)]
        columns = [table[:, :at], *(table[:, at : at + 1] * form.terms[n] for n in names)]
        folded = np.concatenate([*columns, table[:, at + 1 :]], axis=1)
        inputs = [*call.inputs[:at], *names, *call.inputs[at + 1 :]]
        ready.call = dataclasses.replace(
            call, inputs=inputs, coefficients=tuple(folded.ravel().tolist())
        )
        ready.slots = [(at + i, self._names.index(name)) for i, name in enumerate(names)]

    def initial_noise(self, like: Array, *, offset: int = 1 << 40) -> Array:
        """sigma of the first point times standard normal noise, shaped like `like`."""
        size = shape(like, "Solver", "like")
        x = ops.random_normal(
            size, seed=self.seed, offset=offset, first_element=self.first_element, like=like
        )
        return ops.lincomb([x], [[self.plan.points[0].sigma]], out=[x])[0]

    def start(self, x: Array) -> Array:
        """Begins a run at the noise `x` (B, ...); returns the first model input."""
        like = (shape(x, "Solver", "x"), x.dtype, getattr(x, "device", None))
        if like != self._like:
            self._buffers = [empty(x, like[0], self.state_dtype) for _ in range(self._count)]
            mixed = bool(self._buffers) and self._buffers[0].dtype != x.dtype
            self._input = empty(x, like[0]) if mixed else None
            self._like = like
        values = {name: self._buffers[i] for name, i in self._slots.items()}
        values[self.plan.start] = x
        values.update(self.constants)
        names = [*(stage.sample for stage in self.plan.stages), self.plan.stages[-1].result]
        self._samples = [values[name] for name in names]
        self._copies = [False] * len(names)
        for k, group in enumerate([self._before, *self._stages]):
            mixed = self._input is not None and bool(group) and k < len(self._stages)
            copy = (names[k], self._input) if mixed else None
            done = [ready.bind(values, copy) for ready in group]
            self._copies[k] = mixed and not any(done)  # no room among the outputs
        self.index = 0
        if self.guidance is not None:
            self.guidance.reset()
        for ready in self._before:
            self._draw(ready)
            self._call(ready, ready.inputs, ready.coefficients)
        return self._sample(0) if self._before else x

    def _sample(self, k: int) -> Array:
        """The model's k-th input, in the model's dtype; at the end the result."""
        x = self._samples[k]
        if self._input is None or k == len(self._stages):
            return x
        if self._copies[k]:
            ops.lincomb([x], (1.0,), out=[self._input])
        return self._input

    def _draw(self, ready: _Ready) -> None:
        """The caller's noise, where there is one, in the place of its name."""
        if self.noise is not None:
            for i, name in enumerate(ready.call.inputs):
                if is_noise(name):
                    ready.inputs[i] = self.noise(name)

    def _call(self, ready: _Ready, inputs: list[Array], coefficients: Any) -> None:
        run_call(
            ready.call,
            inputs,
            coefficients,
            ready.out,
            noise_scale=ready.noise_scale,
            seed=self.seed,
            offset=ready.offset,
            first_element=self.first_element,
        )

    def step(self, *outputs: Array) -> Array:
        """The model's answer (with guidance: its answers) in, the next model input out; after the
        last stage the result.

        Raises:
            ValueError: no `start`, more steps than the plan has, another number of outputs.
        """
        k = self.index
        if not self._samples:
            raise ValueError("Solver.step: call start(x) first")
        if k >= len(self._stages):
            raise ValueError(f"Solver.step: the plan has {k} model evaluations, all are done")
        if len(outputs) != len(self._names):
            raise ValueError(
                f"Solver.step: expected {len(self._names)} outputs ({', '.join(self._names)}), "
                f"got {len(outputs)}"
            )
        combined = None
        for ready in self._stages[k]:
            self._draw(ready)
            inputs, coefficients = ready.inputs, ready.coefficients
            for position, i in ready.slots:
                inputs[position] = outputs[i]
            if ready.table is not None and self.guidance is not None:
                point = self.plan.stages[k].point
                combined = combined or self.guidance.combine(k, point, outputs, self._samples[k])
                inputs, coefficients = ready.with_weights(*combined)
            self._call(ready, inputs, coefficients)
        self.index = k + 1
        return self._sample(k + 1)

    def sample(self, model: Callable[[Array, float], Any], x: Array) -> Array:
        """Runs the whole plan: `model(x, time)` gives the output, or with guidance a tuple."""
        x = self.start(x)
        for t in self.timesteps:
            answer = model(x, t)
            x = self.step(*answer) if isinstance(answer, (tuple, list)) else self.step(answer)
        return x
