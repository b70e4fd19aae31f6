"""Tokens of continuous values drawn by a denoising head, all rows of a batch at once: the plain
chain and its exact speculation.

A chain of a solver with one evaluation and no memory a step moves a token by Gaussians,
x_(k+1) ~ N(A_k x_k + B_k head(x_k, t_k, z), S_k^2), with A, B, S from the solver's plan. A draft
proposes several steps; the head that counts then evaluates all points of the proposed trajectory
in one call. Draft and target start each step from the same x_k and have the same deviation, so
`px.ops.gaussian_accept` turns the draft's step into one of the target's law (reflection coupling)
and keeps it as often as can be. What follows a replaced point is dropped. By induction over the
steps the token has the law of the target's chain, whatever the draft (De Bortoli et al. 2025,
arXiv:2501.05370). Tokens are independent given their conditions z and go on at their own pace.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from .. import guidance as rules
from .. import ops, solvers
from .._arrays import Array, empty
from ..solvers.method import is_noise
from .token_draws import as_array, to_numpy

START = 1 << 60  # offset of the starting noise; those of the steps lie below
RUN = 1 << 32  # offsets that one chain may use


class Head(Protocol):
    """Anything that can be called so."""

    def __call__(self, x: Array, t: Array, z: Array) -> Array:
        """Prediction for tokens of independent conditions and times.

        Args:
            x: (N, D) float32, noisy tokens.
            t: (N,) float32, times as `SolverPlan.timesteps` has them.
            z: (N, C), conditions.

        Returns:
            (N, D) float32, of the plan's prediction_type.
        """


@dataclass(frozen=True)
class SpeculativeDenoising:
    """Exact speculation of the denoising chain.

    head: a cheaper `Head`; None freezes the target's own last prediction for the token instead,
        which costs no draft calls. model: conditions for the draft head, as the decoder's model; it
        is called once per group. None: the target's conditions. steps: denoising steps drafted per
        round, the target adds one itself; None: all that are left.
    """

    head: Head | None = None
    model: Callable[[Array, Array], Any] | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise ValueError(
                f"SpeculativeDenoising: steps expected an integer >= 1 or None, got {self.steps}"
            )
        if self.head is None and self.model is not None:
            raise ValueError(
                "SpeculativeDenoising: argument 'model' expected None where head is None, got "
                f"{type(self.model).__name__}"
            )


@dataclass
class Counts:
    """What sampling took. head_calls, draft_calls: batched calls of the two heads; head_rows: rows
    (token evaluations) in head_calls. tested, accepted: (steps,) int64, per denoising step how many
    drafted tokens the target looked at and how many of these stayed."""

    steps: int
    head_calls: int = 0
    head_rows: int = 0
    draft_calls: int = 0
    tested: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    accepted: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def __post_init__(self) -> None:
        self.tested = np.zeros(self.steps, np.int64)
        self.accepted = np.zeros(self.steps, np.int64)

    @property
    def acceptance(self) -> np.ndarray:
        """(steps,) float64 accepted / tested, NaN where nothing was drafted."""
        with np.errstate(invalid="ignore"):
            return self.accepted / self.tested


@dataclass
class Conditioned:
    """A head with the conditions of N tokens: z (N, C), uncond None or (N, C), the guidance scale
    of the two."""

    function: str  # for errors
    head: Head
    z: Array
    uncond: Array | None = None
    scale: float = 1.0

    def outputs(self, x: Array, t: Array, rows: Array | None = None) -> tuple[Array, ...]:
        """(cond,) or (cond, uncond), each like x (n, D), in one call; rows (n,): of which tokens
        x is, None for all."""
        z = self.z if rows is None else self.z[rows]
        if self.uncond is None:
            return (self._call(x, t, z),)
        u = self.uncond if rows is None else self.uncond[rows]
        both = self._call(*(_stack(pair) for pair in ((x, x), (t, t), (z, u))))
        return both[: len(x)], both[len(x) :]

    def guided(self, x: Array, t: Array, rows: Array) -> Array:
        outputs = self.outputs(x, t, rows)
        return rules.cfg(*outputs, self.scale) if len(outputs) == 2 else outputs[0]

    def _call(self, x: Array, t: Array, z: Array) -> Array:
        out = self.head(x, t, z)
        kind = str(getattr(out, "dtype", type(out).__name__)).removeprefix("torch.")
        if kind != "float32":
            raise TypeError(f"{self.function}: head expected to return float32, got {kind}")
        if tuple(out.shape) != tuple(x.shape):
            raise ValueError(
                f"{self.function}: head expected to return shape {tuple(x.shape)}, got "
                f"{tuple(out.shape)}"
            )
        return out


def condition_pair(
    function: str, z: Any, guidance_scale: float, size: tuple[int, ...]
) -> tuple[Array, Array | None]:
    """(cond, uncond or None without guidance) of a model's answer, each (B, L, C); size: (B, L)."""
    pair = z if isinstance(z, tuple) else (z,)
    if guidance_scale != 1 and len(pair) != 2:
        raise ValueError(
            f"{function}: argument 'model' expected to return (cond, uncond) with guidance_scale "
            f"{guidance_scale:g}, got one array"
        )
    for part in pair:
        if len(part.shape) != 3 or tuple(part.shape[:2]) != tuple(size):
            raise ValueError(
                f"{function}: argument 'model' expected to return ({size[0]}, {size[1]}, C), got "
                f"{tuple(part.shape)}"
            )
    return pair[0], pair[1] if guidance_scale != 1 else None


