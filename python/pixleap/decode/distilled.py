"""Distilled decoding of autoregressive token models (arXiv:2412.17153): all tokens in one or two
calls of a student that has learnt the teacher's deterministic map from noise to tokens.

Teacher: the noise e ~ N(0, I) of a position, in the space of the codebook, flows to a codebook
point along the probability-flow ODE whose data distribution is the model's next-token distribution
on the codebook points. The token's law is that distribution, so a token sequence is a function of
the noise, which a student can learn for all positions at once.

The ODE in closed form: flow matching moves x = (1 - t) e + t c. With s = t / (1 - t) and
z = x / (1 - t) = e + s c the velocity is dz/ds = E[c | z] = sum of w_k c_k with the posterior
weights w_k ~ p_k exp(s z.c_k - s^2 |c_k|^2 / 2): bounded, where dx/dt is singular at t = 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from .._arrays import Array, empty
from .raster import RasterModel
from .token_draws import TokenSampling, as_array, check_tokens, rows_of, to_numpy

_CHUNK = 1 << 15  # numbers of (positions, V) at a time: they stay in the cache
_SEPARATION = 12.0  # deviations of the noise between the closest two points, at the end


class DistilledStudent(Protocol):
    """Anything that can be called so."""

    def __call__(self, noise: Array, tokens: Array | None, start: int) -> Array:
        """Tokens of the positions start, start + 1, ..., L - 1.

        Args:
            noise: (B, L, D), of all positions.
            tokens: (B, L) int64, exact before `start` and of no meaning after; None with start 0.
            start: 0 .. L - 1.

        Returns:
            (B, L - start) int64.
        """


def _real(function: str, name: str, x: Any, shape: str, ndim: int) -> np.ndarray:
    """A finite float64 array on the host."""
    kind = str(getattr(x, "dtype", type(x).__name__)).removeprefix("torch.")
    if kind not in ("float64", "float32", "bfloat16", "float16"):
        raise TypeError(
            f"{function}: argument '{name}' expected a floating-point array, got {kind}"
        )
    if len(x.shape) != ndim:
        raise ValueError(
            f"{function}: argument '{name}' expected shape {shape}, got {tuple(x.shape)}"
        )
    array = to_numpy(x.float() if kind == "bfloat16" else x).astype(np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"{function}: argument '{name}' expected finite numbers, got inf or NaN")
    return array


class NoiseMapping:
    """The deterministic map from noise and next-token probabilities to tokens.

    Args:
        codebook: (V, D), distinct points.
        steps: of the fourth-order Runge-Kutta method from s = 0 to where the closest two points are
            12 deviations apart, on a grid that is even in asinh of s times the codebook's radius.

    Raises:
        ValueError, TypeError: a codebook without points, with equal ones or not of numbers;
            steps < 1.
    """

    def __init__(self, codebook: Array, steps: int = 32) -> None:
        self.points = _real("NoiseMapping", "codebook", codebook, "(V, D)", 2)
        count = len(self.points)
        if self.points.size == 0:
            raise ValueError(
                f"NoiseMapping: argument 'codebook' expected points, got {self.points.shape}"
            )
        if steps < 1:
            raise ValueError(f"NoiseMapping: argument 'steps' expected at least 1, got {steps}")
        # The mean moves z alone; without it products are smaller.
        self.points -= self.points.mean(0)
        self.squares = (self.points**2).sum(1)
        radius = float(np.sqrt(self.squares.max()))
        least = self._least_distance()
        if count > 1 and least == 0.0:
            raise ValueError(
                "NoiseMapping: argument 'codebook' expected distinct points, got equal ones"
            )
        end = np.arcsinh(_SEPARATION * radius / least) if count > 1 else 0.0
        self.grid = np.sinh(np.linspace(0.0, end, steps + 1)) / (radius or 1.0)

    def _least_distance(self) -> float:
        from scipy.spatial import cKDTree

        return float(cKDTree(self.points).query(self.points, k=2)[0][:, 1].min())

    def _log_weights(self, z: np.ndarray, log_p: np.ndarray, s: float) -> np.ndarray:
        scores = z @ (s * self.points.T)
        scores += log_p
        scores -= 0.5 * s * s * self.squares
        return scores

    def _velocity(self, z: np.ndarray, log_p: np.ndarray, s: float) -> np.ndarray:
        """Posterior mean of the point, (rows, D)."""
        weights = self._log_weights(z, log_p, s)
        weights -= weights.max(1, keepdims=True)
        np.exp(weights, out=weights)
        return (weights @ self.points) / weights.sum(1, keepdims=True)

    def _rows(self, z: np.ndarray, p: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore"):
            log_p = np.log(p)
        for s, after in zip(self.grid[:-1], self.grid[1:], strict=True):
            h = after - s
            k1 = self._velocity(z, log_p, s)
            k2 = self._velocity(z + 0.5 * h * k1, log_p, s + 0.5 * h)
            k3 = self._velocity(z + 0.5 * h * k2, log_p, s + 0.5 * h)
            k4 = self._velocity(z + h * k3, log_p, after)
            z = z + h / 6 * (k1 + 2 * (k2 + k3) + k4)
        # The nearest point to z / s among those that can come at all.
        possible = np.where(p > 0, 0.0, -np.inf)
        return self._log_weights(z, possible, self.grid[-1]).argmax(1)

    def __call__(self, noise: Array, probabilities: Array) -> Array:
        """Tokens of positions, each from its own noise and probabilities.

        Args:
            noise: (B, L, D) normal numbers.
            probabilities: (B, L, V), not negative, each row of a positive sum.

        Returns:
            (B, L) int64, in the framework of `noise`.

        Raises:
            ValueError, TypeError: other shapes or dtypes, rows that are not probabilities.
        """
        name = "NoiseMapping"
        x = _real(name, "noise", noise, "(B, L, D)", 3)
        p = _real(name, "probabilities", probabilities, "(B, L, V)", 3)
        count, depth = self.points.shape
        batch, length = x.shape[:2]
        for argument, array, last in (("noise", x, depth), ("probabilities", p, count)):
            if array.shape != (batch, length, last):
                raise ValueError(
                    f"{name}: argument '{argument}' expected shape {(batch, length, last)}, "
                    f"got {array.shape}"
                )
        if (p < 0).any() or (p.sum(-1) <= 0).any():
            raise ValueError(
                f"{name}: argument 'probabilities' expected rows of numbers >= 0 with a positive "
                "sum, got others"
            )
        x, p = x.reshape(-1, depth), p.reshape(-1, count)
        tokens = np.empty(len(x), np.int64)
        step = max(1, _CHUNK // count)
        for begin in range(0, len(x), step):
            part = slice(begin, begin + step)
            tokens[part] = self._rows(x[part], p[part])
        return as_array(tokens.reshape(batch, length), noise)


@dataclass
class DistilledTeacher:
    """The autoregressive model with its map from noise to tokens: what students learn, and what
    refines their tokens.

    model: a `RasterModel` over the codebook's V tokens. mapping: `NoiseMapping` of its codebook.
    sampling: temperature, filters and guidance; a token that they leave out is never taken.
    """

    model: RasterModel
    mapping: NoiseMapping
    sampling: TokenSampling = field(default_factory=TokenSampling)

    def __call__(self, noise: Array, tokens: Array | None, start: int) -> Array:
        """Tokens (B, L - start) of the positions from `start` on, one model pass each: a perfect
        student. Arguments as of `DistilledStudent`."""
        batch, length = int(noise.shape[0]), int(noise.shape[1])
        x = as_array(np.zeros((batch, length), np.int64), noise)
        if start:
            if tokens is None:
                raise ValueError(
                    "DistilledTeacher: argument 'tokens' expected the tokens before 'start', "
                    "got None"
                )
            x[:, :start] = tokens[:, :start]
        known = 0  # rows of the model so far
        for position in range(start, length):
            output = self.model(x[:, :position], known)
            output = rows_of(output, (slice(None), slice(position - known, None)))
            p = self.sampling.probabilities(output)
            x[:, position : position + 1] = self.mapping(noise[:, position : position + 1], p)
            known = position + 1
        return x[:, start:]


@dataclass
class DistilledResult:
    """tokens (B, L) int64; calls of the student; model passes of the teacher."""

    tokens: Array
    calls: int
    teacher_passes: int = 0


def distilled(
    student: DistilledStudent,
    noise: Array,
    *,
    splits: Sequence[int] = (0,),
    teacher: DistilledTeacher | None = None,
    refine_from: int | None = None,
) -> DistilledResult:
    """Decodes whole token sequences in a few calls of a student.

    Args:
        student: see `DistilledStudent`.
        noise: (B, L, D) normal numbers, NumPy array or torch tensor.
        splits: positions, counted from 0, at which the student is called anew with the tokens so
            far: (0,) is one call, (0, k) two, which the paper writes {1} and {1, k + 1}.
        teacher: with `refine_from`, takes the positions from there on, one pass each, from the
            same noise.
        refine_from: 0 .. L.

    Returns:
        `DistilledResult`.

    Raises:
        ValueError: splits that do not start at 0, do not increase or lie beyond L; refine_from
            without teacher, or outside 0 .. L; a student's tokens of another shape.
        TypeError: a student's tokens that are not int64, noise that is not a floating array.

    Source: Liu et al. 2024, arXiv:2412.17153.
    """
    shape = _real("distilled", "noise", noise, "(B, L, D)", 3).shape
    batch, length = shape[:2]
    steps = [int(split) for split in splits]
    rising = all(a < b for a, b in pairwise([*steps, max(length, 1)]))
    if not steps or steps[0] != 0 or not rising:
        raise ValueError(
            f"distilled: argument 'splits' expected increasing positions from 0, below {length}, "
            f"got {tuple(splits)}"
        )
    if (teacher is None) != (refine_from is None):
        raise ValueError(
            "distilled: arguments 'teacher' and 'refine_from' expected both or neither, got one"
        )
    end = length if refine_from is None else refine_from
    if not 0 <= end <= length:
        raise ValueError(f"distilled: argument 'refine_from' expected 0 to {length}, got {end}")
    tokens = empty(noise, (batch, length), "int64")
    tokens[:] = 0
    calls = 0
    for start, stop in zip(steps, [*steps[1:], length], strict=True):
        if start >= end:
            break  # the teacher takes these
        got = student(noise, tokens if start else None, start)
        size = check_tokens("distilled", "student's tokens", got)
        if size != (batch, length - start):
            raise ValueError(
                f"distilled: argument 'student' expected tokens {(batch, length - start)} from "
                f"position {start} on, got {size}"
            )
        tokens[:, start:stop] = got[:, : stop - start]
        calls += 1
    if teacher is not None and end < length:
        tokens[:, end:] = teacher(noise, tokens if end else None, end)
    return DistilledResult(tokens, calls, length - end if teacher is not None else 0)
