"""Raster-scan decoding of autoregressive token models: one token after the other, or several per
model pass with the same result.

- Jacobi: with the Gumbel noise of every position fixed beforehand, token l is a function of the
  tokens before it, x_l = argmax(logits_l(x_<l) + noise_l): a triangular system (see `triangular`),
  whose fixed point is what the sequential loop gives, token for token, in fewer passes (Song et al.
  2021, arXiv:2002.03629; for images without fixed noise, so not exact: Teng et al. 2024,
  arXiv:2410.01699).
- Speculative: a cheaper model drafts, the model that counts verifies all drafts in one pass. Other
  tokens than the loop's, of the same distribution (Leviathan et al. 2023, arXiv:2211.17192).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import ops
from .._arrays import Array, empty
from .raster_run import Guess, Progress, RasterModel, RasterResult, RasterRun
from .speculative_jacobi import SpeculativeJacobi, speculative_jacobi
from .token_draws import TokenSampling, check_tokens, rows_of, to_numpy
from .triangular_solvers import Sequential, Solver, solve_triangular


class RasterSystem:
    """The triangular system x_l = argmax(logits_l(x_<l) + noise_l) of a token model, whose noise
    is a seed. All samples of a sweep are at the same token.

    Args:
        model, prompt, length, first_sample: as of `raster`.
        sampling: guidance and filters.
    """

    per_sample = False

    def __init__(
        self, model: RasterModel, prompt: Array, length: int, sampling: TokenSampling,
        first_sample: int = 0,
    ) -> None:  # fmt: skip
        batch, self.first = check_tokens("raster", "prompt", prompt)
        if length < self.first:
            raise ValueError(
                f"raster: argument 'length' expected at least {self.first}, got {length}"
            )
        self.model, self.length, self.sampling = model, length, sampling
        self.first_sample = first_sample
        self.rows = 1 if sampling.guidance_scale == 1 else 2
        self.x = empty(prompt, (batch, length))
        self.x[:, : self.first] = prompt
        self.x[:, self.first :] = 0

    def begin(self, noise: int, init: Any) -> Array:
        self.seed, self.guess = noise, Guess(self.x, self.first, init)
        self.known = False  # whether the model has read the prompt
        return self.x

    def evaluate(self, samples: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        start, end, x = int(starts[0]), int(ends[0]), self.x
        self.guess.reach(end)
        output = self.model(x[:, : end - 1], start if self.known else 0)
        if not self.known and start:
            output = rows_of(output, (slice(None), slice(start, None)))
        self.known = True
        drawn = self.sampling.draw(
            output, seed=self.seed, first_sample=self.first_sample, first_position=start,
            length=self.length,
        )  # fmt: skip
        moved = to_numpy(drawn != x[:, start:end])
        x[:, start:end] = drawn
        return moved.astype(np.float32).reshape(-1)


@dataclass(frozen=True)
class Speculative:
    """draft: a `RasterModel` of the same tokens; tokens: how many it drafts per pass.

    The samples of a batch advance together, by the least number that any of them accepts. That is
    exact, since the others' acceptances are independent of a sample's own, but more samples accept
    less at a time."""

    draft: RasterModel
    tokens: int = 4

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ValueError(f"Speculative: tokens expected an integer >= 1, got {self.tokens}")


def raster(
    model: RasterModel,
    prompt: Array,
    length: int,
    *,
    decoder: Solver | Speculative | SpeculativeJacobi | None = None,
    seed: int = 0,
    first_sample: int = 0,
    progress: Progress | None = None,
    **sampling: Any,
) -> RasterResult:
    """Continues token sequences.

    Args:
        model: see `RasterModel`.
        prompt: (B, m) int64 NumPy array or torch tensor of given tokens; m may be 0.
        length: tokens of a whole sequence, the prompt's included.
        decoder: None takes one token per pass. A solver of triangular systems, such as
            `Frontier(window=16)` with init "zero", `RowAbove(width)` or (B, length) int64 tokens,
            gives the same tokens in fewer passes, provided that the model's logits do not depend on
            how many positions it is asked for. `Speculative(draft)` and `SpeculativeJacobi()` give
            the same distribution.
        seed: of the Philox stream. The noise of a position depends on seed, sample and position.
        first_sample: index of the first sample in a larger batch.
        progress: called with (tokens done, length).
        sampling: temperature, top_k, top_p, guidance_scale, noise_dtype of `TokenSampling`, for the
            draft model too.

    Returns:
        `RasterResult`.

    Raises:
        ValueError: a length below the prompt's, a prompt or guess of another shape.
        TypeError: a prompt or guess that is not int64, an unknown name in `sampling`.
    """
    system = RasterSystem(model, prompt, length, TokenSampling(**sampling), first_sample)
    if isinstance(decoder, (Speculative, SpeculativeJacobi)):
        run = RasterRun(
            model, system.x, system.first, system.sampling, seed, first_sample, progress
        )
        if isinstance(decoder, SpeculativeJacobi):
            return speculative_jacobi(run, decoder)
        return _speculative(run, decoder)
    report = None if progress is None else (lambda done: progress(done, length))
    solved = solve_triangular(system, seed, decoder or Sequential(), report)
    return RasterResult(solved.x, solved.sweeps)


def _draw(run: RasterRun, output: Any, start: int, offset: int, **options: Any) -> Any:
    """Tokens of the positions from `start` on, with noise of their own."""
    key = {"seed": run.seed, "offset": offset, "first_sample": run.first_sample}
    position = {"first_position": start, "length": run.length}
    return run.sampling.draw(output, **key, **position, **options)


def _speculative(run: RasterRun, decoder: Speculative) -> RasterResult:
    x, length = run.x, run.length
    draft = RasterRun(decoder.draft, x, run.done, run.sampling, run.seed, run.first_sample, None)
    accepted, drafted, rounds = 0.0, 0, 0
    while run.done < length:
        start = run.done
        end = min(start + decoder.tokens, length - 1)  # the model adds one token itself
        proposed = []
        for position in range(start, end):
            draft.done = position
            token, q = _draw(
                run, draft.output(position + 1), position, 2 * rounds, return_probabilities=True
            )
            draft.known = position + 1
            x[:, position : position + 1] = token
            proposed.append(q)
        output = run.output(end + 1)
        if not proposed:
            x[:, start:] = _draw(run, output, start, 2 * rounds)
            run.advance(1)
            break
        p, q = run.sampling.probabilities(output), _join(proposed)
        tokens, _, kept = ops.speculative_accept(
            p,
            q,
            x[:, start:end],
            mode="chain",
            seed=run.seed,
            offset=2 * rounds + 1,
            first_sample=run.first_sample,
        )
        counts = to_numpy(kept)
        step = int(counts.min(initial=end - start)) + 1
        x[:, start : start + step] = tokens[:, :step]
        run.advance(step)
        # Rows of the draft that read a token which was replaced are void.
        draft.known = min(draft.known, run.done)
        accepted += float(counts.mean()) if len(counts) else 0.0
        drafted += end - start
        rounds += 1
    return RasterResult(run.x, run.passes, draft.passes, accepted, drafted)


def _join(parts: list[Array]) -> Array:
    """Arrays (B, 1, V) side by side."""
    out = empty(parts[0], (parts[0].shape[0], len(parts), parts[0].shape[2]))
    for i, part in enumerate(parts):
        out[:, i : i + 1] = part
    return out
