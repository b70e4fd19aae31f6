"""Triangular systems: x_t = f_t(x_<t; noise_t), t = first .. length - 1.

Normalising flows, autoregressive token models with fixed noise and samplers of differential
equations are such systems. A sweep evaluates a window of tokens at once, each from the present
values of those before it. Token t is exact when its inputs are, so a sweep makes at least the first
token of its window exact, and the fixed point is unique: it is the sequential result. Solvers are
in `triangular_solvers`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from .._arrays import Array
from .token_draws import to_numpy


class TriangularSystem(Protocol):
    """What a solver needs to know.

    Attributes:
        length: tokens of a sample.
        first: the first token that is not given by the noise or a prompt.
        rows: rows of work per token and sample: 2 with guidance, else 1.
        per_sample: whether `evaluate` takes samples at different tokens.
    """

    length: int
    first: int
    rows: int
    per_sample: bool

    def begin(self, noise: Any, init: Any) -> Array:
        """Starts from this noise; returns x (B, length, ...), which holds the given tokens and the
        first guess `init` of the others, and which `evaluate` writes."""

    def evaluate(self, samples: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Replaces tokens starts[i] .. ends[i] - 1 of x[samples[i]], all (n,) int64, by f of the
        tokens before them, as they were before the call. Tokens before starts[i] are final, and
        earlier calls have evaluated them all: what they left in caches holds.

        Returns float32 (sum(ends - starts),): by how much each token moved, sample after sample;
        infinite where it or its last value is not finite.
        """


@dataclass
class TriangularResult:
    """x (B, length, ...); tokens: evaluated in each sweep, of all samples; evaluations (B,) int64:
    tokens evaluated of each sample; residuals: the largest move of each sweep; converged (B,) bool:
    whether every token follows from inputs that moved no more than the tolerance in the last sweep;
    draft: the same of the solution in low precision that came first; finite: whether x is, where
    the solver has looked."""

    x: Array
    tokens: list[int]
    evaluations: np.ndarray
    residuals: list[float]
    converged: np.ndarray
    seconds: float
    draft: TriangularResult | None = None
    finite: bool | None = None

    @property
    def sweeps(self) -> int:
        """Calls of the system."""
        return len(self.tokens)


class DenseSystem:
    """A system from a function that computes all tokens each time, for whom that is cheap.

    Args:
        f: (x (n, T, ...), noise (n, T, ...)) -> (n, T, ...), where token t of the result depends on
            x[:, :t] and the noise only; the first `first` tokens are ignored.
        first: leading tokens that the noise gives as they are.
    """

    rows, per_sample = 1, True

    def __init__(self, f: Callable[[Any, Any], Any], first: int = 0) -> None:
        self.f, self.first, self.length = f, first, 0

    def begin(self, noise: Any, init: Any) -> Array:
        self.noise, self.length = noise, int(noise.shape[1])
        self.x = first_guess(noise, init, self.first)
        return self.x

    def evaluate(self, samples: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        new = self.f(self.x[samples], self.noise[samples])
        before, after = to_numpy(self.x[samples]), to_numpy(new)
        moved = []
        for i, (b, s, e) in enumerate(zip(samples, starts, ends, strict=True)):
            moved.append(distance(after[i, s:e], before[i, s:e]))
            self.x[b, s:e] = new[i, s:e]
        return np.concatenate(moved) if moved else np.zeros(0, np.float32)


def check_option(where: str, name: str, good: bool, expected: str, got: Any) -> None:
    """Raises ValueError unless good."""
    if not good:
        raise ValueError(f"{where}: argument '{name}' expected {expected}, got {got!r}")


def distance(new: np.ndarray, old: np.ndarray) -> np.ndarray:
    """(n, ...) -> (n,) float32: the largest difference of a token, infinite where not finite."""
    n = len(new)
    with np.errstate(invalid="ignore", over="ignore"):
        change = np.abs(new.astype(np.float64) - old).reshape(n, -1).max(axis=1, initial=0.0)
    return np.where(np.isfinite(change), change, np.inf).astype(np.float32)


def first_guess(noise: Any, init: Any, first: int) -> Any:
    """A new array like noise (B, T, ...): its first tokens, and the guess of the others.

    Raises:
        ValueError: a guess of another shape, an unknown name.
    """
    x = noise + 0
    if isinstance(init, str):
        known = ("z", "zero")
        check_option("solve_triangular", "init", init in known, f"one of {known} or a tensor", init)
        if init == "zero":
            x[:, first:] = 0
        return x
    guess = init.guess(noise) if hasattr(init, "guess") else init
    shapes = tuple(guess.shape), tuple(noise.shape)
    check_option(
        "solve_triangular", "init", shapes[0] == shapes[1], f"shape {shapes[1]}", shapes[0]
    )
    x[:, first:] = guess[:, first:]
    return x
