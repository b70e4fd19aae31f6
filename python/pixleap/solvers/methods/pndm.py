"""PNDM: linear multistep on predicted noise, transferred by DDIM's formula."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..method import Step, Value, method
from ..schedule import Point
from ..weights import combine
from .adams import _AB

Moves = Sequence[tuple[Point, Point]]


@method(
    "plms",
    prediction="noise",
    order=4,
    history=3,
    source="Liu et al. 2022, arXiv 2202.09778, F-PNDM started as in Stable Diffusion",
)
def plms(s: Step, x: Value, *, order: int = 4, moves: Moves = ()) -> Any:
    """moves: the point that the noise moves the sample from and to, for every evaluation (step 0
    has two), where they are not the grid's."""
    if s.index:
        a, b = moves[s.index + 1] if moves else (s.now, s.next)
        e = yield x, s.now
        nodes = s.nodes(e)
        return s.move(x, combine(_AB[len(nodes) - 1], [value for value, _ in nodes]), a, b)
    (a, b), (c, d) = moves[:2] if moves else [(s.now, s.next)] * 2
    e = yield x, s.now
    ahead = yield s.move(x, e, a, b), s.next
    return s.move(x, (e + ahead) / 2, c, d)


@method(
    "pndm",
    prediction="noise",
    order=4,
    history=3,
    source="Liu et al. 2022, arXiv 2202.09778, S-PNDM: three pseudo Runge-Kutta steps, then PLMS",
)
def pndm(s: Step, x: Value, *, order: int = 4, half: int = 0, ends: Moves = ()) -> Any:
    """half: times between a step's begin and its middle, where that is not the midpoint.

    ends: (from, to) of every step, where they are not the grid's.
    """
    a, b = ends[s.index] if ends else (s.now, s.next)
    if s.index > 2:
        e = yield x, s.now
        nodes = s.nodes(e)
        return s.move(x, combine(_AB[len(nodes) - 1], [value for value, _ in nodes]), a, b)
    at = s.schedule.at_time
    if half:  # diffusers: times are whole, so that the two middles may differ by one
        reached, middle = at(a.time - half), at(s.next.time + half)
    else:
        reached = middle = at((a.time + b.time) / 2)
    e1 = yield x, s.now
    e2 = yield s.move(x, e1, a, reached), middle
    e3 = yield s.move(x, e2, a, middle), middle
    e4 = yield s.move(x, e3, a, b), s.next
    return s.move(x, (e1 + (e2 + e3) * 2 + e4) / 6, a, b)
