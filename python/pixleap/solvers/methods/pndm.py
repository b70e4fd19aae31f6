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
def pndm(s: Step, x: Value, *, order: int = 4, moves: Moves = ()) -> Any:
    """moves: the point that the noise moves the sample from and to, for every evaluation (steps 0
    to 2 have four), where they are not the grid's."""
    if s.index > 2:
        a, b = moves[s.index + 9] if moves else (s.now, s.next)
        e = yield x, s.now
        nodes = s.nodes(e)
        return s.move(x, combine(_AB[len(nodes) - 1], [value for value, _ in nodes]), a, b)
    if moves:
        (a, first), (_, second), (_, third), (_, b) = moves[4 * s.index : 4 * s.index + 4]
    else:
        a, b = s.now, s.next
        first = second = s.schedule.at_time((a.time + b.time) / 2)
        third = b
    e1 = yield x, s.now
    e2 = yield s.move(x, e1, a, first), second
    e3 = yield s.move(x, e2, a, second), second
    e4 = yield s.move(x, e3, a, third), s.next
    return s.move(x, (e1 + (e2 + e3) * 2 + e4) / 6, a, b)
