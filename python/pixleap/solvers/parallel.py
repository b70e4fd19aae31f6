"""Diffusion sampling parallel in time: Picard sweeps over a sliding window of evaluations.

A plan without limits is a triangular system: every model input is a linear form of earlier inputs,
model outputs and noise. With outputs held fixed that system is solved exactly, so a sweep calls the
model once for all evaluations of the window, and small lower-triangular matrices then give all
their next inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import ops
from .._arrays import Array, empty, is_torch, shape
from .linear_form import LinearForm
from .picard import Sweeps, TriangularPlan
from .plan import SolverPlan
from .reductions import host_moments, per_sample
from .solver import Guidance
from .stateless import Noise, solver_start

MAX_HISTORY = 8
Progress = Callable[[int, int], None]


@dataclass
class ParallelResult:
    """What `parallel_sample` returns.

    samples: (B, ...), like the start.
    sweeps: model calls one after another, the sequential depth.
    evaluations: (B,) rows that the model saw of each sample.
    residuals: for every sweep the largest change in the window, root mean square of a sample over
        its tolerance's unit (the noise of the step); 0 where the window held one point only.
    converged: (B,) bool; False where `max_sweeps` ended the run or numbers are not finite.
    """

    samples: Array
    sweeps: int = 0
    evaluations: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    residuals: list[float] = field(default_factory=list)
    converged: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))


def _integer(value: Any, name: str, low: int, high: float = math.inf) -> int:
    if not isinstance(value, (int, np.integer)) or not low <= value <= high:
        limits = f"{low} to {high}" if math.isfinite(high) else f">= {low}"
        raise ValueError(
            f"parallel_sample: argument '{name}' expected an integer {limits}, got {value!r}"
        )
    return int(value)


def _check_guidance(guidance: Guidance | None) -> None:
    """Rules that look at earlier evaluations have no meaning where all are made at once."""
    from ..guidance.base import Guidance as Base

    if guidance is None or type(guidance).reset is Base.reset:
        return
    if getattr(guidance, "momentum", None) != 0:  # APG without it looks at one evaluation alone
        raise ValueError(
            "parallel_sample: argument 'guidance' expected a rule without memory between "
            f"evaluations, as CFG, PAG or APG(momentum=0), got {type(guidance).__name__}"
        )


class _Model:
    """The model on rows of any evaluations and samples, its guidance folded into held values."""

    def __init__(
        self,
        plan: SolverPlan,
        model: Callable[..., Any],
        like: Array,
        conditions: Sequence[Array],
        guidance: Guidance | None,
    ) -> None:
        self.model, self.conditions, self.guidance = model, conditions, guidance
        self.like = like  # what the model takes
        self.names = list(guidance.names) if guidance else ["output"]
        self.points = [stage.point for stage in plan.stages]
        self.times = np.array([p.time for p in self.points])
        if guidance is not None:
            guidance.reset()
        form = guidance.form if guidance else lambda k, point: LinearForm.of("output")
        forms = [form(k, p) for k, p in enumerate(self.points)]
        self.unknown = {k for k, f in enumerate(forms) if f is None}
        self.weights = np.array(
            [[f.terms.get(n, 0.0) if f else 0.0 for n in self.names] for f in forms]
        )

    def __call__(self, run: Sweeps) -> np.ndarray:
        """One call: held values of all windows. Returns how many rows each sample had."""
        k, b = run.active()
        whole = isinstance(k, slice)
        rows, samples = k, b
        if isinstance(k, slice):
            rows = np.repeat(np.arange(k.start, k.stop), run.batch)
            samples = np.tile(np.arange(run.batch), k.stop - k.start)
        rows, samples = np.asarray(rows), np.asarray(samples)
        x = run.flat(run.x, k.start, k.stop) if whole else run.x[k, b]
        given = x
        if x.dtype != self.like.dtype:
            given = ops.lincomb([x], (1.0,), out=[empty(self.like, tuple(x.shape))])[0]
        times = per_sample(self.times[rows], x)
        if is_torch(x) and not str(x.dtype).endswith("float64"):
            times = times.float()
        conditions = [c[samples.tolist()] for c in self.conditions]
        answer = self.model(given, times, *conditions)
        outputs = list(answer) if isinstance(answer, (tuple, list)) else [answer]
        self._check(outputs, given)
        if self.unknown:
            outputs = [self._combined(rows, samples, outputs, given, run.batch)]
            weights = np.ones((len(rows), 1))
        else:
            used = [i for i, o in enumerate(outputs) if o is not None]
            outputs, weights = [outputs[i] for i in used], self.weights[rows][:, used]
        shifts = np.array(run.system.shifts)[rows, None]
        table = per_sample(np.concatenate([weights, shifts], axis=1)[:, None], self.like)
        out = run.flat(run.h, k.start, k.stop) if whole else empty(x, tuple(x.shape))
        ops.lincomb([*outputs, x], table, out=[out])
        if not whole:
            run.h[k, b] = out
        return np.bincount(samples, minlength=run.batch)

    def _check(self, outputs: list[Array], x: Array) -> None:
        if len(outputs) != len(self.names):
            raise ValueError(
                f"parallel_sample: argument 'model' expected to return {len(self.names)} outputs "
                f"({', '.join(self.names)}), got {len(outputs)}"
            )
        for o in outputs:
            size = None if o is None else shape(o, "parallel_sample", "model")
            if size != tuple(x.shape) and (o is not None or self.guidance is None):
                raise ValueError(
                    "parallel_sample: argument 'model' expected outputs of the rows' shape "
                    f"{tuple(x.shape)}, got {size}"
                )

    def _combined(
        self, rows: np.ndarray, samples: np.ndarray, outputs: list[Array], x: Array, batch: int
    ) -> Array:
        """The guided output of every row, where weights depend on the outputs: per evaluation, as
        rules take the whole batch. Samples without a row there lend the first one's."""
        assert self.guidance is not None
        guided = empty(x, tuple(x.shape))
        for k in np.unique(rows).tolist():
            at = np.flatnonzero(rows == k)
            whole = np.full(batch, at[0])
            whole[samples[at]] = at
            own = [None if o is None else o[whole.tolist()] for o in outputs]
            weights: Any = self.weights[k]
            if k in self.unknown:
                point = self.points[k]
                own, weights = self.guidance.combine(k, point, own, x[whole.tolist()])
                weights = weights[:, None]
            else:
                used = [i for i, o in enumerate(own) if o is not None]
                own, weights = [own[i] for i in used], weights[used].tolist()
            guided[at.tolist()] = ops.lincomb(own, weights)[0][samples[at].tolist()]
        return guided


