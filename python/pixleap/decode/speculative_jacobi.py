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
from .raster_run import Guess, RasterResult, RasterRun
from .token_draws import as_array, to_numpy

COUPLINGS = ("none", "maximal")


@dataclass(frozen=True)
class SpeculativeJacobi:
    """A decoder of `raster`. window: positions that a pass evaluates. coupling: "none" or
    "maximal", see above. init: first guesses: "zero", `RowAbove(width)`, or (B, length) int64.

    The samples of a batch advance together, by the least that any of them allows; so a sample alone
    and in a batch takes other passes, and other tokens. In the `RasterResult`, `drafted` counts the
    tokens that a sample put to the test, `accepted` those that stayed before the first that did
    not, on average over the batch."""

    window: int = 16
    coupling: str = "maximal"
    init: Any = "zero"

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


def speculative_jacobi(run: RasterRun, decoder: SpeculativeJacobi) -> RasterResult:
    """Passes until all positions of `run` are done."""
    x, accepted, drafted = run.x, 0.0, 0
    guess = Guess(x, run.done, decoder.init)
    q: Array | None = None  # of the positions done, done + 1, ... that the pass before has seen
    while run.done < run.length:
        done, end = run.done, min(run.done + decoder.window, run.length)
        seen = 0 if q is None else q.shape[1]
        guess.reach(end)
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
    run: RasterRun, decoder: SpeculativeJacobi, output: Any, p: Array, q: Array
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
