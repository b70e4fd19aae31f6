"""Windows and first guesses of a flow, picked from measured costs and contraction. No data needed:
the noise that a flow is sampled from is all that its blocks ever see."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .. import ops
from .flow_block import FlowSystem, Guidance
from .triangular import TriangularResult
from .triangular_solvers import Frontier

if TYPE_CHECKING:
    from .flow import FlowDecoder


@dataclass(frozen=True)
class LinearGuess:
    """x_t is guessed as scale_t * z_t + shift_t, per token and channel; (T, P) each."""

    scale: Tensor
    shift: Tensor

    def guess(self, noise: Tensor) -> Tensor:
        """(B, T, P) -> (B, T, P)."""
        return noise * self.scale.to(noise.device) + self.shift.to(noise.device)

    @classmethod
    def fit(cls, z: Tensor, x: Tensor) -> LinearGuess:
        """Least squares over the samples of (B, T, P)."""
        mean_z, mean_x = z.mean(dim=0), x.mean(dim=0)
        dz = z - mean_z
        scale = (dz * (x - mean_x)).sum(dim=0) / dz.square().sum(dim=0).clamp(min=1e-12)
        return cls(scale, mean_x - scale * mean_z)


@dataclass(frozen=True)
class FlowPlan:
    """How to invert a flow fast on one machine; made by `FlowDecoder.calibrate`.

    Attributes (lists have one entry per block, in sampling order):
        batch, halves: samples, and 2 with guidance, that it was measured for.
        tol: of the solution whose sweeps were counted.
        windows: the fastest ones, tokens.
        predicted, sequential: seconds with them, and of one token at a time.
        cost: [rows, seconds] of a sweep.
        linear: scales and shifts (T, P) of `LinearGuess` as nested lists; empty if not fitted.
    """

    batch: int
    halves: int
    tol: float
    windows: list[int]
    predicted: list[float]
    sequential: list[float]
    cost: list[list[float]]
    linear: list[list[list[list[float]]]] = field(default_factory=list)

    def solver(self, init: str = "z", **options: Any) -> Frontier:
        """A `Frontier` with these windows. init: its own names, or "linear" for the fitted guess.

        Raises:
            ValueError: "linear" where none was fitted.
        """
        guess: Any = init
        if init == "linear":
            if not self.linear:
                raise ValueError(
                    "FlowPlan.solver: argument 'init' expected 'z' or 'zero', got 'linear', which "
                    "this plan was not calibrated for (calibrate(..., linear=True))"
                )
            guess = [LinearGuess(*(torch.tensor(v) for v in pair)) for pair in self.linear]
        return Frontier(**{"tol": self.tol, "window": self.windows, "init": guess, **options})

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> FlowPlan:
        """Raises ValueError for another text than `to_json` gives."""
        try:
            return cls(**json.loads(text))
        except (TypeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"FlowPlan.from_json: argument 'text' expected what to_json gives, got: {error}"
            ) from error


class _Costs:
    """Seconds of a sweep by its rows: measured half-way through the block, linear in between."""

    def __init__(self, system: FlowSystem, rounds: int) -> None:
        batch, tokens = system.batch, system.length - system.first
        everyone = np.arange(batch)
        widths = sorted({min(2**i, tokens) for i in range(tokens.bit_length() + 1)})
        self.rows = [system.rows * batch * w for w in widths]
        times: list[list[float]] = [[] for _ in widths]
        for _ in range(rounds + 1):  # the first one warms up
            for w, row in zip(widths, times, strict=True):
                begin = np.full(batch, system.first + (tokens - w) // 2)
                start = time.perf_counter()
                system.evaluate(everyone, begin, begin + w)
                row.append(time.perf_counter() - start)
        self.seconds = [min(row[1:]) for row in times]  # what other load adds is not the sweep's

    def of(self, result: TriangularResult, rows: int) -> float:
        """Seconds of all sweeps; rows: per token."""
        counts = np.array(result.tokens, float) * rows
        return float(np.interp(counts, self.rows, self.seconds).sum())


def _fastest(cost: Any, most: int) -> tuple[int, float]:
    """The narrowest power of two (or `most`) within 2 % of the least cost. Narrow windows, which
    need many sweeps, are only tried while they gain."""
    wide = [w for w in (8 << i for i in range(most.bit_length())) if w < most]
    known = {w: cost(w) for w in [*wide, most]}
    window = min(known)
    while window > 1 and known[window] <= min(known.values()):
        window //= 2
        known[window] = cost(window)
    least = min(known.values())
    return min((w, seconds) for w, seconds in known.items() if seconds <= 1.02 * least)


@torch.no_grad()
def calibrate(
    decoder: FlowDecoder,
    batch: int,
    *,
    tol: float = 1e-4,
    guidance: float = 0.0,
    guide_what: str = "ab",
    attn_temp: float = 1.0,
    annealed_guidance: bool = False,
    linear: bool = False,
    seed: int = 0,
    rounds: int = 7,
) -> FlowPlan:
    """Solves random noise block by block: the cost of a sweep is measured by the clock for some
    numbers of rows, the sweeps that a window needs are counted, and the fastest window is kept.

    Args:
        decoder: the flow.
        batch: samples at a time; at least 1.
        tol: of the solutions.
        guidance, guide_what, attn_temp, annealed_guidance: as in sampling.
        linear: fit first guesses, too, on 64 samples or a batch.
        seed: of noise and labels.
        rounds: sweeps timed for each number of rows.

    Raises:
        ValueError: a batch below 1.
    """
    model = decoder.model
    if model.num_patches < 2:
        raise ValueError("FlowDecoder.calibrate: expected a flow of 2 or more tokens, got 1")
    if batch < 1:
        raise ValueError(f"FlowDecoder.calibrate: argument 'batch' expected >= 1, got {batch}")
    count = len(decoder.blocks)
    guided = Guidance(guidance, guide_what, attn_temp, annealed_guidance)
    samples = max(batch, 64) if linear else batch
    z = ops.random_normal((samples, *model.var.shape), seed=seed, like=model.var)
    x = z * model.var.sqrt()
    labels = None
    if model.num_classes:
        labels = torch.arange(samples, device=model.var.device) % model.num_classes
    plan = FlowPlan(batch, guided.halves, tol, [], [], [], [])
    for index in range(count):
        block = model.blocks[count - 1 - index]
        noise = block.order(x)
        system = decoder.system(index, None if labels is None else labels[:batch], guided, batch)
        few, most = noise[:batch], system.length - system.first
        system.begin(few, "z")
        costs = _Costs(system, rounds)

        def cost(
            window: int, system: FlowSystem = system, few: Tensor = few, costs: _Costs = costs
        ) -> float:
            return costs.of(Frontier(tol, window).solve(system, few), system.rows)

        best, seconds = _fastest(cost, most)
        plan.windows.append(best)
        plan.predicted.append(seconds)
        plan.sequential.append(most * costs.seconds[0])
        plan.cost[:] = [list(pair) for pair in zip(costs.rows, costs.seconds, strict=True)]
        everyone = decoder.system(index, labels, guided, samples)
        solved = Frontier(tol, best).solve(everyone, noise).x
        if linear:
            fit = LinearGuess.fit(noise, solved)
            plan.linear.append([fit.scale.tolist(), fit.shift.tolist()])
        x = block.order(solved)
    return plan
