"""Adaptive projected guidance: momentum, a limit on the norm, less of the parallel component."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import ops
from .._arrays import Array, empty, shape
from ..solvers.linear_form import LinearForm
from ..solvers.method import conversion
from ..solvers.schedule import NoiseSchedule, Point, choose
from .base import Guidance, Scale
from .weighting import Number, check_number, check_scale, combination, scale_of, weigh

BASES = ("cond", "uncond")


class APG(Guidance):
    """Adaptive projected guidance (Sadat et al. 2024, arXiv 2410.02416, algorithm 1).

    With r = (cond - uncond) + momentum * (r of the evaluation before), limited to a norm of
    norm_threshold per sample and with its component along cond scaled by eta, the result is
    cond + (scale - 1) * r.

    Args:
        scale, interval, interval_in: see `Guidance`. Outside the interval r is left as it is.
        eta: in [0, 1], what is kept of the component parallel to cond; 1: all.
        norm_threshold: >= 0, limit of the norm of r over all but the batch; 0: none.
        momentum: in (-1, 1), the paper's beta; 0: no buffer.
        base: "cond", the paper's and diffusers' use_original_formulation (with its guidance_scale
            = scale - 1); "uncond": uncond + scale * r, diffusers' default.
        schedule, prediction_type: of the model: the rule then acts on the predicted samples, as
            the paper does, and the result is turned back into the model's own prediction. None: it
            acts on the outputs as they are, as diffusers does.

    Per evaluation one pass (`px.ops.guidance_weights`) makes r and its sums, and the solver's own
    pass takes the weights; r is the only array of the size of an output, and there is none without
    momentum. On predicted samples one more pass makes r and the sample. r has the dtype of the
    outputs. Without momentum the squared norm of r comes from the sums of cond and uncond and is
    good to about 1e-7 of the squared norm of cond.
    """

    def __init__(
        self,
        scale: Scale,
        *,
        eta: float = 0.0,
        norm_threshold: float = 15.0,
        momentum: float = -0.5,
        base: str = "cond",
        schedule: NoiseSchedule | None = None,
        prediction_type: str | None = None,
        **interval: Any,
    ) -> None:
        super().__init__(scale, **interval)
        self.eta, self.norm_threshold, self.momentum = _check(
            self.where, eta, norm_threshold, momentum
        )
        self.base = choose(base, BASES, self.where, "base")
        if (schedule is None) != (prediction_type is None):
            raise ValueError(
                f"{self.where}: expected both 'schedule' and 'prediction_type' or neither"
            )
        self.schedule, self.prediction_type = schedule, prediction_type
        self._buffers: list[Array] = []
        self._like: tuple[Any, ...] = ()
        self._fresh = True

    def reset(self) -> None:
        self._fresh = True

    def form(self, stage: int, point: Point) -> LinearForm | None:
        return None if self.active(point) else LinearForm.of("cond")

    def combine(
        self, stage: int, point: Point, outputs: Sequence[Array], sample: Array
    ) -> tuple[list[Array], Array]:
        cond, uncond = outputs
        scale = self.scale_at(stage, point)
        check_scale(scale, cond, self.where)
        options = {"eta": self.eta, "norm_threshold": self.norm_threshold, "base": self.base}
        if self.schedule is None and not self.momentum:
            return [cond, uncond], weigh(cond, uncond, scale, rule="projected", **options)
        like = (shape(cond, self.where, "cond"), cond.dtype, getattr(cond, "device", None))
        if like != self._like:
            count = 1 if self.schedule is None else 2
            self._buffers = [empty(cond, like[0]) for _ in range(count)]
            self._like, self._fresh = like, True
        r, beta = self._buffers[0], 0.0 if self._fresh else self.momentum
        self._fresh = False
        if self.schedule is None:
            return _averaged(cond, uncond, r, scale, beta, options)
        a, slope = conversion(self.schedule, str(self.prediction_type), "sample", point)
        along = self._buffers[1]
        rows = [[slope, -slope, 0.0], [slope, 0.0, a]]
        inputs = [cond, uncond, sample]
        if beta:
            inputs, rows = [*inputs, r], [[*rows[0], beta], [*rows[1], 0.0]]
        ops.lincomb(inputs, rows, out=[r, along])
        weights = weigh(along, None, scale, rule="projected", average=r, slope=slope, **options)
        return [r, along, cond if self.base == "cond" else uncond], weights


def _averaged(
    cond: Array, uncond: Array, r: Array, scale: Number, momentum: float, options: dict[str, Any]
) -> tuple[list[Array], Array]:
    """Puts the new r in the place of the old one; the arrays that take part and their weights."""
    weights = weigh(cond, uncond, scale, rule="projected", average=r, momentum=momentum, **options)
    return [r, cond] if options["base"] == "cond" else [r, cond, uncond], weights


def _check(where: str, eta: Any, limit: Any, momentum: Any) -> tuple[float, float, float]:
    eta = check_number(eta, where, "eta", 0.0, 1.0)
    limit = check_number(limit, where, "norm_threshold", 0.0)
    momentum = check_number(momentum, where, "momentum", -1.0, 1.0)
    if abs(momentum) == 1.0:
        raise ValueError(f"{where}: argument 'momentum' expected in (-1, 1), got {momentum:g}")
    return eta, limit, momentum


def apg(
    cond: Array,
    uncond: Array,
    scale: Any,
    *,
    eta: float = 0.0,
    norm_threshold: float = 15.0,
    momentum: float = -0.5,
    average: Array | None = None,
    base: str = "cond",
    out: Array | None = None,
) -> Array:
    """Adaptive projected guidance of two predictions; see `APG` for the rule and its arguments.

    Args:
        cond, uncond: (B, ...) of one dtype, float32, bfloat16 or float16, each sample contiguous:
            predicted samples for the paper's rule, raw predictions for diffusers'.
        scale: a number or (B,) array.
        average: like cond; r of the step before is read from it and the new r written to it; zeros
            at the first step. None: no momentum. Two passes in all.
        out: like cond; may be cond or uncond.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit, numbers out of range.
    """
    where = "guidance.apg"
    scale = scale_of(scale, where)
    eta, limit, momentum = _check(where, eta, norm_threshold, momentum)
    choose(base, BASES, where, "base")
    check_scale(scale, cond, where)
    options = {"eta": eta, "norm_threshold": limit, "base": base}
    if average is None:
        weights = weigh(cond, uncond, scale, rule="projected", **options)
        return combination([cond, uncond], weights, out)
    return combination(*_averaged(cond, uncond, average, scale, momentum, options), out)
