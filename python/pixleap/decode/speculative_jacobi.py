"""Speculative Jacobi decoding: Jacobi sweeps whose tokens are kept by a draw, not by equality.

Every pass evaluates a window of positions from the present tokens. Position l holds a token that
the pass before drew from q_l, and gets a new distribution p_l: the token stays with probability
min(1, p_l / q_l), else it is replaced by a draw from (p_l - q_l)+ (the rule of speculative
sampling, Leviathan et al. 2023, arXiv:2211.17192). The window moves past the tokens that stayed
and the first that did not. A position that enters the window holds a guess, with a q that has all
its weight on it.

What it is: other tokens than the loop's with the same seed, of the loop's distribution, exactly.
Given all that ever happened before it, the token of position l follows p_l after each pass, as the
keep-or-replace step carries q_l over to p_l; and which pass is the last for l depends on earlier
positions only. It is approximate where p and q are not what was drawn from: a model whose logits
depend on how many positions it is asked for, or float32 probabilities, to their rounding.

coupling says what becomes of the tokens after the first that did not stay:
- "none": drawn anew from p_l, as in Speculative Jacobi Decoding (Teng et al. 2024,
  arXiv:2410.01699; code tyshiwo1/Accelerating-T2I-AR-with-SJD).
- "maximal": kept or replaced by the same rule, so that tokens settle and fewer passes are needed
  (MC-SJD, So et al. 2025, arXiv:2510.24211).

`Frontier` in `raster` couples passes by noise fixed beforehand, and gives the loop's tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import ops
from .._arrays import Array, empty
from .raster import Progress, RasterModel, RasterResult, _Run
from .token_draws import TokenSampling, as_array, check_tokens, to_numpy

COUPLINGS = ("none", "maximal")


@dataclass(frozen=True)
class SpeculativeJacobi:
    """window: positions that a pass evaluates. coupling: "none" or "maximal", see above. guess:
    (B, length) int64 tokens to start from; None for the row above (position l - width, width > 0)
    or zeros.

    The samples of a batch advance together, by the least that any of them allows."""

    window: int = 16
    coupling: str = "maximal"
    guess: Array | None = None
    width: int = 0

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(
                f"SpeculativeJacobi: window expected an integer >= 1, got {self.window}"
            )
        if self.coupling not in COUPLINGS:
            raise ValueError(
                f"SpeculativeJacobi: coupling expected one of {', '.join(COUPLINGS)}, "
                f"got {self.coupling!r}"
            )
        if self.width < 0:
            raise ValueError(f"SpeculativeJacobi: width expected an integer >= 0, got {self.width}")


def speculative_jacobi(
    model: RasterModel,
    prompt: Array,
    length: int,
    *,
    decoder: SpeculativeJacobi | None = None,
    seed: int = 0,
    first_sample: int = 0,
    progress: Progress | None = None,
    **sampling: Any,
) -> RasterResult:
    """Continues token sequences; arguments and errors as those of `pixleap.decode.raster`.

    Args:
        decoder: by default `SpeculativeJacobi()`.
        seed, first_sample: a sample alone and in a batch take other passes, so other tokens.

    Returns:
        `RasterResult`; `drafted` counts the tokens that a sample put to the test, `accepted` those
        that stayed before the first that did not, on average over the batch.
    """
    batch, given = check_tokens("speculative_jacobi", "prompt", prompt)
    if length < given:
        raise ValueError(
            f"speculative_jacobi: argument 'length' expected at least {given}, got {length}"
        )
    decoder = decoder or SpeculativeJacobi()
    x = empty(prompt, (batch, length))
    x[:, :given] = prompt
    x[:, given:] = 0
    if decoder.guess is not None:
        size = check_tokens("speculative_jacobi", "guess", decoder.guess)
        if size != (batch, length):
            raise ValueError(
                f"speculative_jacobi: argument 'guess' expected {(batch, length)}, got {size}"
            )
        x[:, given:] = decoder.guess[:, given:]
    run = _Run(model, x, given, TokenSampling(**sampling), seed, first_sample, progress)
    return sweep(run, decoder)


def sweep(run: _Run, decoder: SpeculativeJacobi) -> RasterResult:
    """Passes until all positions of `run` are done."""
    x, accepted, drafted = run.x, 0.0, 0
    q: Array | None = None  # of the positions done, done + 1, ... that the pass before has seen
    while run.done < run.length:
        done, end = run.done, min(run.done + decoder.window, run.length)
        seen = 0 if q is None else q.shape[1]
        if decoder.guess is None and decoder.width:
            for column in range(max(done + seen, decoder.width), end):
                x[:, column] = x[:, column - decoder.width]
        output = run.output(end)
        p = run.sampling.probabilities(output)
        tokens, kept = _verify(run, decoder, output, p, _drafts(x[:, done + seen : end], q, p))
        x[:, done:end] = tokens
        step = min(int(kept.min(initial=end - done)) + 1, end - done)
        accepted += float(kept.mean()) if len(kept) else 0.0
        drafted += end - done
        q = p[:, step:]
        run.advance(step)
    return RasterResult(x, run.passes, accepted=accepted, drafted=drafted)


def _drafts(guesses: Array, q: Array | None, p: Array) -> Array:
    """q of the positions seen before, then all weight on the guess: (B, n, V)."""
    out = empty(p, tuple(p.shape))
    seen = 0 if q is None else q.shape[1]
    if q is not None:
        out[:, :seen] = q
    sure = np.eye(p.shape[2], dtype=np.float32)[to_numpy(guesses)]
    out[:, seen:] = as_array(sure, p)
    return out


def _verify(
    run: _Run, decoder: SpeculativeJacobi, output: Any, p: Array, q: Array
) -> tuple[Array, np.ndarray]:
    """Tokens (B, n) that follow p, and how many stayed before the first that did not."""
    start = run.done
    present = run.x[:, start : start + p.shape[1]]
    key: dict[str, Any] = {"seed": run.seed, "first_sample": run.first_sample}
    mode = "token" if decoder.coupling == "maximal" else "chain"
    tokens, _, kept = ops.speculative_accept(
        p, q, present, mode=mode, offset=2 * run.passes + 1, **key
    )
    if mode == "chain":  # nothing holds after the first replacement
        position = {"first_position": start, "length": run.length}
        anew = run.sampling.draw(output, offset=2 * run.passes, **key, **position)
        void = tokens < 0
        tokens[void] = anew[void]
    return tokens, to_numpy(kept)
