"""Raster-scan decoding of autoregressive token models: one token after the other, or several per
model pass with the same result.

- Jacobi: with the Gumbel noise of every position fixed beforehand, token l is a function of the
  tokens before it, x_l = argmax(logits_l(x_<l) + noise_l). All positions of a window are evaluated
  at once from the present guess, until it no longer changes. The fixed point is unique and is what
  the sequential loop gives, token for token (Song et al. 2021, arXiv:2002.03629; for images without
  fixed noise, so not exact: Teng et al. 2024, arXiv:2410.01699). Every pass makes at least the
  first token of the window exact, so it never takes more passes than the loop.
- Speculative: a cheaper model drafts, the model that counts verifies all drafts in one pass. Other
  tokens than the loop's, of the same distribution (Leviathan et al. 2023, arXiv:2211.17192).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from .. import ops
from .._arrays import Array, empty
from .token_draws import TokenSampling, check_tokens, rows_of, to_numpy

Progress = Callable[[int, int], None]


class RasterModel(Protocol):
    """Anything that can be called so; a plain function that computes all positions each time will
    do."""

    def __call__(self, tokens: Array, start: int) -> Any:
        """Logits of the positions start, start + 1, ..., n, given the tokens before them.

        Args:
            tokens: (B, n) int64, positions 0 .. n - 1. n may be 0.
            start: 0 .. n. A call with `start` follows earlier ones that covered all positions
                before it, and tokens[:, : start - 1], which those read, have not changed since: a
                model with a `pixleap.KVCache` rolls back to `start` rows and feeds the rest.

        Returns:
            (B, n + 1 - start, V): row i is of position start + i and depends on
            tokens[:, : start + i]; or with guidance the pair (logits, logits without condition).
        """


@dataclass(frozen=True)
class Jacobi:
    """window: positions that a pass evaluates beyond the exact prefix. guess: (B, length) int64
    tokens to start from; None for the row above (position l - width, width > 0) or zeros. A good
    guess saves passes and changes nothing else."""

    window: int = 16
    guess: Array | None = None
    width: int = 0

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"Jacobi: window expected an integer >= 1, got {self.window}")
        if self.width < 0:
            raise ValueError(f"Jacobi: width expected an integer >= 0, got {self.width}")


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


@dataclass
class RasterResult:
    """tokens (B, length) int64; passes of the model, of the draft model; drafted tokens of a sample
    that were accepted and drafted, on average over the batch."""

    tokens: Array
    passes: int
    draft_passes: int = 0
    accepted: float = 0.0
    drafted: int = 0


@dataclass
class _Run:
    model: RasterModel
    x: Array  # (B, length): exact before `done`, then guesses
    done: int
    sampling: TokenSampling
    seed: int
    first_sample: int
    progress: Progress | None
    passes: int = 0
    known: int = 0  # positions whose rows the model has computed from tokens that are exact

    @property
    def length(self) -> int:
        return int(self.x.shape[1])

    def output(self, end: int) -> Any:
        """Logits of the positions done .. end - 1."""
        output = self.model(self.x[:, : end - 1], self.known)
        self.passes += 1
        skip = self.done - self.known
        return rows_of(output, (slice(None), slice(skip, None))) if skip else output

    def advance(self, count: int) -> None:
        self.done += count
        self.known = self.done
        if self.progress is not None:
            self.progress(self.done, self.length)


def raster(
    model: RasterModel,
    prompt: Array,
    length: int,
    *,
    decoder: Jacobi | Speculative | None = None,
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
        decoder: None takes one token per pass. `Jacobi()` gives the same tokens in fewer passes,
            provided that the model's logits do not depend on how many positions it is asked for.
            `Speculative(draft)` gives the same distribution.
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
    batch, given = check_tokens("raster", "prompt", prompt)
    if length < given:
        raise ValueError(f"raster: argument 'length' expected at least {given}, got {length}")
    x = empty(prompt, (batch, length))
    x[:, :given] = prompt
    x[:, given:] = 0
    run = _Run(model, x, given, TokenSampling(**sampling), seed, first_sample, progress)
    if isinstance(decoder, Speculative):
        return _speculative(run, decoder)
    _fixed_point(run, decoder or Jacobi(window=1))
    return RasterResult(run.x, run.passes)


def _draw(run: _Run, output: Any, start: int, offset: int, **options: Any) -> Any:
    """Tokens of the positions from `start` on, with noise of their own."""
    key = {"seed": run.seed, "offset": offset, "first_sample": run.first_sample}
    position = {"first_position": start, "length": run.length}
    return run.sampling.draw(output, **key, **position, **options)


def _agreement(a: Array, b: Array) -> int:
    """How many leading columns of a and b (B, n) are the same throughout the batch."""
    same = (to_numpy(a) == to_numpy(b)).all(0)
    return int(np.argmin(same)) if not same.all() else len(same)


def _fixed_point(run: _Run, decoder: Jacobi) -> None:
    x, length = run.x, run.length
    if decoder.guess is not None:
        size = check_tokens("raster", "guess", decoder.guess)
        if size != tuple(x.shape):
            raise ValueError(f"raster: argument 'guess' expected {tuple(x.shape)}, got {size}")
        x[:, run.done :] = decoder.guess[:, run.done :]
    guessed = run.done  # the window has been as far as this
    while run.done < length:
        done, end = run.done, min(run.done + decoder.window, length)
        if decoder.guess is None and decoder.width and end > guessed:
            for column in range(max(guessed, decoder.width), end):
                x[:, column] = x[:, column - decoder.width]
        guessed = max(guessed, end)
        drawn = _draw(run, run.output(end), done, 0)
        # Position done + i is exact if those before it were guessed right.
        right = _agreement(drawn[:, :-1], x[:, done : end - 1])
        x[:, done:end] = drawn
        run.advance(right + 1)


def _speculative(run: _Run, decoder: Speculative) -> RasterResult:
    x, length = run.x, run.length
    draft = _Run(decoder.draft, x, run.done, run.sampling, run.seed, run.first_sample, None)
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
