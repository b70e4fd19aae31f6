"""Runs a solver plan on samples that the caller passes in and keeps, as diffusers' pipelines do."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ...solvers import LinearForm, SolverPlan
from ...solvers.method import is_noise
from ...solvers.stateless import Call, call_of, run_call

Noise = Callable[[], torch.Tensor]


class PlanRun:
    """One run of a plan: `step` takes what `scheduler.step` takes.

    Results are fresh tensors, since pipelines keep them; values that later stages need lie in
    buffers that are used again once they are dead. originals: for every stage the second result, a
    form in the values of the stage, or None. begin: step index of the plan's first stage.
    """

    def __init__(
        self, plan: SolverPlan, originals: list[LinearForm | None], begin: int = 0
    ) -> None:
        self.plan, self.begin, self.index = plan, begin, 0
        self._originals: list[str | None] = []
        for k, (stage, form) in enumerate(zip(plan.stages, originals, strict=True)):
            self._originals.append(None)
            if form is None:
                continue
            made = [name for p in stage.passes for name in p.outputs]
            if form.symbol == stage.output or form.symbol in made:
                self._originals[k] = form.symbol
                continue
            self._originals[k] = f"original{k}"
            stage.passes[-1].outputs.append(f"original{k}")
            stage.passes[-1].forms.append(form)
        self._calls: list[list[Call]] = [
            [call_of(p, external_noise=True) for p in stage.passes] for stage in plan.stages
        ]
        self._noises = [[n for p in stage.passes for n in p.noise] for stage in plan.stages]
        self._dead = self._last_uses()
        self.has_history = any(
            name not in (stage.sample, stage.output)
            and not is_noise(name)
            and name not in {o for call in calls for o in call.outputs}
            for stage, calls in zip(plan.stages, self._calls, strict=True)
            for call in calls
            for name in call.inputs
        )
        self._values: dict[str, torch.Tensor] = {}
        self._owned: dict[str, torch.Tensor] = {}
        self._free: list[torch.Tensor] = []

    def _last_uses(self) -> list[list[str]]:
        """For every stage the names that nothing reads after it."""
        seen: set[str] = set()
        result: list[list[str]] = []
        for stage, calls in zip(reversed(self.plan.stages), reversed(self._calls), strict=True):
            names = {stage.sample, stage.output}
            for call in calls:
                names.update(call.inputs, call.outputs)
            result.append([name for name in names if name not in seen])
            seen |= names
        return result[::-1]

    def reset(self) -> PlanRun:
        """Back to the first stage."""
        self.index = 0
        self._values.clear()
        self._free += self._owned.values()
        self._owned.clear()
        return self

    def take_over(self, other: PlanRun) -> PlanRun:
        """Goes on where a run stands whose plan is the same so far."""
        self.index, self._values, self._owned = other.index, other._values, other._owned
        return self

    def _buffer(self, name: str, like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        while self._free:
            buffer = self._free.pop()
            if (
                buffer.shape == like.shape
                and buffer.dtype == dtype
                and buffer.device == like.device
            ):
                break
        else:
            buffer = torch.empty(like.shape, dtype=dtype, device=like.device)
        self._owned[name] = buffer
        return buffer

    def step(
        self,
        output: torch.Tensor,
        sample: torch.Tensor,
        noise: Noise,
        dtype: torch.dtype,
        kept: torch.dtype,
        second: torch.dtype,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The next sample in `dtype` and the second result in `second`; history is in `kept`."""
        k = self.index
        stage, original, values = self.plan.stages[k], self._originals[k], self._values
        values[stage.sample], values[stage.output] = sample, output
        for name in self._noises[k]:
            if name not in values:
                values[name] = noise()
        for call in self._calls[k]:
            out = []
            for name in call.outputs:
                if name == stage.result or name == original:
                    kind = dtype if name == stage.result else second
                    tensor = torch.empty(sample.shape, dtype=kind, device=sample.device)
                else:
                    tensor = self._buffer(name, sample, kept)
                values[name] = tensor
                out.append(tensor)
            run_call(call, [values[name] for name in call.inputs], call.coefficients, out)
        result = values[stage.result], values[original] if original else None
        for name in self._dead[k]:
            values.pop(name, None)
            if name in self._owned:
                self._free.append(self._owned.pop(name))
        self.index = k + 1
        return result
