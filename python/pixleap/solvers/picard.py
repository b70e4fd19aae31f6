"""A plan as a triangular system, and Picard sweeps over a window of it; see `parallel`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import ops
from .._arrays import Array, empty
from .linear_form import LinearForm
from .method import is_noise
from .plan import SolverPlan
from .reductions import elements, host_moments, per_sample
from .schedule import NoiseSchedule, Point
from .stateless import MAX_OUTPUTS, Noise

MAX_TERMS = 16 - MAX_OUTPUTS  # of a `lincomb` that also reads its outputs
RIDGE = 1e-8  # of Anderson's normal equations, times their trace


class TriangularPlan:
    """A plan's evaluations as blocks of rows: inputs k + 1 of the block's stages k, as forms of the
    inputs up to its first stage ("x i"; "s 0" is the start ahead of any noise), of held values
    ("h i") and of noise sums ("n k").

    Blocks lie at multiples of MAX_OUTPUTS whatever the window, so that a row has the same bits in
    every sweep. held value = output + shift * input: see `_shift`.
    """

    def __init__(self, plan: SolverPlan, data_std: float) -> None:
        self.points = [*(stage.point for stage in plan.stages), plan.points[-1]]
        self.shifts = [_shift(plan.prediction_type, p, data_std) for p in self.points[:-1]]
        self.noise: list[dict[str, float]] = []
        self.blocks: list[tuple[list[str], list[list[float]]]] = []
        rows = self._rows(plan)
        for first in range(0, len(rows), MAX_OUTPUTS):
            known: dict[str, LinearForm] = {}
            for k in range(first, min(first + MAX_OUTPUTS, len(rows))):
                known[f"x {k + 1}"] = rows[k].substitute(known)
            forms = list(known.values())
            terms = {n for form in forms for n, c in form.terms.items() if c}
            names = sorted(terms, key=lambda n: ("sxhn".index(n[0]), int(n[2:])))
            table = [[form.terms.get(n, 0.0) for n in names] for form in forms]
            if not np.isfinite(table).all():
                raise ValueError(f"parallel_sample: the rows of {plan.name} are not finite here")
            self.blocks.append((names, table))

    def _rows(self, plan: SolverPlan) -> list[LinearForm]:
        """Input k + 1 of the model as a form of inputs, held values and noise up to k."""
        known = {plan.start: LinearForm.of("s 0")}
        rows: list[LinearForm] = []
        for k, stage in enumerate(plan.stages):
            x = known[stage.sample] = LinearForm.of(f"x {k}")
            known[stage.output] = LinearForm.of(f"h {k}") - x * self.shifts[k]
            for p in stage.passes:
                if p.clamp is not None or p.threshold is not None:
                    raise ValueError(
                        "parallel_sample: argument 'plan' expected one without clip_sample and "
                        "threshold, which are not linear"
                    )
                forms = [form.substitute(known) for form in p.forms]
                known.update(zip(p.outputs, forms, strict=True))
            row = known[stage.result]
            if any(n[:2] not in ("s ", "x ", "h ") and not is_noise(n) for n in row.terms):
                raise ValueError(
                    "parallel_sample: argument 'plan' expected one whose steps depend on samples, "
                    f"outputs and noise alone, got {plan.name} with {', '.join(row.terms)}"
                )
            self.noise.append({n: c for n, c in row.terms.items() if is_noise(n) and c})
            terms = {n: c for n, c in row.terms.items() if not is_noise(n)}
            rows.append(LinearForm({**terms, **({f"n {k}": 1.0} if self.noise[k] else {})}))
        return rows

    def scales(self) -> np.ndarray:
        """Unit of the tolerance at every input: standard deviation of the noise that the reverse
        process (DDPM) adds in the step from it; where that is 0, of the step before."""
        scales = np.zeros(len(self.points))
        for j, a in enumerate(self.points):
            later = (p for p in self.points[j + 1 :] if p.ratio < a.ratio)
            b = next(later, None)
            if b is not None and b.sigma:
                spread = a.sigma**2 - (a.alpha / b.alpha * b.sigma) ** 2
                scales[j] = b.sigma / a.sigma * math.sqrt(max(spread, 0.0))
            elif j:
                scales[j] = scales[j - 1]
        return scales


def _shift(prediction_type: str, point: Point, data_std: float) -> float:
    """c of the held value output + c * input, which is what the output adds to that of the exact
    model of normal data with this standard deviation. For VP schedules and data_std 1 that is the
    velocity alpha noise - sigma x0, up to a factor. EDM's network output is such a value already.
    """
    if prediction_type.startswith("edm"):
        return 0.0
    p, q = NoiseSchedule.ve().prediction(prediction_type, point)
    alpha, sigma, variance = point.alpha, point.sigma, data_std**2
    return -(p * alpha * variance + q * sigma) / (alpha * alpha * variance + sigma * sigma)


class Sweeps:
    """State of a run. Arrays are (evaluations + 1, B, ...), `flat` ones without the first two axes
    apart: x what the model was or will be given, y what the rows made of it, h the held values.

    first, last: (B,) each sample's window; inputs up to `first` are final.
    """

    def __init__(
        self,
        system: TriangularPlan,
        start: Array,
        x: Array,
        window: int,
        tolerance: float,
        history: int,
    ) -> None:
        self.system, self.window, self.tolerance = system, window, tolerance
        self.count, size = len(system.shifts), tuple(x.shape)
        self.batch, self.history, self.start = size[0], history, [start]

        def zeros() -> Array:
            a = empty(x, (self.count + 1, *size))
            a[...] = 0
            return a

        self.x, self.y, self.h, self.f = zeros(), zeros(), zeros(), zeros()
        self.x[0] = x
        self.y[0] = x
        self.before = [zeros(), zeros()] if history else []  # f and y of the sweep before
        self.changes: list[tuple[Array, Array]] = []  # of f and y, latest first
        self.spare = [(zeros(), zeros()) for _ in range(history)]
        self.seen = np.zeros((self.count + 1, self.batch), np.int64)  # sweeps in the window
        self.noise: dict[int, Array] = {}
        self.scales = system.scales()
        self.first = np.zeros(self.batch, np.int64)
        # Nothing is known of the first sweep's guesses: it evaluates the start alone.
        self.last = np.minimum(1, self.count) + self.first

    def flat(self, a: Array, start: int, end: int) -> Array:
        """Inputs start to end - 1 as (rows, ...)."""
        return a[start:end].reshape((end - start) * self.batch, *a.shape[2:])

    def active(self) -> tuple[Any, Any]:
        """Indices (evaluation, sample) of all windows, by evaluation; (slice, all) where the
        windows are the same."""
        low, high = int(self.first.min()), int(self.last.max())
        if (self.first == low).all() and (self.last == high).all():
            return slice(low, high), slice(None)
        k = np.arange(low, high)[:, None]
        rows, samples = np.nonzero((k >= self.first) & (k < self.last))
        return (rows + low).tolist(), samples.tolist()

    def carry(self) -> None:
        """Evaluations ahead of the window hold what its last one holds."""
        for end in np.unique(self.last[self.first < self.count]).tolist():
            until = min(end + self.window, self.count)
            if until > end:
                chosen = np.flatnonzero(self.last == end).tolist()
                every = len(chosen) == self.batch
                if every:
                    self.h[end:until] = self.h[end - 1]
                else:
                    for k in range(end, until):
                        self.h[k, chosen] = self.h[end - 1, chosen]

    def rows(self) -> None:
        """y of all windows and of the evaluations that may join them, from x, h and noise."""
        start = int(self.first.min())
        end = min(int(self.last.max()) + self.window, self.count)
        arrays: dict[str, Any] = {"s": self.start, "x": self.y, "h": self.h, "n": self.noise}
        for block in range(start // MAX_OUTPUTS, -(-end // MAX_OUTPUTS)):
            names, table = self.system.blocks[block]
            low = block * MAX_OUTPUTS
            chosen = range(max(start, low), min(end, low + len(table)))
            out = [self.y[k + 1] for k in chosen]
            inputs = [arrays[n[0]][int(n[2:])] for n in names]
            for at in range(0, len(names), MAX_TERMS):
                own = [table[k - low][at : at + MAX_TERMS] for k in chosen]
                kept = out if at else []
                identity = np.eye(len(out))[:, : len(kept)].tolist()
                matrix = [c for one, row in zip(identity, own, strict=True) for c in (*one, *row)]
                ops.lincomb([*kept, *inputs[at : at + MAX_TERMS]], matrix, out=out)

    def changed(self) -> np.ndarray:
        """(inputs, B) change of every evaluated input in units of the tolerance; f = y - x."""
        start, end = int(self.first.min()), int(self.last.max())
        change = np.zeros((self.count + 1, self.batch))
        f = self.flat(self.f, start, end)
        y, x = self.flat(self.y, start, end), self.flat(self.x, start, end)
        ops.lincomb([y, x], (1.0, -1.0), out=[f])
        squares = host_moments(f, f)[:, 2].reshape(-1, self.batch) / elements(f)
        with np.errstate(divide="ignore", invalid="ignore"):
            change[start:end] = np.sqrt(squares) / self.scales[start:end, None]
        change[np.isnan(change) & (self.scales[:, None] == 0)] = 0  # no change, no noise
        inner = np.arange(self.count + 1)[:, None]
        change[(inner <= self.first) | (inner >= self.last)] = 0
        return change

    def mend(self) -> None:
        """Guesses ahead that overflowed the model hold what the exact input holds instead: a row
        reads all of its block, and 0 times infinity is none."""
        start, end = int(self.first.min()), int(self.last.max())
        h = self.flat(self.h, start, end)
        wrong = ~np.isfinite(host_moments(h, h)[:, 2]).reshape(-1, self.batch)
        for k, b in zip(*(i.tolist() for i in np.nonzero(wrong)), strict=True):
            if k + start > self.first[b]:
                self.h[k + start, b] = self.h[int(self.first[b]), b]

    def advance(self, change: np.ndarray) -> np.ndarray:
        """New (B,) `first`: the first input of the window that changed by more than its tolerance.
        Its own new value counts, since all before it are settled."""
        inner = np.arange(self.count + 1)[:, None]
        open_ = ~(change <= self.tolerance) & (inner > self.first) & (inner < self.last)
        return np.where(open_.any(axis=0), open_.argmax(axis=0), self.last)

    def accelerate(self, first: np.ndarray) -> None:
        """Triangular Anderson acceleration: x = y - sum_i weight_i * change i of y.

        An input's weights are least squares of f over the open inputs up to itself, so that they
        never look at later ones. The first open input keeps its plain y: with exact inputs before
        it, that is exact, and the run ends within as many sweeps as without.
        """
        start, end = int(self.first.min()), int(self.last.max())
        inner = np.arange(start, end)[:, None]
        evaluated = (inner > self.first) & (inner < self.last)
        self.seen[start:end] = np.where(evaluated, self.seen[start:end] + 1, 0)
        views = [self.flat(a, start, end) for a in (self.f, self.y, *self.before)]
        df, dy = self.spare.pop() if self.spare else self.changes.pop()
        for now, then, difference in ((0, 2, df), (1, 3, dy)):
            out = self.flat(difference, start, end)
            ops.lincomb([views[now], views[then]], (1.0, -1.0), out=[out])
        self._clear_overflow(self.flat(df, start, end), self.flat(dy, start, end))
        self.changes.insert(0, (df, dy))
        changes = [self.flat(d, start, end) for d, _ in self.changes]
        n = len(changes)
        rows = end - start
        gram, right = np.zeros((rows, self.batch, n, n)), np.zeros((rows, self.batch, n))
        for i, d in enumerate(changes):
            m = host_moments(d, views[0]).reshape(rows, self.batch, 6)
            gram[..., i, i], right[..., i] = m[..., 2], m[..., 4]
            for j in range(i):
                m = host_moments(d, changes[j]).reshape(rows, self.batch, 6)
                gram[..., i, j] = gram[..., j, i] = m[..., 4]
        known = self.seen[start:end, :, None] > np.arange(1, n + 1)
        gram = np.where(known[..., None, :] & known[..., :, None], gram, 0)
        right = np.where(known, right, 0)
        gram, right = gram.cumsum(axis=0), right.cumsum(axis=0)
        ridge = RIDGE * np.trace(gram, axis1=2, axis2=3)[..., None, None] + 1e-300
        weights = np.zeros_like(right)
        finite = np.isfinite(ridge[..., 0, 0]) & np.isfinite(right).all(axis=-1)
        use = finite & evaluated & (inner > first)
        system = gram[use] + ridge[use] * np.eye(n)
        weights[use] = np.linalg.solve(system, right[use][..., None])[..., 0]
        weights *= known & np.isfinite(weights).all(axis=-1)[..., None]
        table = np.concatenate([np.ones((rows, self.batch, 1)), -weights], axis=-1)
        ops.lincomb(
            [views[1], *(self.flat(d, start, end) for _, d in self.changes)],
            per_sample(table.reshape(rows * self.batch, 1, n + 1), self.y),
            out=[self.flat(self.x, start, end)],
        )
        for kept, now in zip(self.before, (self.f, self.y), strict=True):
            kept[start:end] = now[start:end]

    @staticmethod
    def _clear_overflow(df: Array, dy: Array) -> None:
        """Changes that are not finite count as none: a weight of 0 does not silence them."""
        sums = host_moments(df, dy)
        for row in np.flatnonzero(~np.isfinite(sums[:, 2] + sums[:, 3])).tolist():
            df[row] = 0
            dy[row] = 0

    def sweep(self) -> float:
        """All that follows a call of the model; returns the largest change, see `changed`."""
        self.mend()
        self.carry()
        self.rows()
        change = self.changed()
        first = self.advance(change)
        start, end = int(self.first.min()), int(self.last.max())
        until = min(end + self.window, self.count)
        if self.history:
            self.accelerate(first)
            start = end
        self.x[start : until + 1] = self.y[start : until + 1]
        self.first, self.last = first, np.minimum(first + self.window, self.count)
        finite = change[np.isfinite(change)]
        return float(finite.max(initial=0.0))

    def extrapolate(self) -> None:
        """The end of the trajectory from what is known, for a run that is cut short."""
        self.window = self.count
        self.carry()
        self.rows()

    def draw(
        self, plan: SolverPlan, seed: int, offset: int, first_element: int, noise: Noise | None
    ) -> None:
        """The noise of every evaluation, the same as `Solver` adds."""
        names = plan.noises
        for k, terms in enumerate(self.system.noise):
            for name, scale in terms.items():
                known = self.noise.get(k)
                out = [empty(self.y, tuple(self.y.shape[1:])) if known is None else known]
                kept = [self.y[0]] if known is None else [known]
                weight = 0.0 if known is None else 1.0
                if noise is None:
                    ops.lincomb(
                        kept, (weight,), out=out, noise_scale=(scale,), seed=seed,
                        offset=offset + names.index(name), first_element=first_element,
                    )  # fmt: skip
                else:
                    ops.lincomb([*kept, noise(name)], (weight, scale), out=out)
                self.noise[k] = out[0]
