"""Sampling from masked (absorbing-state) diffusion models over tokens.

Such a model starts from masks alone; running backwards in time from 1 to 0, every position is
unmasked at a random time of its own, independent of all tokens: it is still masked at time t with
probability 1 - alpha(t). A decoder is therefore an order and a grouping of these times:

- first-hitting (Zheng et al. 2024, arXiv:2409.02908): one position per model call, at its time. It
  is exact: no time is discretised. With k masks left at time t the next one goes at the time tau
  with 1 - alpha(tau) = (1 - alpha(t)) u^(1/k), at a uniformly chosen position; that is the order
  statistics of independent times, which are drawn and sorted here.
- several positions per call in that order, or all that fall between two steps of a time grid
  (ancestral sampling; Sahoo et al. 2024, arXiv:2406.07524): approximate, since what is unmasked
  together is drawn independently.
- MaskGIT (Chang et al. 2022, arXiv:2202.04200): the most confident tokens stay, on a cosine
  schedule. A heuristic with a distribution of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._arrays import Array
from .token_draws import (
    TokenSampling,
    as_array,
    check_tokens,
    copy_of,
    rows_of,
    to_numpy,
    uniforms,
)

Model = Callable[[Array, Array], Any]
Progress = Callable[[int, int], None]

# Streams of one seed: tokens of model call i take offset i, times and confidences these.
_TIMES, _CONFIDENCE = -1, -2


@dataclass(frozen=True)
class FirstHitting:
    """One position per model call at its own time: exact. tokens_per_call > 1 unmasks as many at
    once, at the time of the first of them, in the place of one: approximate, in fewer calls."""

    tokens_per_call: int = 1

    def __post_init__(self) -> None:
        if self.tokens_per_call < 1:
            raise ValueError(
                "FirstHitting: tokens_per_call expected an integer >= 1, got "
                f"{self.tokens_per_call}"
            )


@dataclass(frozen=True)
class Ancestral:
    """All positions whose time lies between two of `steps` + 1 equidistant times are drawn in one
    model call, made at the upper one; steps in which nothing is unmasked make no call."""

    steps: int

    def __post_init__(self) -> None:
        _check_steps("Ancestral", self.steps)


@dataclass(frozen=True)
class MaskGIT:
    """`steps` model calls; after call i the cos(pi/2 i/steps) part of the positions with the least
    confidence (log-probability of the drawn token plus choice_temperature (1 - i/steps) Gumbel
    noise) is masked again. At least one more position stays at every call."""

    steps: int
    choice_temperature: float = 4.5

    def __post_init__(self) -> None:
        _check_steps("MaskGIT", self.steps)
        if not 0 <= self.choice_temperature < np.inf:
            raise ValueError(
                "MaskGIT: choice_temperature expected a finite number >= 0, got "
                f"{self.choice_temperature}"
            )


def _check_steps(name: str, steps: int) -> None:
    if steps < 1:
        raise ValueError(f"{name}: steps expected an integer >= 1, got {steps}")


def linear_time(masked: np.ndarray) -> np.ndarray:
    """alpha(t) = 1 - t: the part `masked` of all positions is masked at this time."""
    return masked


def cosine_time(masked: np.ndarray) -> np.ndarray:
    """alpha(t) = 1 - cos(pi/2 (1 - t))."""
    return 1 - 2 / np.pi * np.arccos(masked)


SCHEDULES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "linear": linear_time,
    "cosine": cosine_time,
}


@dataclass
class MaskedDiffusionResult:
    """tokens (B, L) int64; model calls made; time (B, L) float64 at which each position was
    unmasked, NaN where it was given (MaskGIT: 1 - i/steps of call i)."""

    tokens: Array
    calls: int
    times: np.ndarray


def masked_diffusion(
    model: Model,
    tokens: Array,
    mask_token: int,
    *,
    decoder: FirstHitting | Ancestral | MaskGIT = FirstHitting(),
    schedule: str | Callable[[np.ndarray], np.ndarray] = "linear",
    seed: int = 0,
    first_sample: int = 0,
    progress: Progress | None = None,
    **sampling: Any,
) -> MaskedDiffusionResult:
    """Draws the masked tokens.

    Args:
        model: (tokens (B, L) int64, times (B,) float64) -> logits (B, L, V) of the unmasked tokens,
            or with guidance the pair (logits, logits without the condition). Time-agnostic models
            pass over the times. Every position's logits may be asked for, only those of masked ones
            are used.
        tokens: (B, L) int64 NumPy array or torch tensor, `mask_token` where a token is to be drawn;
            the others are given and stay. Not written to.
        mask_token: the number that stands for a mask.
        decoder: `FirstHitting()` (exact), `FirstHitting(m)`, `Ancestral(steps)`, `MaskGIT(steps)`.
        schedule: at what time which part of the positions is masked: "linear", "cosine", or a
            function from parts in (0, 1) to times in (0, 1), the inverse of 1 - alpha.
        seed: of the Philox streams of tokens and times.
        first_sample: index of the first sample in a larger batch; a sample decoded alone equals the
            same one decoded in the batch, if its logits do.
        progress: called with (calls made, calls expected).
        sampling: temperature, top_k, top_p, guidance_scale, noise_dtype of `TokenSampling`.

    Returns:
        `MaskedDiffusionResult`.

    Raises:
        ValueError: an unknown schedule, tokens that are not (B, L).
        TypeError: tokens that are not int64, an unknown name in `sampling`.
    """
    shape = check_tokens("masked_diffusion", "tokens", tokens)
    draws, x = TokenSampling(**sampling), copy_of(tokens)
    masked = to_numpy(x) == mask_token
    if isinstance(decoder, MaskGIT):
        return _maskgit(model, x, masked, decoder, draws, seed, first_sample, progress)
    if isinstance(schedule, str):
        if schedule not in SCHEDULES:
            raise ValueError(
                f"masked_diffusion: argument 'schedule' expected one of {', '.join(SCHEDULES)} or "
                f"a function, got '{schedule}'"
            )
        schedule = SCHEDULES[schedule]
    times = schedule(uniforms(shape, seed, _TIMES, first_sample))
    times = np.where(masked, times, np.nan)
    key = {"seed": seed, "first_sample": first_sample}
    calls = 0
    if isinstance(decoder, Ancestral):
        step = np.where(masked, np.ceil(times * decoder.steps), 0)  # positions go from high to low
        for i in range(decoder.steps, 0, -1):
            now = step == i
            if not now.any():
                continue
            at = np.full(shape[0], i / decoder.steps)
            drawn = draws.draw(model(x, as_array(at, x)), offset=decoder.steps - i, **key)
            chosen = as_array(now, x)
            x[chosen] = drawn[chosen]
            calls += 1
            if progress is not None:
                progress(decoder.steps - i + 1, decoder.steps)
        return MaskedDiffusionResult(x, calls, times)
    events = list(_events(times, masked, decoder.tokens_per_call))
    for calls, (positions, valid, at) in enumerate(events, 1):
        output = model(x, as_array(at, x))
        rows = as_array(np.arange(shape[0])[:, None], x), as_array(positions, x)
        drawn = draws.draw(rows_of(output, rows), offset=calls - 1, **key)
        sample, slot = (as_array(i, x) for i in np.nonzero(valid))
        x[sample, rows[1][sample, slot]] = drawn[sample, slot]
        if progress is not None:
            progress(calls, len(events))
    return MaskedDiffusionResult(x, len(events), times)


def _events(
    times: np.ndarray, masked: np.ndarray, per_call: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Positions (B, n) that each call unmasks, which of them are masked ones (samples may have
    fewer masks than others), and the times (B,) of the calls."""
    order = np.argsort(-times, axis=1, kind="stable")  # NaN comes last
    length, left = times.shape[1], masked.sum(1)
    for begin in range(0, int(left.max(initial=0)), per_call):
        positions = order[:, begin : begin + per_call]
        valid = np.arange(begin, min(begin + per_call, length)) < left[:, None]
        at = np.take_along_axis(times, positions[:, :1], 1)[:, 0]
        yield positions, valid, np.nan_to_num(at, nan=0.0)  # 0: nothing is left to unmask


