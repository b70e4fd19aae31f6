"""Masked autoregressive decoding of continuous tokens (MAR, Li et al. 2024, arXiv:2406.11838).

Tokens are drawn in random order, in groups whose sizes follow a cosine. Per group the model gives a
condition z for every position from the tokens known so far, and a small head draws the tokens of
the group from p(x | z) by a denoising chain, all samples and positions at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from .. import solvers
from .._arrays import Array
from ..solvers.schedule import choose
from .denoising import (
    Conditioned,
    Counts,
    Head,
    Key,
    SpeculativeDenoising,
    condition_pair,
    denoise,
    denoise_speculatively,
    tempered,
    transitions,
)
from .token_draws import as_array, check_floats, copy_of, to_numpy, uniforms

GUIDANCE_SCHEDULES = ("linear", "constant")
_ORDERS = -3  # offset of the random orders

Progress = Callable[[int, int], None]


class MARModel(Protocol):
    """Anything that can be called so."""

    def __call__(self, tokens: Array, known: Array) -> Any:
        """Conditions of all positions.

        Args:
            tokens: (B, L, D) float32, 0 where not known.
            known: (B, L) bool.

        Returns:
            (B, L, C), or with guidance the pair (conditions, conditions without the class).
        """


@dataclass
class MARResult:
    """tokens (B, L, D) float32; orders (B, L) int64, the positions in the order of their drawing;
    calls of the model and of the draft's model; `counts`, what the heads took."""

    tokens: Array
    orders: np.ndarray
    calls: int
    draft_model_calls: int
    counts: Counts


def group_sizes(length: int, steps: int) -> list[int]:
    """How many of `length` tokens each of `steps` model calls draws.

    floor(length cos(pi/2 i/steps)) are left after call i, at least one token is drawn by every
    call, and the last draws the rest.

    Raises:
        ValueError: steps not in 1 .. length.
    """
    if not 1 <= steps <= length:
        raise ValueError(f"group_sizes: argument 'steps' expected 1 to {length}, got {steps}")
    sizes, left = [], length
    for i in range(1, steps + 1):
        after = max(1, min(left - 1, int(np.floor(length * np.cos(np.pi / 2 * i / steps)))))
        if i == steps:
            after = 0
        sizes.append(left - after)
        left = after
    return sizes


