"""Guidance that stops paying for the unconditional model: Adaptive Guidance and LinearAG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .. import ops
from .._arrays import Array, empty, is_torch, shape
from ..solvers.linear_form import LinearForm
from ..solvers.schedule import Point
from .base import Guidance, Scale
from .weighting import (
    Number,
    batch_of,
    check_number,
    check_scale,
    columns,
    cosine,
    per_sample,
    sums,
)


def similarity(a: Array, b: Array) -> Array:
    """(B,) float64: cosine of each sample of two (B, ...) arrays, NumPy for arrays of the host."""

    def rule(*m: Number) -> tuple[Number]:
        return (cosine(m[2], m[3], m[4]),)

    return per_sample(rule, sums(a, b))[:, 0]


class AdaptiveGuidance(Guidance):
    """CFG until cond and uncond agree, cond alone from then on (Castillo et al. 2023,
    arXiv 2312.12487).

    Args:
        scale, interval, interval_in: see `Guidance`.
        threshold: cosine of cond and uncond, over all but the batch, from which on guidance stops;
            the paper's search around 0.99. The evaluation that reaches it is still guided, as its
            uncond is there already.

    Each sample stops by itself. `needs` drops uncond once all have stopped; on a GPU that question
    waits for the device, once per evaluation. `stopped` is (B,) bool, None before the first
    evaluation.
    """

    def __init__(self, scale: Scale, *, threshold: float = 0.991, **interval: Any) -> None:
        super().__init__(scale, **interval)
        self.threshold = check_number(threshold, self.where, "threshold", -1.0, 1.0)
        self.reset()

    def reset(self) -> None:
        self.stopped: Array | None = None
        self._done: bool | None = False  # whether all samples have; None: to be asked

    def form(self, stage: int, point: Point) -> LinearForm | None:
        return None if self.active(point) else LinearForm.of("cond")

    def needs(self, stage: int, point: Point) -> tuple[str, ...]:
        if self._done is None and self.stopped is not None:
            self._done = bool(self.stopped.all())
        return ("cond",) if self._done or not self.active(point) else ("cond", "uncond")

    def combine(
        self, stage: int, point: Point, outputs: Sequence[Array], sample: Array
    ) -> tuple[list[Array], Array]:
        cond, uncond = outputs
        if uncond is None:
            if "uncond" in self.needs(stage, point):
                raise ValueError(f"{self.where}: evaluation {stage} needs the output 'uncond'")
            return [cond], columns((1.0,), batch_of(cond), cond)
        scale = self.scale_at(stage, point)
        check_scale(scale, cond, self.where)

        def rule(*m: Number) -> tuple[Number, Number, Number]:
            return m[6], 1.0 - m[6], cosine(m[2], m[3], m[4])

        table = per_sample(rule, sums(cond, uncond), scale)
        weights, agreed = table[:, :2], table[:, 2] >= self.threshold
        self._done = None
        if self.stopped is None:
            self.stopped = agreed
            return [cond, uncond], weights
        # By arithmetic: an index of bool waits for the device.
        weights *= ~self.stopped[:, None]
        weights[:, 0] += self.stopped
        self.stopped = self.stopped | agreed
        return [cond, uncond], weights


Fit = dict[int, LinearForm]


def fit_linear_ag(
    cond: Sequence[Array],
    uncond: Sequence[Array],
    stages: Sequence[int],
    *,
    window: int | None = None,
) -> Fit:
    """Coefficients of LinearAG: uncond of an evaluation as a linear combination of what is known by
    then, one number per array, by least squares (Castillo et al. 2023, equation 8).

    Args:
        cond, uncond: of each evaluation of recorded runs with CFG, arrays (N, ...) of one shape;
            N counts samples of all runs.
        stages: the evaluations whose uncond is to be estimated. Others may use their estimates.
        window: how many evaluations back the estimate looks; None: to the first. cond of the
            evaluation itself is always used.

    Returns:
        {stage: LinearForm over "cond i" and "uncond i"}, i the evaluation. `LinearAG` takes it.

    Raises:
        ValueError: lengths that differ, stages out of range.

    Solved in float64 from the arrays themselves (SVD): past outputs are nearly collinear, and
    normal equations would square that.
    """
    where = "guidance.fit_linear_ag"
    if len(cond) != len(uncond):
        raise ValueError(
            f"{where}: argument 'uncond' expected {len(cond)} arrays as 'cond', got {len(uncond)}"
        )
    if window is not None and window < 0:
        raise ValueError(f"{where}: argument 'window' expected >= 0, got {window}")
    fit: Fit = {}
    for k in sorted(stages):
        if not 0 <= k < len(cond):
            raise ValueError(f"{where}: argument 'stages' expected 0 to {len(cond) - 1}, got {k}")
        past = range(0 if window is None else max(0, k - window), k)
        names = [f"cond {i}" for i in (*past, k)] + [f"uncond {i}" for i in past]
        known = [cond[i] for i in (*past, k)] + [uncond[i] for i in past]
        matrix = np.stack([_flat(a) for a in known], axis=1)
        solution = np.linalg.lstsq(matrix, _flat(uncond[k]), rcond=None)[0]
        fit[k] = LinearForm(dict(zip(names, solution.tolist(), strict=True)))
    return fit


def _flat(x: Array) -> np.ndarray:
    if is_torch(x):
        x = x.detach().double().cpu().numpy()
    return np.asarray(x, np.float64).reshape(-1)


class LinearAG(Guidance):
    """CFG whose uncond is estimated, at some evaluations, from outputs of earlier ones (Castillo et
    al. 2023, section 6).

    Args:
        scale, interval, interval_in: see `Guidance`. The estimates look at earlier outputs, so an
            interval must not leave out an uncond that a later estimate uses.
        fit: of `fit_linear_ag`: {stage: form}; at these evaluations uncond may be None.

    `history` counts the outputs that are kept, arrays like the model's: copies, made in one pass
    per evaluation, which for an estimated one makes the estimate as well.
    """

    def __init__(self, scale: Scale, fit: Mapping[int, LinearForm], **interval: Any) -> None:
        super().__init__(scale, **interval)
        self.fit = dict(fit)
        used = {name for form in self.fit.values() for name in form.terms}
        for k, form in self.fit.items():
            for name in form.terms:
                kind, _, i = name.partition(" ")
                known = kind in self.names and i.isdigit() and int(i) <= k
                if not known or name == f"uncond {k}":
                    raise ValueError(
                        f"{self.where}: argument 'fit' expected 'cond i' and 'uncond i' of "
                        f"evaluations before {k}, got {name!r}"
                    )
            if len(form.terms) > 16:
                raise ValueError(
                    f"{self.where}: argument 'fit' expected at most 16 terms, got "
                    f"{len(form.terms)} at evaluation {k}; fit with a smaller window"
                )
        own = {f"cond {k}" for k in self.fit}  # at hand, not kept, unless a later estimate looks
        later = {name for k, form in self.fit.items() for name in form.terms if name != f"cond {k}"}
        self._kept = (used - own) | later
        self._buffers: dict[str, Array] = {}
        self._written: set[str] = set()
        self._like: tuple[Any, ...] = ()

    @property
    def history(self) -> int:
        return len(self._kept)

    def reset(self) -> None:
        self._written = set()

    def form(self, stage: int, point: Point) -> LinearForm | None:
        form = super().form(stage, point)
        touched = stage in self.fit or {f"cond {stage}", f"uncond {stage}"} & self._kept
        return None if touched and self.active(point) else form

    def needs(self, stage: int, point: Point) -> tuple[str, ...]:
        if stage in self.fit and self.active(point):
            return ("cond",)
        return super().needs(stage, point)

    def combine(
        self, stage: int, point: Point, outputs: Sequence[Array], sample: Array
    ) -> tuple[list[Array], Array]:
        cond, uncond = outputs
        scale = self.scale_at(stage, point)
        check_scale(scale, cond, self.where)
        like = (shape(cond, self.where, "cond"), cond.dtype, getattr(cond, "device", None))
        if like != self._like:
            self._buffers, self._written, self._like = {}, set(), like
        if stage not in self.fit and uncond is None:
            raise ValueError(f"{self.where}: evaluation {stage} needs the output 'uncond'")
        terms = {"uncond": 1.0} if stage not in self.fit else self.fit[stage].terms
        inputs = {"cond": cond, "uncond": uncond}
        row: dict[str, float] = {}
        for name, c in terms.items():
            key = "cond" if name == f"cond {stage}" else name
            row[key] = c
            if key not in inputs:
                if name not in self._written:
                    raise ValueError(
                        f"{self.where}: the estimate of evaluation {stage} uses {name!r}, which "
                        "this run did not compute"
                    )
                inputs[key] = self._buffers[name]
        rows = {}
        if f"cond {stage}" in self._kept:
            rows[f"cond {stage}"] = {"cond": 1.0}
        if f"uncond {stage}" in self._kept or stage in self.fit:
            rows[f"uncond {stage}"] = row
        if rows:
            names = list(dict.fromkeys(n for r in rows.values() for n in r))
            out = [self._buffer(name, cond) for name in rows]
            flat = tuple(r.get(n, 0.0) for r in rows.values() for n in names)
            ops.lincomb([inputs[n] for n in names], flat, out=out)
            self._written |= set(rows)
        if stage in self.fit:
            uncond = self._buffers[f"uncond {stage}"]
        return [cond, uncond], columns((scale, 1.0 - scale), batch_of(cond), cond)

    def _buffer(self, name: str, like: Array) -> Array:
        """Kept values have a buffer each; estimates that nobody looks at later share one."""
        if name not in self._buffers:
            if name not in self._kept and "estimate" in self._buffers:
                self._buffers[name] = self._buffers["estimate"]
            else:
                self._buffers[name] = empty(like, shape(like, self.where, "cond"))
                if name not in self._kept:
                    self._buffers["estimate"] = self._buffers[name]
        return self._buffers[name]
