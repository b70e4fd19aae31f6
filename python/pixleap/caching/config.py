"""What to cache, and on which steps: the configurations that `apply_cache` takes.

Steps are calls of the module within a run and a context, counted from 0. A full step computes every
block and records; the others take what was recorded in the place of blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from .ring import FeatureRing

Span = tuple[int, int, int]  # stage (position of its block list), first block, last block


@dataclass(frozen=True, kw_only=True)
class _Schedule:
    """Which steps are full.

    Args:
        interval: after the warm-up every interval-th step is full: steps first - 1 + k * interval.
            1 makes every step full. TaylorSeer's counting.
        first: steps of the warm-up, all full; at least 1.
        last: final steps, all full; needs `steps`.
        steps: length of a run, None where it is not known; more calls than that are then an error
            (a forgotten `reset`).
        full_steps: in the place of the four: the full steps as a collection of numbers with 0
            among them, or a function from the step to whether it is full.
    """

    interval: int = 5
    first: int = 1
    last: int = 0
    steps: int | None = None
    full_steps: Collection[int] | Callable[[int], bool] | None = None

    def __post_init__(self) -> None:
        self._integer("interval", self.interval, 1)
        self._integer("first", self.first, 1)
        self._integer("last", self.last, 0)
        if self.steps is not None:
            self._integer("steps", self.steps, 1)
        elif self.last:
            raise self._error("steps", "a number of steps, which 'last' needs", None)
        if self.full_steps is not None and not callable(self.full_steps):
            object.__setattr__(self, "full_steps", frozenset(self.full_steps))
        if not self.is_full(0):
            raise self._error("full_steps", "step 0 among them", self.full_steps)

    def is_full(self, step: int) -> bool:
        """Whether a step computes and records every block."""
        if callable(self.full_steps):
            return bool(self.full_steps(step))
        if self.full_steps is not None:
            return step in self.full_steps
        if step < self.first or (self.steps is not None and step >= self.steps - self.last):
            return True
        return (step - self.first + 1) % self.interval == 0

    def _integer(self, name: str, value: object, least: int) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self._error(name, f"an integer >= {least}", value)

    def _error(self, name: str, expected: str, got: object) -> ValueError:
        return ValueError(
            f"{type(self).__name__}: argument '{name}' expected {expected}, got {got!r}"
        )


@dataclass(frozen=True, kw_only=True)
class Forecast(_Schedule):
    """Forecasts what all blocks together do, from the full steps before.

    TaylorSeer keeps factors for the attention and the MLP of every block. Forecasts are linear in
    the features, so the sum of the blocks' forecasts is the forecast of their sum: one ring per
    list of blocks is enough, with as many times less memory and traffic as there are blocks (but
    for adaLN's gates, which TaylorSeer computes anew and which are part of the feature here).

    Args:
        interval, first, last, steps, full_steps: as in `_Schedule`: full are the first `first`
            steps, every interval-th after them, the last `last` of `steps`; or `full_steps`.
        order: 0 to 4, of the forecast.
        formula: "lagrange", or "taylor" for TaylorSeer's.
        target: "residual" forecasts what the blocks add and puts it on their input, computed anew
            at each step; "output" forecasts what the last block returns, and needs to know nothing
            about the blocks' arguments.
        max_amplification: as in `FeatureRing`. 32 leaves an order of 4 alone over a whole interval
            and lowers the order of long reaches after a dense warm-up.

    Source: Liu et al., TaylorSeer (arXiv 2503.06923), for the schedule and the idea.
    """

    order: int = 2
    formula: str = "lagrange"
    target: str = "residual"
    max_amplification: float | None = 32.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.ring()
        if self.target not in ("residual", "output"):
            raise self._error("target", "'residual' or 'output'", self.target)

    def ring(self) -> FeatureRing:
        return FeatureRing(
            self.order,
            formula=self.formula,
            copy=self.target == "output",
            max_amplification=self.max_amplification,
        )

    def groups(self, lengths: list[int]) -> dict[str, list[Span]]:
        return {"all": _split(lengths, 0, sum(lengths))}

    def skipped(self, step: int) -> str | None:
        """The group of spans that a step skips; None on full steps."""
        return None if self.is_full(step) else "all"


@dataclass(frozen=True, kw_only=True)
class DeltaCache(_Schedule):
    """Delta-DiT: skips the rear blocks early in sampling and the front blocks later.

    A full step records the delta of `blocks` blocks (their output less their input). The others
    compute the rest of the blocks and add that delta to what they have: for the rear blocks before
    step `boundary`, as details do not matter yet, for the front blocks from it on, when the outline
    stands. Both deltas are recorded at each full step, so the boundary may lie anywhere.

    The blocks must form a chain: models with long skips from front to rear blocks (HunyuanDiT) get
    wrong inputs where the front is skipped.

    Args:
        blocks: how many blocks are skipped, counted over all lists of blocks.
        boundary: the first step that skips front blocks.
        interval, first, last, steps, full_steps: as in `_Schedule`; the paper's N is `interval`.

    Source: Chen et al., Delta-DiT: A Training-Free Acceleration Method Tailored for Diffusion
    Transformers (arXiv 2406.01125), section on stage-adaptive acceleration; no official code is
    public.
    """

    blocks: int
    boundary: int
    interval: int = 2

    target = "residual"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._integer("blocks", self.blocks, 1)
        self._integer("boundary", self.boundary, 0)

    def ring(self) -> FeatureRing:
        return FeatureRing(0)

    def groups(self, lengths: list[int]) -> dict[str, list[Span]]:
        total = sum(lengths)
        if self.blocks > total:
            raise self._error("blocks", f"at most the {total} blocks of the module", self.blocks)
        return {
            "rear": _split(lengths, total - self.blocks, total),
            "front": _split(lengths, 0, self.blocks),
        }

    def skipped(self, step: int) -> str | None:
        """The group of spans that a step skips; None on full steps."""
        if self.is_full(step):
            return None
        return "rear" if step < self.boundary else "front"


@dataclass(frozen=True, kw_only=True)
class FirstBlockCache:
    """Runs the first block, and the others only where its residual has changed enough.

    The change is |r - r0| / |r0| over the whole batch: r is what the first block adds to the hidden
    states now, r0 at the last step computed in full. Below the threshold the residual of all other
    blocks is put on the first one's output.

    Args:
        threshold: of the change; 0 computes every step. Usual values are 0.05 to 0.2.
        norm: "l1" as ParaAttention and diffusers have it, so that their thresholds hold; "l2" takes
            `pixleap.ops.moments`.
        first: steps at the start that are computed whatever the change.
        order, formula, max_amplification: 0 reuses the residual as the sources do; above, the
            residual is forecast from the last order + 1 computed ones.
        steps: length of a run, None where it is not known; more calls are then an error.

    Source: github.com/chengzeyi/ParaAttention, first block cache; diffusers
    hooks/first_block_cache.py (which compares with >, and reuses at a change equal to the
    threshold).
    """

    threshold: float = 0.05
    norm: str = "l1"
    first: int = 0
    order: int = 0
    formula: str = "lagrange"
    max_amplification: float | None = 32.0
    steps: int | None = None

    target = "residual"

    def __post_init__(self) -> None:
        if not isinstance(self.threshold, (int, float)) or not self.threshold >= 0:
            raise ValueError(
                "FirstBlockCache: argument 'threshold' expected a number >= 0, "
                f"got {self.threshold!r}"
            )
        if self.norm not in ("l1", "l2"):
            raise ValueError(
                f"FirstBlockCache: argument 'norm' expected 'l1' or 'l2', got {self.norm!r}"
            )
        self.ring()

    def ring(self) -> FeatureRing:
        return FeatureRing(
            self.order, formula=self.formula, max_amplification=self.max_amplification
        )

    def groups(self, lengths: list[int]) -> dict[str, list[Span]]:
        if sum(lengths) < 2:
            raise ValueError(
                f"FirstBlockCache: expected a module of at least 2 blocks, got {sum(lengths)}"
            )
        return {"tail": _split(lengths, 1, sum(lengths))}

    def skipped(self, step: int) -> str | None:
        """None: the first block decides."""
        return None


Config = Forecast | DeltaCache | FirstBlockCache


def _split(lengths: list[int], begin: int, end: int) -> list[Span]:
    """Blocks [begin, end) of all lists together as spans within lists."""
    spans, offset = [], 0
    for stage, length in enumerate(lengths):
        first, last = max(begin - offset, 0), min(end - offset, length) - 1
        if first <= last:
            spans.append((stage, first, last))
        offset += length
    return spans