def _maskgit(
    model: Model,
    x: Array,
    masked: np.ndarray,
    decoder: MaskGIT,
    draws: TokenSampling,
    seed: int,
    first_sample: int,
    progress: Progress | None,
) -> MaskedDiffusionResult:
    total = masked.sum(1)
    times = np.full(masked.shape, np.nan)
    key = {"seed": seed, "first_sample": first_sample}
    calls = 0
    for i in range(decoder.steps):
        if not masked.any():
            break
        at = np.full(len(masked), 1 - i / decoder.steps)
        output = model(x, as_array(at, x))
        drawn, log_prob = draws.draw(output, offset=i, return_log_prob=True, **key)
        calls += 1
        u = uniforms(masked.shape, seed, _CONFIDENCE - i, first_sample)
        noise = -np.log(-np.log(u)) * decoder.choice_temperature * (1 - (i + 1) / decoder.steps)
        confidence = np.where(masked, to_numpy(log_prob) + noise, np.inf)
        part = np.cos(np.pi / 2 * (i + 1) / decoder.steps)
        again = np.minimum(np.floor(part * total).astype(np.int64), masked.sum(1) - 1)
        if i == decoder.steps - 1:
            again = np.zeros_like(again)
        rank = np.argsort(np.argsort(confidence, axis=1, kind="stable"), axis=1)
        stays = masked & (rank >= again[:, None])
        chosen = as_array(stays, x)
        x[chosen] = drawn[chosen]
        times[stays] = at[0]
        masked &= ~stays
        if progress is not None:
            progress(i + 1, decoder.steps)
    return MaskedDiffusionResult(x, calls, times)