def parallel_sample(
    plan: SolverPlan,
    model: Callable[..., Any],
    x: Array,
    *,
    conditions: Sequence[Array] = (),
    window: int | None = None,
    tolerance: float = 1e-2,
    anderson: int = 0,
    data_std: float = 1.0,
    guidance: Guidance | None = None,
    seed: int = 0,
    offset: int = 0,
    first_element: int = 0,
    noise: Noise | None = None,
    state_dtype: str | None = None,
    max_sweeps: int | None = None,
    progress: Progress | None = None,
) -> ParallelResult:
    """Runs a plan in fewer model calls one after another, each on more rows (Shih et al. 2023,
    arXiv 2305.16317, ParaDiGMS; Tang et al. 2024, arXiv 2402.09970, ParaTAA).

    A sweep evaluates the model at every input of a window, then solves the plan's own recurrence
    with what the outputs say held fixed. A sample advances to its first input that moved by more
    than the tolerance, by at least one in a sweep: never more sweeps than the plan has evaluations,
    and with tolerance 0 the result of `Solver` up to rounding. Samples advance each by itself, so
    a sample takes the same path alone and in a batch.

    Args:
        plan: any of `solver_plan` without clip_sample and threshold; of several evaluations a step
            too, as "heun".
        model: (rows, times, *conditions) -> output, with guidance the tuple of its outputs. rows
            (n, ...) are inputs of any evaluations and samples, times (n,) what the model is told of
            each (NumPy: float64, torch: float32, float64 for float64 rows).
        x: (B, ...) the start, as `Solver.start` takes; `Solver.initial_noise` draws one.
        conditions: arrays of B rows, as labels; the model gets their rows that belong to its own.
        window: evaluations of a sample in a sweep; None: all that are left. A smaller one costs
            less work and more sweeps.
        tolerance: tau. An input counts as settled when the root mean square of its change in a
            sweep is at most tau times the standard deviation of the noise that DDPM would add in
            the step from there (ParaDiGMS); the result's own error grows beyond that: see
            bench/results/parallel_diffusion.md.
        anderson: m of triangular Anderson acceleration, how many earlier sweeps it looks at, at
            most 8; 0: none. Needs 2 m + 2 more arrays of the size of the trajectory.
        data_std: of the data. What a sweep holds fixed is the output less that of the exact model
            of normal data with this deviation, which follows the input.
        guidance: of `px.guidance`, without memory between evaluations.
        seed, offset, first_element, noise, state_dtype: as `Solver`; noise is fixed beforehand,
            and the same.
        max_sweeps: the run ends after so many with what it has. None: no limit.
        progress: called after every sweep with (evaluations settled in all samples, all).

    Returns:
        `ParallelResult`.

    Raises:
        ValueError, TypeError: plans that are not linear in inputs, outputs and noise, guidance with
        memory, arguments out of range, outputs or conditions that do not fit.

    The trajectory takes 4 (evaluations + 1, B, ...) arrays, and one more where the plan has noise.
    """
    batch, count = (*shape(x, "parallel_sample", "x"), 0)[0], plan.evaluations
    window = count if window is None else _integer(window, "window", 1)
    history = _integer(anderson, "anderson", 0, MAX_HISTORY)
    most = count if max_sweeps is None else _integer(max_sweeps, "max_sweeps", 1)
    for name, value, above in (("tolerance", tolerance, 0.0), ("data_std", data_std, 1e-30)):
        if not (above <= value < math.inf):
            limits = ">= 0" if above == 0 else "> 0"
            raise ValueError(
                f"parallel_sample: argument '{name}' expected a number {limits}, got {value}"
            )
    for c in conditions:
        size = shape(c, "parallel_sample", "conditions")
        if not size or size[0] != batch:
            raise ValueError(
                f"parallel_sample: argument 'conditions' expected arrays of {batch} rows, "
                f"got shape {size}"
            )
    _check_guidance(guidance)
    system = TriangularPlan(plan, data_std)
    start = x
    if state_dtype is not None:
        start = ops.lincomb([x], (1.0,), out=[empty(x, tuple(x.shape), state_dtype)])[0]
    first = solver_start(
        plan, start, seed=seed, offset=offset, first_element=first_element, noise=noise
    )["x"]
    run = Sweeps(system, start, first, window, float(tolerance), history)
    run.draw(plan, seed, offset, first_element, noise)
    evaluate = _Model(plan, model, x, conditions, guidance)
    result = ParallelResult(x, evaluations=np.zeros(batch, np.int64))
    while (run.first < count).any() and result.sweeps < most:
        result.evaluations += evaluate(run)
        result.residuals.append(run.sweep())
        result.sweeps += 1
        if progress is not None:
            progress(int(run.first.min()), count)
    settled = run.first == count
    if not settled.all():
        run.extrapolate()
    result.samples = ops.lincomb([run.y[count]], (1.0,))[0]
    sums = host_moments(result.samples, result.samples)
    result.converged = settled & np.isfinite(sums[:, 2])
    return result
