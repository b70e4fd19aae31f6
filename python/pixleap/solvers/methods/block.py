"""DPM-Solver in blocks of grid steps: the later points of a block are the stages of its method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..method import Step, Value, method
from ..schedule import choose
from .exponential import integrate, spread, with_differences


def _block(
    s: Step,
    m0: Value,
    x: Value,
    *,
    sample: bool,
    order: int,
    tau: float,
    solver_type: str,
    blocks: Sequence[int],
) -> Any:
    choose(solver_type, ("midpoint", "heun"), "dpm_solver_block", "solver_type")
    skipped = 1 if s.points[0].alpha == 0 else 0  # pure noise is no node: a block of its own
    place = blocks[s.index] if blocks else max(0, s.index - skipped) % order + 1
    if s.next.sigma == 0 and not blocks:
        place = 1
    place = min(place, s.index + 1)
    nodes = [(m0, s.now), *s.past][:place]  # the last one begins the block
    begin = nodes[-1]
    base = x if place == 1 else s.state["x"]
    if place == 1 or (s.consistent and (place == 3 or solver_type == "heun")):
        x = integrate(s, base, nodes, sample=sample, tau=tau, start=begin[1])
    else:
        h = s.next.lam - begin[1].lam
        (m_begin, p_begin), (m, p) = begin, nodes[0]
        r0 = (p.lam - p_begin.lam) / h
        d1, d2 = (m - m_begin) / r0, None
        if place == 3 and solver_type == "heun":
            r1 = (nodes[1][1].lam - p_begin.lam) / h
            inner = (nodes[1][0] - m_begin) / r1
            d1, d2 = (inner * r0 - d1 * r1) / (r0 - r1), (d1 - inner) * (2 / (r0 - r1))
        midpoint = place == 2 and solver_type == "midpoint"
        x = with_differences(s, base, begin, d1, d2, sample=sample, tau=tau, midpoint=midpoint)
    noise = spread(s, tau, sample, begin[1])
    return x + s.noise() * noise if noise else x, {"x": base}


@method(
    "dpmpp_block",
    prediction="sample",
    order=2,
    history=None,
    source="Lu et al. 2022, arXiv 2211.01095, singlestep over the grid, as diffusers runs it",
)
def dpmpp_block(
    s: Step,
    x: Value,
    *,
    order: int = 2,
    tau: float = 0.0,
    solver_type: str = "midpoint",
    blocks: Sequence[int] = (),
) -> Any:
    """blocks: the place 1, 2, ... of every step in its block; default 1 ... order, repeated."""
    m0 = yield x, s.now
    return _block(
        s, m0, x, sample=True, order=order, tau=tau, solver_type=solver_type, blocks=blocks
    )


@method(
    "dpm_solver_block",
    prediction="noise",
    order=2,
    history=None,
    source="Lu et al. 2022, arXiv 2206.00927, singlestep over the grid, as diffusers runs it",
)
def dpm_solver_block(
    s: Step,
    x: Value,
    *,
    order: int = 2,
    solver_type: str = "midpoint",
    blocks: Sequence[int] = (),
) -> Any:
    e0 = yield x, s.now
    return _block(
        s, e0, x, sample=False, order=order, tau=0.0, solver_type=solver_type, blocks=blocks
    )
