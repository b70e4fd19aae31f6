"""Forecasts of cached features against TaylorSeer's prediction and update.

Peers, with the arithmetic of their sources: the official repository (TaylorSeer-DiT/taylor_utils)
and diffusers' TaylorSeerState, whose own class is timed where diffusers is installed, with factors
in the dtype of the features. What is timed is checked first: a ring with TaylorSeer's formula gives
what the peers give. The ring that is timed has Lagrange's weights, which cost the same.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

import torch
from timing import interleaved
from torch import Tensor

from pixleap.caching import FeatureRing

SHAPES = ((1, 256, 1152), (2, 1024, 1152), (1, 4096, 3072))  # DiT-XL at 256 and 512, FLUX at 1024
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 3e-2}  # bfloat16 peers round after each operation
INTERVAL = 4


class Repository:
    """TaylorSeer's factors: differences at an update, a Taylor sum at a prediction."""

    def __init__(self, order: int) -> None:
        self.order, self.step = order, 0
        self.factors: dict[int, Tensor] = {}

    def update(self, step: int, feature: Tensor) -> None:
        gap, self.step = step - self.step, step
        updated = {0: feature}
        for i in range(self.order):
            if i not in self.factors:
                break
            updated[i + 1] = (updated[i] - self.factors[i]) / gap
        self.factors = updated

    def predict(self, step: int) -> Tensor:
        distance = step - self.step
        output: Any = 0
        for i in range(len(self.factors)):
            output += (1 / math.factorial(i)) * self.factors[i] * (distance**i)
        return output


class Diffusers:
    """diffusers' TaylorSeerState."""

    def __init__(self, order: int, dtype: torch.dtype) -> None:
        from diffusers.hooks.taylorseer_cache import TaylorSeerState

        self.state = TaylorSeerState(taylor_factors_dtype=dtype, max_order=order)

    def update(self, step: int, feature: Tensor) -> None:
        self.state.current_step = step
        self.state.update((feature,))

    def predict(self, step: int) -> Tensor:
        self.state.current_step = step
        return self.state.predict()[0]


def peers(order: int, dtype: torch.dtype) -> dict[str, Any]:
    found: dict[str, Any] = {"TaylorSeer": Repository(order)}
    try:
        found["diffusers"] = Diffusers(order, dtype)
    except ImportError as error:
        print(f"diffusers is left out: {error}", flush=True)
    return found


def trajectory(shape: tuple[int, ...], dtype: torch.dtype) -> Callable[[float], Tensor]:
    """A smooth feature: each element a sine of its own frequency and phase."""
    generator = torch.Generator().manual_seed(0)
    frequency, phase = (torch.rand(shape, generator=generator) for _ in range(2))
    return lambda t: torch.sin(0.05 * t * (1 + frequency) + 6 * phase).to(dtype)


def rows(shape: tuple[int, ...], dtype: torch.dtype, order: int) -> list[str]:
    feature = trajectory(shape, dtype)
    history = [(INTERVAL * k, feature(INTERVAL * k)) for k in range(order + 2)]
    step = history[-1][0] + INTERVAL - 1
    same, by_pointer = FeatureRing(order, formula="taylor"), FeatureRing(order)
    by_copy = FeatureRing(order, copy=True)
    rivals = peers(order, dtype)
    for time, x in history:
        for ring in (same, by_pointer, by_copy):
            ring.push(time, x)
        for rival in rivals.values():
            rival.update(time, x)
    ours, out = same.forecast(step).float(), torch.empty_like(history[0][1])
    apart = {n: float((ours - r.predict(step).float()).abs().max()) for n, r in rivals.items()}
    for name, error in apart.items():
        assert error <= TOLERANCE[dtype] * 2**order, (name, error)

    clock = [step]

    def tick() -> int:
        clock[0] += INTERVAL
        return clock[0]

    newest = history[-1][1]
    predictions = interleaved(
        lambda: by_pointer.forecast(clock[0] + 3, out),
        lambda: by_pointer.forecast(clock[0] + 3),
        *(lambda r=r: r.predict(step) for r in rivals.values()),
    )
    updates = interleaved(
        lambda: by_pointer.push(tick(), newest),
        lambda: by_copy.push(tick(), newest),
        *(lambda r=r: r.update(tick(), newest) for r in rivals.values()),
    )
    us = [statistics.median(column) * 1e6 for column in (*predictions, *updates)]
    n = len(predictions)
    lines = []
    for k, name in enumerate(rivals, start=2):
        alone = statistics.median(
            t / o for o, t in zip(predictions[0], predictions[k], strict=True)
        )
        fresh = statistics.median(
            t / o for o, t in zip(predictions[1], predictions[k], strict=True)
        )
        cycle = (us[n + k] + us[k]) / (us[n] + us[1])
        copied = (us[n + k] + us[k]) / (us[n + 1] + us[0])
        lines.append(
            f"| {shape} {str(dtype)[6:]} order {order} | {us[0]:.0f} / {us[1]:.0f} us "
            f"| {us[n]:.1f} / {us[n + 1]:.0f} us | {name} | {us[k]:.0f} us | {us[n + k]:.0f} us "
            f"| {alone:.1f}x / {fresh:.1f}x | {cycle:.1f}x / {copied:.1f}x | {apart[name]:.0e} |"
        )
    print("\n".join(lines), flush=True)
    return lines


def table(threads: int) -> list[str]:
    lines = [
        f"### caching, {threads} thread{'s' if threads > 1 else ''}",
        "",
        "Forecasts into `out` / into fresh memory; pushes by pointer / by copy. Ratios: forecast",
        "(into `out` / fresh) against predict; then both together (fresh and pointer / `out` and",
        "copy). The last column is the difference under TaylorSeer's formula.",
        "",
        "| case | forecast | push | peer | predict | update | predict ratio | both | apart |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    with torch.no_grad():
        for shape in SHAPES:
            for dtype in (torch.float32, torch.bfloat16):
                for order in (1, 2, 4):
                    lines += rows(shape, dtype, order)
    return [*lines, ""]
