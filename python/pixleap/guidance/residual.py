"""Residual classifier-free guidance of StreamDiffusion: no negative model call, or one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import ops
from .._arrays import Array, empty, shape
from ..solvers.linear_form import LinearForm
from ..solvers.method import conversion
from ..solvers.schedule import NoiseSchedule, Point, choose
from .base import Guidance, Scale
from .weighting import batch_of, check_number, check_scale, columns

MODES = ("self_negative", "onetime_negative")


class ResidualCFG(Guidance):
    """delta * v + scale * (cond - delta * v), with v the virtual output of a negative prompt
    (Kodaira et al. 2023, StreamDiffusion, arXiv 2312.12491, section 3.2).

    v is what a model would answer that takes every sample for `source`: as noise
    (x - alpha * source) / sigma, for other predictions the same converted. It costs no pass and no
    model call: cond, x and source enter the solver's pass with weights.

    Args:
        scale, interval, interval_in: see `Guidance`.
        schedule, prediction_type: of the model, as in `px.solvers.solver_plan`.
        mode: "self_negative": source is the input of image-to-image, (B, ...) in the scale of
            predicted samples; set it here or as attribute before each run. "onetime_negative":
            source is the sample that uncond predicts at the first guided evaluation, the only one
            that needs uncond.
        delta: >= 0, weakens v.

    `names`: cond, or cond and uncond.
    """

    def __init__(
        self,
        scale: Scale,
        *,
        schedule: NoiseSchedule,
        prediction_type: str = "epsilon",
        mode: str = "self_negative",
        delta: float = 1.0,
        source: Array | None = None,
        **interval: Any,
    ) -> None:
        super().__init__(scale, **interval)
        self.mode = choose(mode, MODES, self.where, "mode")
        self.names = ("cond",) if mode == MODES[0] else ("cond", "uncond")
        self.schedule, self.prediction_type, self.source = schedule, prediction_type, source
        self.delta = check_number(delta, self.where, "delta", 0.0)
        self._known = False

    def reset(self) -> None:
        self._known = False

    def form(self, stage: int, point: Point) -> LinearForm | None:
        return None if self.active(point) else LinearForm.of("cond")

    def needs(self, stage: int, point: Point) -> tuple[str, ...]:
        if self.mode == MODES[0] or self._known or not self.active(point):
            return ("cond",)
        return ("cond", "uncond")

    def virtual(self, point: Point) -> tuple[float, float]:
        """(a, b): v = a * x + b * source at a point with sigma > 0."""
        p, q = self.schedule.prediction(self.prediction_type, point)
        return q / point.sigma, p - q * point.alpha / point.sigma

    def linear(self, stage: int, point: Point) -> LinearForm:
        """Over cond, sample and source, as `StreamBatch` takes it."""
        if not self.active(point):
            return LinearForm.of("cond")
        scale = self.scale_at(stage, point)
        if not isinstance(scale, float) or self.mode != MODES[0]:
            raise ValueError(
                f"{self.where}: a stream expected mode {MODES[0]!r} and a scale that is one number"
            )
        a, b = self.virtual(point)
        rest = (1.0 - scale) * self.delta
        return LinearForm({"cond": scale, "sample": rest * a, "source": rest * b})

    def combine(
        self, stage: int, point: Point, outputs: Sequence[Array], sample: Array
    ) -> tuple[list[Array], Array]:
        cond = outputs[0]
        if self.mode != MODES[0] and not self._known:
            if outputs[1] is None:
                raise ValueError(f"{self.where}: evaluation {stage} needs the output 'uncond'")
            size = shape(cond, self.where, "cond")
            old = self.source
            if old is None or (tuple(old.shape), old.dtype) != (size, cond.dtype):
                self.source = empty(cond, size)
            row = conversion(self.schedule, self.prediction_type, "sample", point)
            ops.lincomb([sample, outputs[1]], row, out=[self.source])
            self._known = True
        if self.source is None:
            raise ValueError(
                f"{self.where}: expected attribute 'source', the input image, got None"
            )
        scale = self.scale_at(stage, point)
        check_scale(scale, cond, self.where)
        a, b = self.virtual(point)
        rest = (1.0 - scale) * self.delta
        weights = columns((scale, rest * a, rest * b), batch_of(cond), cond)
        return [cond, sample, self.source], weights
