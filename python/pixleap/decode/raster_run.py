"""What the decoders of raster-order tokens share: models, first guesses, a sequence in progress."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from .._arrays import Array
from .token_draws import TokenSampling, check_tokens, rows_of
from .triangular import check_option

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
class RowAbove:
    """The first guess of token l is token l - width, as it is when a window reaches l; zero in the
    first row. For `Frontier(init=RowAbove(width))`."""

    width: int

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"RowAbove: argument 'width' expected >= 1, got {self.width}")


class Guess:
    """First guesses of the tokens of x (B, length) from `first` on, written into it: zero ("z",
    "zero"), the row above where a window first reaches it, or given tokens (B, length).

    Raises:
        ValueError: tokens of another shape, an unknown name. TypeError: tokens that are not int64.
    """

    def __init__(self, x: Array, first: int, init: Any) -> None:
        self.x, self.reached = x, first
        self.width = init.width if isinstance(init, RowAbove) else 0
        if isinstance(init, str):
            check_option(
                "raster", "init", init in ("z", "zero"), "'zero', RowAbove or tokens", init
            )
        elif not isinstance(init, RowAbove):
            size = check_tokens("raster", "init", init)
            check_option("raster", "init", size == tuple(x.shape), f"shape {tuple(x.shape)}", size)
            x[:, first:] = init[:, first:]

    def reach(self, end: int) -> None:
        """A window goes as far as `end`."""
        if self.width:
            for column in range(max(self.reached, self.width), end):
                self.x[:, column] = self.x[:, column - self.width]
        self.reached = max(self.reached, end)


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
class RasterRun:
    """A sequence in progress."""

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
        """Tokens of a whole sequence."""
        return int(self.x.shape[1])

    def output(self, end: int) -> Any:
        """Logits of the positions done .. end - 1."""
        output = self.model(self.x[:, : end - 1], self.known)
        self.passes += 1
        skip = self.done - self.known
        return rows_of(output, (slice(None), slice(skip, None))) if skip else output

    def advance(self, count: int) -> None:
        """The next `count` positions are exact."""
        self.done += count
        self.known = self.done
        if self.progress is not None:
            self.progress(self.done, self.length)
