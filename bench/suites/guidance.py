"""Guidance rules against diffusers' implementations, outputs preallocated, results compared.

APG: diffusers' normalized_guidance with its MomentumBuffer. CFG-rescale: CFG as its pipelines write
it, then their rescale_noise_cfg; and rescale_noise_cfg alone on a guided prediction. Every call of
both takes a step of momentum; results are compared at the first.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance
from diffusers.guiders.guider_utils import rescale_noise_cfg
from timing import interleaved

import pixleap as px

SHAPES = [(1, 4, 64, 64), (4, 4, 128, 128), (8, 3, 256, 256)]
SCALE, PHI = 7.5, 0.7
Call = Callable[[], torch.Tensor]


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max())


def row(name: str, ours: Call, peer: Call, apart: float) -> str:
    mine, theirs = interleaved(ours, peer)
    ratio = statistics.median(t / o for o, t in zip(mine, theirs, strict=True))
    line = (
        f"| {name} | {statistics.median(mine) * 1e6:.1f} us | "
        f"{statistics.median(theirs) * 1e6:.1f} us | {ratio:.1f}x | {apart:.0e} |"
    )
    print(line, flush=True)
    return line


def rows(shape: tuple[int, ...], dtype: torch.dtype) -> list[str]:
    torch.manual_seed(0)
    base = torch.randn(shape)
    cond = base.to(dtype)
    uncond = (base + 0.3 * torch.randn(shape)).to(dtype)
    out, limit = torch.empty_like(cond), float(base[0].numel()) ** 0.5 / 5
    name = f"{'x'.join(map(str, shape))} {str(dtype)[6:]}"
    lines = []

    for momentum in (-0.5, None):
        average = None if momentum is None else torch.zeros_like(cond)
        buffer = None if momentum is None else MomentumBuffer(momentum)

        def ours(average: torch.Tensor | None = average) -> torch.Tensor:
            return px.guidance.apg(
                cond,
                uncond,
                SCALE,
                norm_threshold=limit,
                momentum=-0.5,
                average=average,
                base="uncond",
                out=out,
            )

        def peer(buffer: MomentumBuffer | None = buffer) -> torch.Tensor:
            return normalized_guidance(cond, uncond, SCALE, buffer, 0.0, limit)

        apart = difference(ours(), peer())
        kind = "without momentum" if momentum is None else "with momentum"
        lines.append(row(f"APG {kind}, {name}", ours, peer, apart))

    def cfg_rescale() -> torch.Tensor:
        return px.guidance.cfg(cond, uncond, SCALE, rescale=PHI, out=out)

    def cfg_rescale_peer() -> torch.Tensor:
        return rescale_noise_cfg(uncond + SCALE * (cond - uncond), cond, PHI)

    apart = difference(cfg_rescale(), cfg_rescale_peer())
    lines.append(row(f"CFG and rescale, {name}", cfg_rescale, cfg_rescale_peer, apart))
    guided = px.guidance.cfg(cond, uncond, SCALE)

    def rescale() -> torch.Tensor:
        return px.guidance.rescale(guided, cond, PHI, out=out)

    def rescale_peer() -> torch.Tensor:
        return rescale_noise_cfg(guided, cond, PHI)

    apart = difference(rescale(), rescale_peer())
    lines.append(row(f"rescale alone, {name}", rescale, rescale_peer, apart))
    return lines


def table(threads: int) -> list[str]:
    lines = [
        f"### guidance, {threads} thread{'s' if threads > 1 else ''}",
        "",
        "| case | pixleap | diffusers | ratio | difference, relative to the largest value |",
        "|---|---|---|---|---|",
    ]
    for shape in SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            lines += rows(shape, dtype)
    return [*lines, ""]
