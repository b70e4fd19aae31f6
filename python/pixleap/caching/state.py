"""What a cache keeps: over its life, per run and context, and per call of the module."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .ring import FeatureRing


@dataclass
class Statistics:
    """Calls since the last `reset`.

    full, forecast: calls of the module that computed every block, and that skipped some.
    blocks_computed, blocks_saved: calls of blocks.
    changes: FirstBlockCache's relative changes, one per call after the first.
    """

    full: int = 0
    forecast: int = 0
    blocks_computed: int = 0
    blocks_saved: int = 0
    changes: list[float] = field(default_factory=list)


@dataclass
class Span:
    """Blocks first to last (positions over all lists) that are skipped together."""

    group: str
    first: int
    last: int


@dataclass
class Run:
    """State of one context within a sampling run."""

    rings: list[FeatureRing]
    shapes: dict[int, dict[str, tuple[int, ...]]] = field(default_factory=dict)  # by span
    step: int = 0
    head: Tensor | None = None  # FirstBlockCache: the first block's residual when last computed


@dataclass
class Call:
    """State of one call of the module."""

    run: Run
    time: float
    skip: str | None  # the group that is skipped
    record: bool
    inputs: dict[int, dict[str, Tensor]] = field(default_factory=dict)  # by span
    outputs: dict[int, Any] = field(default_factory=dict)  # by span, when forecasting outputs
    done: set[int] = field(default_factory=set)  # spans recorded or skipped
    computed: int = 0
    saved: int = 0