def mar(
    model: MARModel,
    head: Head,
    tokens: Array,
    plan: solvers.SolverPlan,
    *,
    steps: int = 64,
    known: Array | None = None,
    orders: np.ndarray | None = None,
    temperature: float = 1.0,
    guidance_scale: float = 1.0,
    guidance_schedule: str = "linear",
    decoder: SpeculativeDenoising | None = None,
    seed: int = 0,
    first_sample: int = 0,
    progress: Progress | None = None,
) -> MARResult:
    """Draws the tokens that are not known.

    Args:
        model: see `MARModel`; called once per group.
        head: see `Head`; what it predicts is the plan's prediction_type. Of the official head,
            which answers with 2 D numbers for a learnt variance, the first D.
        tokens: (B, L, D) float32 NumPy array or torch tensor: known tokens; the others count for
            nothing. Not written to.
        plan: of `px.solvers.solver_plan`; MAR's own is "ddpm" with 100 steps on a cosine `vp`
            schedule, but with the variance of a step learnt, where a plan's is fixed.
        steps: model calls; 64 is MAR's number for 256 tokens.
        known: (B, L) bool, the same number in every sample; None: no token is known.
        orders: (B, L) int64 permutations of the positions, in which tokens are drawn (known ones
            are passed over); None: random ones.
        temperature: factor of the noise of the chain's steps (not of the start).
        guidance_scale: w of uncond + w (cond - uncond); 1 uses the conditions alone.
        guidance_schedule: "linear": w grows with the part of the tokens known after the call,
            1 + (w - 1) known / L (after the last call one is counted as unknown, as in the official
            code), or "constant".
        decoder: None runs the chain with one head call per denoising step;
            `SpeculativeDenoising(head)` gives the same distribution in fewer calls of `head`.
        seed: of the Philox streams. Noise depends on seed, group, sample and place in the group.
        first_sample: index of the first sample in a larger batch; a sample decoded alone equals the
            same one decoded in the batch, if its conditions and head outputs do.
        progress: called with (groups drawn, groups).

    Returns:
        `MARResult`.

    Raises:
        ValueError: shapes that do not fit, numbers out of range, a model that gives no pair under
            guidance, with speculation a plan whose steps are not Gaussian in one evaluation.
        TypeError: tokens or outputs of a head that are not float32.
    """
    batch, length, width = check_floats("mar", "tokens", tokens, 3)
    choose(guidance_schedule, GUIDANCE_SCHEDULES, "mar", "guidance_schedule")
    plan = tempered("mar", plan, temperature)
    table = None if decoder is None else transitions("mar", plan)
    given = _known(known, batch, length)
    count = int(given[0].sum()) if batch else 0
    order = _orders(orders, given, count, seed, first_sample)
    x = copy_of(tokens)
    x[as_array(~given, x)] = 0
    counts = Counts(plan.evaluations)
    sizes = group_sizes(length - count, steps) if count < length and batch else []
    sample = np.arange(batch)[:, None]
    done, draft_model_calls = 0, 0
    for i, size in enumerate(sizes):
        places = order[:, done : done + size]
        at = as_array(np.broadcast_to(sample, places.shape).copy(), x), as_array(places, x)
        flags = as_array(given.copy(), x)
        done += size
        part = max(0.0, (count + min(done, length - count - 1)) / length)
        scale = guidance_scale
        if guidance_schedule == "linear":
            scale = 1 + (guidance_scale - 1) * part
        target = _conditioned(head, model(x, flags), at, scale, guidance_scale, x.shape)
        like = x[at].reshape(batch * size, width)
        key = Key(seed, i, first_sample * size)
        if decoder is None or table is None:
            drawn = denoise(target, plan, like, key, counts)
        else:
            draft = None
            if decoder.head is not None and decoder.model is not None:
                z = decoder.model(x, flags)
                draft_model_calls += 1
                draft = _conditioned(decoder.head, z, at, scale, guidance_scale, x.shape)
            elif decoder.head is not None:
                draft = Conditioned("mar", decoder.head, target.z, target.uncond, scale)
            drawn = denoise_speculatively(
                target, draft, decoder.steps, plan, table, like, key, counts
            )
        x[at] = drawn.reshape(batch, size, width)
        given[sample, places] = True
        if progress is not None:
            progress(i + 1, len(sizes))
    return MARResult(x, order, len(sizes), draft_model_calls, counts)


def _known(known: Array | None, batch: int, length: int) -> np.ndarray:
    if known is None:
        return np.zeros((batch, length), bool)
    flags = np.array(to_numpy(known))
    if flags.dtype != bool or flags.shape != (batch, length):
        raise ValueError(
            f"mar: argument 'known' expected shape {(batch, length)} of bool, got {flags.shape} of "
            f"{flags.dtype}"
        )
    numbers = flags.sum(1)
    if len({*numbers.tolist()}) > 1:
        raise ValueError(
            "mar: argument 'known' expected the same number of tokens in every sample, got "
            f"{numbers.tolist()}"
        )
    return flags


def _orders(
    orders: np.ndarray | None, given: np.ndarray, count: int, seed: int, first_sample: int
) -> np.ndarray:
    """(B, L - count) int64: unknown positions in the order of their drawing."""
    if orders is None:
        shape = (given.shape[0], given.shape[1])
        drawn = np.argsort(uniforms(shape, seed, _ORDERS, first_sample), axis=1, kind="stable")
    else:
        drawn = np.asarray(to_numpy(orders))
        everything = np.broadcast_to(np.arange(given.shape[1]), given.shape)
        if drawn.shape != given.shape or (np.sort(drawn, axis=1) != everything).any():
            raise ValueError(
                f"mar: argument 'orders' expected shape {given.shape}, each row a permutation, got "
                f"shape {drawn.shape}"
            )
    unknown = ~np.take_along_axis(given, drawn, 1)
    return drawn[unknown].reshape(given.shape[0], given.shape[1] - count)


def _conditioned(
    head: Head, z: Any, at: tuple[Array, Array], scale: float, full: float, size: tuple[int, ...]
) -> Conditioned:
    """The head with the conditions of the positions `at`."""
    pair = condition_pair("mar", z, full, size[:2])
    cond, uncond = (None if p is None else p[at].reshape(-1, p.shape[2]) for p in pair)
    return Conditioned("mar", head, cond, uncond, scale)
