"""Empirical model statistics: what DPM-Solver-v3 knows about a model."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np

from .method import conversion
from .schedule import PREDICTION_TYPES, NoiseSchedule, choose

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(4)
_FRACTIONS, _SHARES = (_NODES + 1) / 2, _WEIGHTS / 2


@dataclass
class EmpiricalStatistics:
    """Tensors l, s, b of DPM-Solver-v3 (Zheng et al. 2023, arXiv 2310.13268, section 3.1.1).

    With N = sigma noise(x) - l x the probability flow is d(x / alpha)/dlambda = -l x / alpha - f,
    f = N / alpha. l makes N depend on x as little as can be; s and b, f' on f: f' = s f + b.

    Args:
        lambdas: (n,) rising, log(alpha / sigma); linear in between.
        l, s, b: (n, ...) one value per level and element.
    """

    lambdas: np.ndarray
    l: np.ndarray  # noqa: E741 - the paper's name
    s: np.ndarray
    b: np.ndarray

    def __post_init__(self) -> None:
        self.lambdas, self.l, self.s, self.b = (
            np.asarray(v, np.float64) for v in (self.lambdas, self.l, self.s, self.b)
        )
        n = len(self.lambdas)
        shapes = {v.shape for v in (self.l, self.s, self.b)}
        if n < 2 or not (np.diff(self.lambdas) > 0).all() or len(shapes) > 1 or len(self.l) != n:
            raise ValueError(
                "EmpiricalStatistics: expected at least 2 rising lambdas and l, s, b of one shape "
                f"({n}, ...), got {sorted(shapes)}"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return self.l.shape[1:]

    @classmethod
    def constant(
        cls,
        lambdas: Sequence[float],
        shape: Sequence[int] = (1,),
        *,
        l: float,  # noqa: E741
        s: float,
        b: float,
    ) -> EmpiricalStatistics:
        """The same everywhere: l, s, b = 1, 0, 0 is DPM-Solver++, 0, -1, 0 DPM-Solver."""
        size = (len(lambdas), *shape)
        return cls(np.asarray(lambdas), np.full(size, l), np.full(size, s), np.full(size, b))

    def save(self, path: str | PathLike[str]) -> None:
        """An .npz with lambdas, l, s, b."""
        with open(path, "wb") as file:
            np.savez(file, lambdas=self.lambdas, l=self.l, s=self.s, b=self.b)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> EmpiricalStatistics:
        """What `save` wrote."""
        with np.load(path) as f:
            missing = [k for k in ("lambdas", "l", "s", "b") if k not in f]
            if missing:
                raise ValueError(f"EmpiricalStatistics.load: {path} lacks {', '.join(missing)}")
            return cls(f["lambdas"], f["l"], f["s"], f["b"])

    @classmethod
    def estimate(
        cls,
        model: Callable[[Any, float], Any],
        schedule: NoiseSchedule,
        data: np.ndarray,
        lambdas: Sequence[float],
        *,
        prediction_type: str = "epsilon",
        seed: int = 0,
        jvp_step: float = 1e-3,
        time_step: float = 1e-2,
    ) -> EmpiricalStatistics:
        """Means over noised data.

        l is the diagonal of sigma d noise / dx by random signs v, v * (J v); f' the derivative of f
        along the flow. Both by central differences: five model evaluations per level and batch.

        Args:
            model: (x, time) -> output, NumPy arrays.
            data: (n, ...) samples; the official statistics use 1,024 to 4,096.
            lambdas: rising levels, the official ones 120 to 250 equidistant intervals.
            jvp_step, time_step: of the differences, in x (per element) and in lambda.
        """
        choose(prediction_type, PREDICTION_TYPES, "EmpiricalStatistics", "prediction_type")
        data = np.asarray(data, np.float64)
        grid = np.asarray(lambdas, np.float64)
        rng = np.random.default_rng(seed)
        noises = [rng.standard_normal(data.shape) for _ in grid]

        def noise(x: np.ndarray, lam: float) -> np.ndarray:
            p = schedule.at_lambda(lam)
            a, b = conversion(schedule, prediction_type, "noise", p)
            return a * x + b * np.asarray(model(x, p.time), np.float64)

        def sample(i: int) -> np.ndarray:
            p = schedule.at_lambda(grid[i])
            return p.alpha * data + p.sigma * noises[i]

        diagonals = []
        for i, lam in enumerate(grid):
            x, v = sample(i), rng.choice([-1.0, 1.0], data.shape)
            ahead, behind = noise(x + jvp_step * v, lam), noise(x - jvp_step * v, lam)
            diagonals.append((v * (ahead - behind)).mean(axis=0) / (2 * jvp_step))
        sigmas = np.array([schedule.at_lambda(lam).sigma for lam in grid])
        ell = np.array(diagonals) * sigmas.reshape(-1, *[1] * (data.ndim - 1))
        slope = np.gradient(ell, grid, axis=0)
        s, b = [], []
        for i, lam in enumerate(grid):
            p, x = schedule.at_lambda(lam), sample(i)
            e, y, r = noise(x, lam), x / p.alpha, p.ratio
            h = time_step
            moved = []
            for sign in (1, -1):
                q = schedule.at_lambda(lam + sign * h)
                # d(x / alpha) = noise d(sigma / alpha): the flow, to second order in h
                moved.append(noise((y + e * (q.ratio - r)) * q.alpha, lam + sign * h))
            change = (moved[0] - moved[1]) / (2 * h)
            f = r * e - ell[i] * y
            df = r * ((ell[i] - 1) * e + change) - slope[i] * y
            mean, dmean = f.mean(axis=0), df.mean(axis=0)
            variance = ((f - mean) ** 2).mean(axis=0)
            covariance = ((f - mean) * (df - dmean)).mean(axis=0)
            # f nearly constant: s says nothing, b all.
            floor = 1e-8 * (r * r * (e**2).mean(axis=0) + 1e-30)
            si = np.where(variance > floor, covariance / np.maximum(variance, floor), 0.0)
            s.append(si)
            b.append(dmean - si * mean)
        return cls(grid, ell, np.array(s), np.array(b))

    def integrals(self, points: Sequence[float], powers: int) -> list[Integrals]:
        """What the solver needs between neighbouring lambdas of `points` (rising, inside)."""
        low, high = self.lambdas[0] - 1e-9, self.lambdas[-1] + 1e-9
        if not all(low <= p <= high for p in points):
            raise ValueError(
                f"DPMSolverV3: lambda from {points[0]:.4g} to {points[-1]:.4g} leaves the range of "
                f"the statistics, {self.lambdas[0]:.4g} to {self.lambdas[-1]:.4g}"
            )
        return [self._integrals(a, b, powers) for a, b in itertools.pairwise(points)]

    def at(self, table: np.ndarray, lam: float) -> np.ndarray:
        """One of l, s, b at a level."""
        i = int(np.clip(np.searchsorted(self.lambdas, lam) - 1, 0, len(self.lambdas) - 2))
        w = (lam - self.lambdas[i]) / (self.lambdas[i + 1] - self.lambdas[i])
        return table[i] * (1 - w) + table[i + 1] * w

    def _integrals(self, start: float, end: float, powers: int) -> Integrals:
        """Gauss-Legendre over every linear piece of the statistics."""
        inner = [v for v in self.lambdas if start < v < end]
        L = S = B = C = np.zeros(self.shape)
        moments = [np.zeros(self.shape) for _ in range(powers)]
        for a, c in itertools.pairwise([start, *inner, end]):
            rows = [(self.at(t, a), self.at(t, c)) for t in (self.l, self.s, self.b)]
            piece = _Piece(c - a, rows, S)
            for u, w in zip(_FRACTIONS, _SHARES * (c - a), strict=True):
                e = np.exp(L + S + piece.total(0, u) + piece.total(1, u))
                for n in range(powers):
                    moments[n] = moments[n] + w * (a + u * (c - a) - start) ** n * e
                C = C + w * e * (B + piece.source(u))
            B = B + piece.source(1.0)
            L, S = L + piece.total(0, 1.0), S + piece.total(1, 1.0)
        return Integrals(L, S, B, C, moments)


@dataclass
class _Piece:
    """Between two levels with l, s, b linear: rows are their values at both ends."""

    width: float
    rows: list[tuple[np.ndarray, np.ndarray]]
    S: np.ndarray

    def total(self, row: int, u: float) -> np.ndarray:
        """Integral of l or s up to a fraction u."""
        first, last = self.rows[row]
        return self.width * (first * u + (last - first) * (u * u / 2))

    def source(self, u: float) -> np.ndarray:
        """Integral of exp(-S) b up to a fraction u."""
        first, last = self.rows[2]
        result = np.zeros_like(self.S)
        for v, w in zip(_FRACTIONS * u, _SHARES * u * self.width, strict=True):
            result += w * (first + (last - first) * v) * np.exp(-(self.S + self.total(1, v)))
        return result


@dataclass
class Integrals:
    """Over a step from lambda_s to lambda_t, per element, all starting at 0 in lambda_s:
    L, S of l and s; B of exp(-S) b; C of exp(L + S) B; moments of exp(L + S) (lambda - lambda_s)^n.
    """

    L: np.ndarray
    S: np.ndarray
    B: np.ndarray
    C: np.ndarray
    moments: list[np.ndarray]