@dataclass(frozen=True)
class Key:
    """Of the random streams: `run` numbers the chains of a seed, `first` is the index of the first
    row in the rows of a larger batch."""

    seed: int
    run: int
    first: int


def tempered(function: str, plan: solvers.SolverPlan, temperature: float) -> solvers.SolverPlan:
    """The plan with all noise of its steps times `temperature`; the start stays as it is."""
    if not 0 <= temperature < np.inf:
        raise ValueError(
            f"{function}: argument 'temperature' expected a finite number >= 0, got {temperature}"
        )
    if temperature == 1:
        return plan

    def scaled(p: Any) -> Any:
        forms = [
            solvers.LinearForm(
                {n: c * temperature if is_noise(n) else c for n, c in f.terms.items()}
            )
            for f in p.forms
        ]
        return dataclasses.replace(p, forms=forms)

    stages = [dataclasses.replace(s, passes=[scaled(p) for p in s.passes]) for s in plan.stages]
    return dataclasses.replace(plan, stages=stages, before=[scaled(p) for p in plan.before])


def transitions(function: str, plan: solvers.SolverPlan) -> np.ndarray:
    """(steps, 3) float64: x_next = A x + B output + S noise for every step of the plan.

    Raises:
        ValueError: a plan whose steps are of another kind: several evaluations, memory, clipping.
    """
    rows = []
    for k, stage in enumerate(plan.stages):
        p = stage.passes[0] if len(stage.passes) == 1 else None
        fits = p is not None and p.outputs == [stage.result] and p.clamp is None and not p.threshold
        if not fits or plan.before or p is None or {*p.inputs} - {stage.sample, stage.output}:
            raise ValueError(
                f"{function}: argument 'plan' expected steps of one evaluation without memory or "
                f"clipping for speculation, as of ddpm, ddim or euler_ancestral, got {plan.name} "
                f"with another step {k}"
            )
        terms = p.forms[0].terms
        noise = np.sqrt(sum(c**2 for n, c in terms.items() if is_noise(n)))
        rows.append((terms.get(stage.sample, 0.0), terms.get(stage.output, 0.0), float(noise)))
    return np.array(rows)


def denoise(
    target: Conditioned,
    plan: solvers.SolverPlan,
    like: Array,
    key: Key,
    counts: Counts,
    start: Array | None = None,
) -> Array:
    """(N, ...) by the plain chain; `like`: an array of this shape; start: None draws it."""
    guided = target.uncond is not None
    run = solvers.Solver(
        plan,
        guidance=rules.CFG(target.scale) if guided else None,
        seed=key.seed,
        offset=key.run * RUN,
        first_element=key.first * math.prod(like.shape[1:]),
    )
    if start is None:
        start = run.initial_noise(like, offset=START + key.run)
    x = run.start(start)
    for time in run.timesteps:
        t = as_array(np.full(len(x), time, np.float32), x)
        x = run.step(*target.outputs(x, t))
        counts.head_calls += 1
        counts.head_rows += len(x)
    return x


def denoise_speculatively(
    target: Conditioned,
    draft: Conditioned | None,
    most: int | None,
    plan: solvers.SolverPlan,
    table: np.ndarray,
    like: Array,
    key: Key,
    counts: Counts,
) -> Array:
    """(N, D) tokens of the law of `denoise`, at most `most` steps drafted per round; draft None:
    the target's last output of a token, frozen. table: the plan's `transitions`."""
    most = len(table) if most is None else min(most, len(table))
    first = key.first * like.shape[1]
    x = solvers.Solver(plan, seed=key.seed, first_element=first).initial_noise(
        like, offset=START + key.run
    )
    run = _Speculation(target, draft, plan, table, key, counts, x, np.zeros(len(x), np.int64))
    # Every round has an offset for the target's own step and two for each drafted one.
    offset = key.run * RUN
    while (run.at < len(table)).any():
        run.round(most, offset)
        offset += 2 * most + 1
    return x


