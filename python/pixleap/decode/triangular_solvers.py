"""Solvers of triangular systems: sequential, Jacobi, Gauss-Seidel-Jacobi as published (Liu and Qin
2025, arXiv:2505.12849), and `Frontier`, pixleap's own: a window beyond the exact prefix of every
sample, which advances by as many tokens as a sweep left unchanged."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Protocol, TypeVar

import numpy as np

from .._arrays import Array
from .token_draws import to_numpy
from .triangular import TriangularResult, TriangularSystem, check_option

Report = Callable[[int], None]
S = TypeVar("S", bound=Any)


@dataclass
class _Run:
    """One solution in progress."""

    system: TriangularSystem
    x: Array
    report: Report | None
    tokens: list[int] = field(default_factory=list)
    residuals: list[float] = field(default_factory=list)
    start: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self.batch = int(self.x.shape[0])
        self.evaluations = np.zeros(self.batch, np.int64)
        self.everyone = np.arange(self.batch)

    def sweep(self, samples: np.ndarray, starts: Any, ends: Any) -> np.ndarray:
        """How far each token moved, (n, widest window), 0 outside the windows."""
        if isinstance(starts, int):
            starts, ends = np.full(len(samples), starts), np.full(len(samples), ends)
        moved = self.system.evaluate(samples, starts, ends)
        counts = ends - starts
        self.tokens.append(len(moved))
        self.evaluations[samples] += counts
        self.residuals.append(float(moved.max(initial=0.0)))
        if len(samples) == 1:
            return moved[None]
        table = np.zeros((len(samples), int(counts.max(initial=0))), np.float32)
        table[np.arange(table.shape[1]) < counts[:, None]] = moved
        return table

    def done(self, frontier: int) -> None:
        if self.report is not None:
            self.report(frontier)

    def result(self, converged: np.ndarray) -> TriangularResult:
        return TriangularResult(
            self.x, self.tokens, self.evaluations, self.residuals, converged,
            time.perf_counter() - self.start,
        )  # fmt: skip


class Solver(Protocol):
    """How to solve a triangular system."""

    def of_block(self, index: int, blocks: int) -> Solver:
        """Itself for block `index` of a stack of systems, with one number instead of a list."""

    def solve(
        self, system: TriangularSystem, noise: Any, report: Report | None = None
    ) -> TriangularResult:
        """See `solve_triangular`."""


def _pick(solver: str, name: str, value: Any, index: int, blocks: int) -> Any:
    """Entry `index` of a list for every block, or the value itself."""
    if not isinstance(value, (list, tuple)):
        return value
    if len(value) != blocks:
        raise ValueError(
            f"{solver}: argument '{name}' expected one entry for each of the {blocks} blocks, got "
            f"{len(value)}"
        )
    return value[index]


def pick(solver: S, names: Sequence[str], index: int, blocks: int) -> S:
    """The solver of block `index`: of each option named, its entry."""
    where = type(solver).__name__
    picked = {name: _pick(where, name, getattr(solver, name), index, blocks) for name in names}
    return replace(solver, **picked)


def _entries(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else (value,)


def bound_of(tol: float, margin: float, x: Array) -> float:
    """The move up to which a token of x counts as converged; see `Frontier`."""
    return max(tol / margin, 8 * _epsilon(x)) if tol else 0.0


def _epsilon(x: Array) -> float:
    """Of its dtype; 0 for integers."""
    kind = np.dtype(str(x.dtype).removeprefix("torch."))
    return float(np.finfo(kind).eps) if kind.kind == "f" else 0.0


def _is_count(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and bool(value >= 1)


def check_window(solver: str, window: Any) -> None:
    for w in _entries(window):
        good = w == "auto" or _is_count(w)
        check_option(solver, "window", good, "an integer >= 1 or 'auto'", window)


def check_margin(solver: str, margin: float) -> None:
    check_option(solver, "margin", margin >= 1, "a number >= 1", margin)


def check_tol(solver: str, tol: Any) -> None:
    check_option(solver, "tol", isinstance(tol, (int, float)) and tol >= 0, "a number >= 0", tol)


@dataclass(frozen=True)
class Jacobi:
    """All tokens in every sweep, until none moves by more than `tol`.

    max_sweeps: stop there at the latest; None for no limit but the length, which is exact.
    init: the first guess; see `Frontier`.
    per_sample: a sample that has converged leaves; otherwise all stay until the last one has.
    """

    tol: float = 1e-4
    max_sweeps: int | None = None
    init: Any = "z"
    per_sample: bool = True

    def __post_init__(self) -> None:
        check_tol("Jacobi", self.tol)
        sweeps = self.max_sweeps
        check_option(
            "Jacobi", "max_sweeps", sweeps is None or _is_count(sweeps), "None or >= 1", sweeps
        )

    def of_block(self, index: int, blocks: int) -> Jacobi:
        return pick(self, ("init",), index, blocks)

    def solve(
        self, system: TriangularSystem, noise: Any, report: Report | None = None
    ) -> TriangularResult:
        run = _Run(system, system.begin(noise, self.init), report)
        tokens = system.length - system.first
        moving = run.everyone if tokens > 0 else run.everyone[:0]
        for _ in range(tokens if self.max_sweeps is None else self.max_sweeps):
            if not len(moving):
                break
            moved = run.sweep(moving, system.first, system.length).max(axis=1)
            keep = ~(moved <= self.tol)
            if not (self.per_sample and system.per_sample):
                keep[:] = keep.any()
            moving = moving[keep]
        run.done(system.length)
        exact = self.max_sweeps is None or self.max_sweeps >= tokens
        return run.result(exact | ~np.isin(run.everyone, moving))


@dataclass(frozen=True)
class GSJacobi:
    """The published scheme, to compare with: modules one after the other, Jacobi sweeps inside.

    It is not exact: it ends a module after `max_sweeps`, and clamps. Every sweep evaluates the
    whole module of every sample. (The official code needs a length divisible by `modules`; here the
    first ones are longer.)

    Args (each a number, or a list with one for every block of a flow in sampling order):
        modules: segments of equal length; 0 for the sequential loop.
        max_sweeps: of a module.
        clamp: values are kept within +-clamp after each sweep; None for no limit.
        init: "z" or "zero"; see `Frontier`.
        bound: a module ends when the norm of all moves of the batch, over batch times channels, is
            no more.
    """

    modules: Any = 1
    max_sweeps: Any = 30
    clamp: float | None = 3.0
    init: Any = "z"
    bound: float = 1e-6

    def __post_init__(self) -> None:
        for m in _entries(self.modules):
            check_option(
                "GSJacobi", "modules", m == 0 or _is_count(m), "integers >= 0", self.modules
            )
        for m in _entries(self.max_sweeps):
            check_option("GSJacobi", "max_sweeps", _is_count(m), "integers >= 1", self.max_sweeps)

    def of_block(self, index: int, blocks: int) -> GSJacobi:
        return pick(self, ("modules", "max_sweeps", "init"), index, blocks)

    def solve(
        self, system: TriangularSystem, noise: Any, report: Report | None = None
    ) -> TriangularResult:
        if self.modules == 0:
            return Sequential().solve(system, noise, report)
        run = _Run(system, system.begin(noise, self.init), report)
        x, tokens = run.x, system.length - system.first
        channels = math.prod(x.shape[2:])
        converged = np.ones(run.batch, bool)
        edges = [system.first + -(-tokens * i // self.modules) for i in range(self.modules + 1)]
        for begin, end in pairwise(edges):
            if begin == end:
                continue
            part = x[:, begin:end]
            for _ in range(self.max_sweeps):
                before = part + 0
                run.sweep(run.everyone, begin, end)
                if self.clamp is not None:
                    part[...] = part.clip(-self.clamp, self.clamp)
                change = to_numpy(part - before).astype(np.float64)
                settled = float(np.linalg.norm(change)) / max(run.batch * channels, 1) <= self.bound
                if settled:
                    break
            converged &= settled
            run.done(end)
        return run.result(converged)


@dataclass(frozen=True)
class Frontier:
    """Sweep a window beyond the exact prefix of every sample.

    Args:
        tol: the error to aim at: a guess counts as converged when it moved by no more than
            tol / margin, or 8 rounding units of 1 where that is more. 0 asks for a fixed point.
        margin: what later tokens and blocks may make of an error that is left in a token. Measured
            on trained flows: 2 to 100 for most samples, up to 1000 for a few. Convergence is fast,
            so ten times the margin costs about 8 % more sweeps.
        window: tokens per sweep and sample, a list of them with one for every block of a flow, or
            "auto": follows counts, not clocks, so the same sweeps and numbers on every machine.
        init: the first guess: "z" (the noise itself), "zero", a tensor like x, or anything with a
            method `guess(noise)`, such as a calibrated plan has (`FlowDecoder.calibrate`); or a
            list, one for every block.
        per_sample: every sample advances by itself and leaves when it is done; otherwise all
            advance by the least advance of any.
        draft_dtype: "bfloat16" or "int8" solves with weights of that precision first, to
            `draft_tol`, and takes the solution as the first guess.
        overhead: for "auto": cost of a sweep besides its rows (tokens times samples, twice with
            guidance), in rows. None: what the system says, or 30.
    """

    tol: float = 1e-4
    window: Any = "auto"
    init: Any = "z"
    per_sample: bool = True
    draft_dtype: str | None = None
    draft_tol: float = 1e-2
    overhead: float | None = None
    margin: float = 32.0

    def __post_init__(self) -> None:
        check_window("Frontier", self.window)
        check_tol("Frontier", self.tol)
        check_tol("Frontier", self.draft_tol)
        good = self.overhead is None or self.overhead > 0
        check_option("Frontier", "overhead", good, "None or a number > 0", self.overhead)
        check_margin("Frontier", self.margin)

    def of_block(self, index: int, blocks: int) -> Frontier:
        return pick(self, ("window", "init"), index, blocks)

    def solve(
        self, system: TriangularSystem, noise: Any, report: Report | None = None
    ) -> TriangularResult:
        if self.draft_dtype is not None:
            draft: Any = getattr(system, "draft", None)
            check_option("Frontier", "draft_dtype", draft is not None, "None for this system",
                   self.draft_dtype)  # fmt: skip
            rough = replace(self, tol=self.draft_tol, draft_dtype=None)
            first = rough.solve(draft(self.draft_dtype), noise)
            result = replace(self, init=first.x, draft_dtype=None).solve(system, noise, report)
            result.draft = first
            return result
        run = _Run(system, system.begin(noise, self.init), report)
        window = _Window(self, system)
        bound = bound_of(self.tol, self.margin, run.x)
        frontier = np.full(run.batch, system.first)  # the first token that is not exact
        active = run.everyone if system.first < system.length else run.everyone[:0]
        together = not (self.per_sample and system.per_sample)
        while len(active):
            starts = frontier[active]
            ends = np.minimum(starts + window.next(len(active)), system.length)
            moved = run.sweep(active, starts, ends)
            settled = np.logical_and.accumulate(moved <= bound, axis=1).sum(axis=1)
            if together:
                settled[:] = settled.min()
            advanced = np.minimum(settled + 1, ends - starts)
            frontier[active] += advanced
            window.learn(len(active), ends - starts, advanced)
            active = active[frontier[active] < system.length]
            run.done(int(frontier.min()))
        return run.result(np.ones(run.batch, bool))


def Sequential() -> Frontier:
    """One token at a time, which is exact."""
    return Frontier(tol=0.0, window=1)


class _Window:
    """The next window of a `Frontier`, the same for every sample in a sweep."""

    def __init__(self, solver: Frontier, system: TriangularSystem) -> None:
        own = getattr(system, "overhead", 30.0)
        self.overhead, self.rows = solver.overhead or own, system.rows
        self.fixed = None if solver.window == "auto" else int(solver.window)
        self.budget = 1.5 * self.overhead  # rows of a sweep
        self.spent = self.sequential = 0.0  # cost so far, and what one token at a time would have

    def next(self, active: int) -> int:
        """As many tokens as fill the budget of rows, at least one; one token while the block has
        cost 2.5 times what the sequential loop would have."""
        if self.fixed is not None:
            return self.fixed
        if self.spent > 2.5 * self.sequential > 0:
            return 1
        return max(1, round(self.budget / (self.rows * active)))

    def learn(self, active: int, windows: np.ndarray, advanced: np.ndarray) -> None:
        """Doubles the budget when a whole window converged and a sweep is not yet all rows."""
        if self.fixed is not None:
            return
        rows = self.rows * int(windows.sum())
        self.spent += self.overhead + rows
        self.sequential += (self.overhead + self.rows * active) * float(advanced.mean())
        if (advanced >= windows).all() and rows < 2 * self.overhead:
            self.budget *= 2


def solve_triangular(
    system: TriangularSystem,
    noise: Any,
    solver: Solver | None = None,
    progress: Report | None = None,
) -> TriangularResult:
    """Solves x_t = f_t(x_<t; noise_t) for all tokens.

    Args:
        system: see `TriangularSystem`; `DenseSystem` makes one from a function.
        noise: what the system draws from, such as (B, T, c) for a flow.
        solver: `Frontier()` by default; `Sequential()`, `Jacobi()`, `GSJacobi()`.
        progress: called with the number of tokens that are final in every sample.

    Returns:
        `TriangularResult`.

    Raises:
        ValueError: a noise that does not fit; options outside their range.
    """
    return (solver or Frontier()).of_block(0, 1).solve(system, noise, progress)
