"""Stream Batch: samples at different steps in one batch, and the filter that skips like frames."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from .. import ops
from .._arrays import Array, empty, is_torch, shape
from ..solvers.linear_form import LinearForm
from ..solvers.plan import SolverPlan
from .adaptive import similarity
from .weighting import check_number


class StreamBatch:
    """A pipeline of denoising steps: slot k of the batch holds samples at evaluation k, and every
    tick moves all slots by one evaluation in one fused pass (Kodaira et al. 2023, StreamDiffusion,
    arXiv 2312.12491, section 3.1).

        stream = px.guidance.StreamBatch(plan, seed=3)
        stream.start(noise)                               # (B, ...) enters slot 0
        while True:
            done = stream.step(model(stream.input, stream.timesteps), x=noise)

    Args:
        plan: of `solver_plan`, with one evaluation per step and no history: lcm, ddim, euler and
            their like, without clip_sample or threshold.
        guidance: linear with numbers known beforehand, or `ResidualCFG` with mode "self_negative";
            `step` then takes as many outputs as it has names.
        seed, offset: of the noise of stochastic plans. Tick i uses the stream (seed, offset + i),
            slot k of it from element k * (elements of B samples) on.

    Raises:
        ValueError: a plan or guidance that does not fit.
    """

    def __init__(
        self, plan: SolverPlan, *, guidance: Any = None, seed: int = 0, offset: int = 0
    ) -> None:
        self.plan, self.guidance, self.seed, self.offset = plan, guidance, seed, offset
        self.names = list(guidance.names) if guidance is not None else ["output"]
        self.slots = plan.evaluations
        self._check_plan()
        forms = [self._form(k) for k in range(self.slots)]
        self.has_source = any("source" in f.terms for f in forms)
        used = [n for n in self.names if any(f.terms.get(n) for f in forms)]
        self._used = [self.names.index(n) for n in used]
        columns = ["sample", *used, *(["source"] if self.has_source else [])]
        rows = 2 if self.has_source else 1
        self._table = np.zeros((self.slots, rows, len(columns)))
        self._noise = np.zeros((self.slots, rows))
        for k, form in enumerate(forms):
            self._table[k, 0] = [form.terms.get(name, 0.0) for name in columns]
            if self.has_source:
                self._table[k, 1, -1] = 1.0
            last = plan.stages[k].passes[0]
            self._noise[k, 0] = sum(last.forms[0].terms[n] for n in last.noise)
        self._buffers: list[list[Array]] = []  # [samples, sources], each [now, next]
        self._held: list[bool] = []
        self._batch = 0
        self.tick = 0

    def _check_plan(self) -> None:
        plan = self.plan
        for stage in plan.stages:
            p = stage.passes[0]
            known = {stage.sample, stage.output}
            fits = len(stage.passes) == 1 and len(p.outputs) == 1 and set(p.inputs) <= known
            if not fits or p.clamp is not None or p.threshold is not None or len(p.noise) > 1:
                raise ValueError(
                    f"StreamBatch: argument 'plan' expected one evaluation per step without "
                    f"history, clip_sample or threshold, got {plan.name}"
                )
        if plan.before:
            raise ValueError(f"StreamBatch: {plan.name} adds noise ahead of its first evaluation")

    def _form(self, k: int) -> LinearForm:
        """The next sample of slot k over "sample", the outputs' names and "source"."""
        stage = self.plan.stages[k]
        form = stage.passes[0].forms[0]
        guided = LinearForm.of("output")
        if self.guidance is not None:
            make = getattr(self.guidance, "linear", self.guidance.form)
            guided = make(k, stage.point)
            if guided is None:
                raise ValueError(
                    "StreamBatch: argument 'guidance' expected a rule that is linear with numbers "
                    f"known beforehand, got {type(self.guidance).__name__}"
                )
        unknown = set(guided.terms) - {*self.names, "sample", "source"}
        if unknown:
            raise ValueError(
                f"StreamBatch: guidance uses {sorted(unknown)}, but names {self.names}"
            )
        return form.substitute({stage.sample: LinearForm.of("sample"), stage.output: guided})

    def start(self, x: Array, *, source: Array | None = None) -> Array:
        """Empties the pipeline and puts `x` (B, ...) into slot 0; returns the model's input.

        source: (B, ...) of `ResidualCFG`, the image behind x; travels with it.
        """
        size = shape(x, "StreamBatch", "x")
        if len(size) < 2:
            raise ValueError(f"StreamBatch: argument 'x' expected shape (B, ...), got {size}")
        self._batch = size[0]
        self._size = size
        whole = ((self.slots + 1) * size[0], *size[1:])
        kinds = 2 if self.has_source else 1
        self._buffers = [[empty(x, whole) for _ in range(2)] for _ in range(kinds)]
        for pair in self._buffers:
            for buffer in pair:
                buffer[...] = 0
        table, noise = (np.repeat(t, self._batch, axis=0) for t in (self._table, self._noise))
        if is_torch(x) and x.device.type != "cpu":
            table, noise = x.new_tensor(table).double(), x.new_tensor(noise).double()
        self._coefficients, self._noise_scale = table, noise if self._noise.any() else None
        self._held = [False] * self.slots
        self.tick = 0
        self._enter(0, x, source)
        return self.input

    def _enter(self, buffer: int, x: Array | None, source: Array | None) -> None:
        self._held[0] = x is not None
        for pair, new, name in zip(self._buffers, (x, source), ("x", "source"), strict=False):
            slot = pair[buffer][: self._batch]
            if x is None:
                slot[...] = 0
                continue
            if new is None or tuple(getattr(new, "shape", ())) != self._size:
                raise ValueError(
                    f"StreamBatch: argument '{name}' expected shape {self._size}, "
                    f"got {tuple(new.shape) if new is not None else None}"
                )
            slot[...] = new

    @property
    def input(self) -> Array:
        """(slots * B, ...) what the model is to be evaluated at."""
        return self._buffers[0][0][: self.slots * self._batch]

    @property
    def timesteps(self) -> np.ndarray:
        """(slots * B,) float64, the model's time of every sample in `input`."""
        return np.repeat(np.array(self.plan.timesteps), self._batch)

    def step(
        self, *outputs: Array, x: Array | None = None, source: Array | None = None
    ) -> Array | None:
        """One tick.

        Args:
            outputs: of the model at `input` and `timesteps`, (slots * B, ...).
            x: (B, ...) what enters slot 0; None leaves it empty.
            source: (B, ...) with `ResidualCFG`.

        Returns:
            (B, ...) the samples that leave the last slot, in a buffer that the next tick but one
            writes again; None where that slot was empty.

        Raises:
            ValueError: no `start`, another number of outputs, shapes that do not fit.
        """
        if not self._buffers:
            raise ValueError("StreamBatch.step: call start(x) first")
        if len(outputs) != len(self.names):
            raise ValueError(
                f"StreamBatch.step: expected {len(self.names)} outputs "
                f"({', '.join(self.names)}), got {len(outputs)}"
            )
        held = self.slots * self._batch
        inputs = [self.input, *(outputs[i] for i in self._used)]
        if self.has_source:
            inputs.append(self._buffers[1][0][:held])
        ops.lincomb(
            inputs,
            self._coefficients,
            out=[pair[1][self._batch :] for pair in self._buffers],
            noise_scale=self._noise_scale,
            seed=self.seed,
            offset=self.offset + self.tick,
        )
        self.tick += 1
        done = self._held[-1]
        self._held = [False, *self._held[:-1]]
        self._enter(1, x, source)
        for pair in self._buffers:
            pair.reverse()
        return self._buffers[0][0][held:] if done else None