@dataclass
class _Speculation:
    """x (N, D): exact tokens; at (N,): the step that each is before."""

    target: Conditioned
    draft: Conditioned | None
    plan: solvers.SolverPlan
    table: np.ndarray
    key: Key
    counts: Counts
    x: Array
    at: np.ndarray
    frozen: Array = None

    def __post_init__(self) -> None:
        self.times = np.array(self.plan.timesteps, np.float32)
        self.everyone = np.arange(len(self.at))

    def round(self, most: int, offset: int) -> None:
        x, at, steps = self.x, self.at, len(self.table)
        active = at < steps
        if self.draft is None and self.frozen is None:
            most = 0
        drafted = np.where(active, np.minimum(most, steps - 1 - at), 0)
        width = int(drafted.max())
        path = empty(x, (width + 1, *x.shape))  # from each token's own step on
        q_mean = empty(x, (width, *x.shape))
        path[0] = x
        for j in range(width):
            rows = np.nonzero(drafted > j)[0]
            step = self._transition(at + j, drafted > j)
            values = [path[j], self._drafted_output(path[j], rows, at[rows] + j)]
            self._advance(step, values, [path[j + 1], q_mean[j]], offset + 1 + 2 * j)
        # The target at every point of the trajectory; after the last it makes a step of its own.
        wanted = (np.arange(width + 1)[:, None] <= drafted) & active
        output = self._target_output(path, wanted)
        p_mean = empty(x, path.shape)
        kept = np.zeros_like(at)  # leading drafts that stay
        for j in range(width + 1):
            step = self._transition(at + j, wanted[j])
            self._advance(step, [path[j], output[j]], [p_mean[j]])
            if j == width:
                break
            both = drafted > j
            # Rows without a draft compare N(0, 1) with itself.
            std = np.where(both, step[:, 2], 1.0).astype(np.float32)
            deviation = as_array(std[:, None, None], x)
            means = p_mean[j][:, None], deviation, q_mean[j][:, None], deviation
            replaced, stays = ops.gaussian_accept(
                *means,
                path[j + 1][:, None],
                seed=self.key.seed,
                offset=offset + 2 + 2 * j,
                first_sample=self.key.first,
            )
            path[j + 1] = replaced[:, 0]
            stays = to_numpy(stays)[:, 0]
            tested = both & (kept == j)
            np.add.at(self.counts.tested, at[tested] + j, 1)
            np.add.at(self.counts.accepted, at[tested & stays] + j, 1)
            kept += tested & stays
        self._take(path, p_mean, output, active, drafted, kept, offset)

    def _take(
        self,
        path: Array,
        p_mean: Array,
        output: Array,
        active: np.ndarray,
        drafted: np.ndarray,
        kept: np.ndarray,
        offset: int,
    ) -> None:
        """Moves every token to the replacement behind its last draft that stayed, or, where all
        stayed, by a step of the target's own."""
        x, at = self.x, self.at
        stopped = as_array(kept, x), as_array(self.everyone, x)
        self.frozen = output[stopped]
        own = active & (kept == drafted)
        step = self._transition(at + kept, own)
        step[:, 0], step[:, 1] = own, 0.0  # the mean is known, the noise is not
        mean = p_mean[stopped]
        self._advance(step, [mean, mean], [mean], offset)
        for chosen, values in ((own, mean), (active & ~own, None)):
            rows = np.nonzero(chosen)[0]
            index = as_array(rows, x)
            if values is None:
                x[index] = path[as_array(kept[rows] + 1, x), index]
            else:
                x[index] = values[index]
        at[active] += kept[active] + 1

    def _drafted_output(self, x: Array, rows: np.ndarray, step: np.ndarray) -> Array:
        """(N, D), 0 but in `rows`."""
        output, index = _zeros(x, x.shape), as_array(rows, x)
        if self.draft is None:
            output[index] = self.frozen[index]
        else:
            output[index] = self.draft.guided(x[index], as_array(self.times[step], x), index)
            self.counts.draft_calls += 1
        return output

    def _target_output(self, path: Array, wanted: np.ndarray) -> Array:
        """Like path, 0 where not wanted (points, N): one call."""
        column, row = np.nonzero(wanted)
        points = as_array(column, path), as_array(row, path)
        t = as_array(self.times[self.at[row] + column], path)
        output = _zeros(path, path.shape)
        output[points] = self.target.guided(path[points], t, points[1])
        self.counts.head_calls += 1
        self.counts.head_rows += len(row)
        return output

    def _transition(self, step: np.ndarray, used: np.ndarray) -> np.ndarray:
        """(N, 3) A, B, S of every token's step; 0 where unused."""
        return np.where(used[:, None], self.table[np.minimum(step, len(self.table) - 1)], 0.0)

    def _advance(
        self, step: np.ndarray, inputs: list[Array], out: list[Array], offset: int | None = None
    ) -> None:
        """out[0] = A x + B output + S noise with numbers of each row, out[1] the same without
        noise; without an offset no noise is drawn."""
        coefficients = np.repeat(step[:, None, :2], len(out), 1)
        noise = np.zeros((len(step), len(out)))
        noise[:, 0] = 0.0 if offset is None else step[:, 2]
        ops.lincomb(
            inputs,
            as_array(coefficients, self.x),
            out=out,
            noise_scale=None if offset is None else as_array(noise, self.x),
            seed=self.key.seed,
            offset=offset or 0,
            first_element=self.key.first * self.x.shape[1],
        )


def _zeros(like: Array, size: tuple[int, ...]) -> Array:
    out = empty(like, size)
    out[...] = 0
    return out


def _stack(parts: tuple[Array, Array]) -> Array:
    a, b = parts
    out = empty(a, (len(a) + len(b), *a.shape[1:]))
    out[: len(a)], out[len(a) :] = a, b
    return out
