from __future__ import annotations

from typing import Any

import numpy as np
import torch

from harness import FLOATS, Case


def peer(
    cond: torch.Tensor, uncond: torch.Tensor, scale: float, *, rule: str, **options: Any
) -> Any:
    """The rules as torch writes them, up to the numbers per sample."""
    x, y = cond.flatten(1).float(), uncond.flatten(1).float()
    if rule == "rescale":
        guided = y + scale * (x - y)
        factor = options["phi"] * x.std(1) / guided.std(1) + 1 - options["phi"]
        return torch.stack([factor * scale, factor * (1 - scale)], 1)
    r = x - y
    average = options.get("average")
    if average is not None:
        r = r + options["momentum"] * average.flatten(1)
    a = (options["norm_threshold"] / r.norm(dim=1)).clamp(max=1.0) * scale
    b = a * (r * x).sum(1) / (x * x).sum(1)
    weights = torch.stack([a, -b, torch.ones_like(a)], 1)
    return weights if average is None else (weights, r.view_as(cond))


def make(shape: tuple[int, ...], kept: bool = False, given: bool = False, **options: Any) -> Any:
    """kept: with a running difference; given: the difference is there, uncond is not."""

    def build(rng: np.random.Generator) -> Any:
        def normal() -> np.ndarray:
            return rng.standard_normal(shape).astype(np.float32)

        cond, kwargs = normal(), dict(options)
        uncond = None if given else (0.8 * cond + 0.4 * normal()).astype(np.float32)
        if kept or given:
            kwargs["average"] = (0.5 * normal()).astype(np.float32)
        if kept:
            kwargs.setdefault("momentum", -0.5)
        if "sample_scale" in kwargs:
            kwargs["sample_scale"] = np.array(kwargs["sample_scale"])
        return (cond, uncond, kwargs.pop("scale", 4.0)), kwargs

    return build


# Sums are float64 of inputs that are rounded before both; the running difference has the inputs'
# dtype, and its rounding shows.
SAME = dict.fromkeys(FLOATS, 3e-6)
KEPT = {"float32": 3e-6, "bfloat16": 8e-3, "float16": 1e-3}


def case(name: str, shape: tuple[int, ...], **options: Any) -> Case:
    tolerance = KEPT if options.get("kept") else SAME
    return Case(name, make(shape, **options), tolerance=tolerance)


def timed(shape: tuple[int, ...], **options: Any) -> Case:
    size = float(np.prod(shape))
    return Case(
        f"{options['rule']}{' with momentum' if options.get('kept') else ''} {shape}",
        make(shape, **options),
        dtypes=("float32",),
        tolerance=SAME,
        flops=12 * size,
        bytes=4 * size * (4 if options.get("kept") else 2),
        peer=peer,
    )


CASES = [
    case("no samples", (0, 3), rule="rescale", phi=0.5),
    case("empty samples", (2, 0), rule="projected"),
    case("rescale", (3, 5, 7), rule="rescale", phi=0.7, scale=7.5),
    case("a scale per sample", (3, 5, 7), rule="rescale", phi=1.0, sample_scale=[0.0, 1.5, 7.5]),
    case("projected, no limit", (2, 517), rule="projected", eta=0.25),
    case("projected, limit", (2, 3, 32771), rule="projected", norm_threshold=9.0),
    case("projected, base uncond", (2, 77), rule="projected", norm_threshold=2.0, base="uncond"),
    case("momentum", (3, 1025), rule="projected", kept=True, norm_threshold=5.0),
    case("momentum, chunks", (1, 65537), rule="projected", kept=True, norm_threshold=5.0),
    case("momentum, base uncond", (2, 3, 9), rule="projected", kept=True, base="uncond", eta=0.5,
         sample_scale=[2.0, 5.0]),
    case("first of a run", (2, 40), rule="projected", kept=True, momentum=0.0),
    case("given difference", (2, 40), rule="projected", given=True, norm_threshold=3.0, slope=-0.7),
    *(timed(shape, rule="rescale", phi=0.7) for shape in ((1, 4, 64, 64), (4, 4, 128, 128))),
    *(
        timed(shape, rule="projected", kept=True, norm_threshold=30.0, base="uncond")
        for shape in ((1, 4, 64, 64), (4, 4, 128, 128), (8, 3, 256, 256))
    ),
]  # fmt: skip