class SimilarityFilter:
    """Stochastic similarity filter (Kodaira et al. 2023, arXiv 2312.12491, section 3.5): a frame is
    skipped with probability max(0, (S - threshold) / (1 - threshold)), S its cosine with the last
    frame that was not.

    Args:
        threshold: in [-1, 1]; 1 skips nothing.
        max_skip: after so many skips in a row a frame passes; None: no limit.
        seed: of the draws.

    Frames: arrays of one shape, float32, bfloat16 or float16; the last one that passed is copied.
    """

    def __init__(
        self, threshold: float = 0.98, *, max_skip: int | None = 10, seed: int = 0
    ) -> None:
        where = "guidance.SimilarityFilter"
        self.threshold = check_number(threshold, where, "threshold", -1.0, 1.0)
        if max_skip is not None:
            check_number(max_skip, where, "max_skip", 0)
        self.max_skip, self.seed = max_skip, seed
        self.reset()

    def reset(self) -> None:
        """Forgets the frames seen and starts the draws anew."""
        self._random = random.Random(self.seed)
        self._last: Array | None = None
        self.skipped = 0

    def probability(self, frame: Array) -> float:
        """Of skipping `frame`."""
        if self._last is None or self.threshold >= 1:
            return 0.0
        s = float(similarity(self._last.reshape(1, -1), frame.reshape(1, -1))[0])
        return max(0.0, (s - self.threshold) / (1 - self.threshold))

    def __call__(self, frame: Array) -> bool:
        """Whether `frame` is to be processed."""
        chance = self.probability(frame)
        full = self.max_skip is not None and self.skipped >= self.max_skip
        if self._random.random() < chance and not full:
            self.skipped += 1
            return False
        self.skipped = 0
        if self._last is None or self._last.shape != frame.shape:
            self._last = empty(frame, shape(frame, "SimilarityFilter", "frame"))
        self._last[...] = frame
        return True
