"""What solvers, guidance and feature caching are worth on the embedded digit model.

Frechet distance (classifier features) of 200 class-conditional digits to held-out ones, from the
same noise for every sampler, against the number of model evaluations (NFE) per image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import pixleap as px
from pixleap import caching, guidance, solvers
from pixleap.cli.demo import digit_score
from pixleap.decode import diffusion, noise_schedule
from pixleap.models import load_digits_dit

PER_CLASS = 20
BUDGETS = (5, 8, 10, 20, 50)
SOLVERS: dict[str, dict[str, Any]] = {
    "ddim": {},
    "ddpm": {},
    "euler_ancestral": {"eta": 0.5},
    "heun": {},
    "lms": {"order": 3},
    "deis": {},
    "dpmpp_2m": {},
    "dpmpp_3m": {},
    "dpmpp_2m_sde": {},
    "unipc": {},
}
PICTURE = Path(__file__).resolve().parents[2] / "docs" / "digit_samplers.png"


def labels() -> torch.Tensor:
    return torch.arange(10).repeat_interleave(PER_CLASS)


def score(images: torch.Tensor) -> tuple[float, float]:
    """Accuracy and Frechet distance of a batch of digits."""
    return digit_score(images.clamp(-1, 1), labels())


def steps_for(name: str, budget: int, schedule: solvers.NoiseSchedule, **options: Any) -> int:
    """The most steps whose model evaluations stay within the budget."""
    return max(
        n
        for n in range(3, budget + 1)
        if solvers.solver_plan(name, schedule, "lu", steps=n, **options).evaluations <= budget
    )


def picture(shown: dict[tuple[str, int], torch.Tensor]) -> None:
    """One row per solver, ten digits per budget."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from pixleap.cli.pictures import grid

    figure, axes = plt.subplots(len(SOLVERS), len(BUDGETS), figsize=(15, 4.2), dpi=110)
    for i, name in enumerate(SOLVERS):
        for j, budget in enumerate(BUDGETS):
            axis = axes[i, j]
            axis.imshow(grid(shown[name, budget] / 2 + 0.5), cmap="gray", vmin=0, vmax=1)
            axis.set_xticks([])
            axis.set_yticks([])
            if j == 0:
                axis.set_ylabel(name, rotation=0, ha="right", va="center")
            if i == 0:
                axis.set_title(f"{budget} NFE")
    figure.tight_layout(pad=0.3)
    figure.savefig(PICTURE)
    plt.close(figure)


def solver_rows(model: Any, noise: torch.Tensor) -> list[str]:
    schedule = noise_schedule(model)
    lines = [
        "### Frechet distance against NFE, no guidance",
        "",
        "| solver | " + " | ".join(f"{b} NFE" for b in BUDGETS) + " |",
        "|---|" + "---|" * len(BUDGETS),
    ]
    shown: dict[tuple[str, int], torch.Tensor] = {}
    for name, options in SOLVERS.items():
        cells = []
        for budget in BUDGETS:
            steps = steps_for(name, budget, schedule, **options)
            images = diffusion(model, labels(), solver=name, steps=steps, noise=noise, **options)
            shown[name, budget] = images[::PER_CLASS]
            cells.append(f"{score(images)[1]:.2f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    picture(shown)
    return [*lines, ""]


Row = tuple[str, Callable[[], torch.Tensor]]


def saving_rows(model: Any, noise: torch.Tensor) -> list[str]:
    """Fewer model evaluations or block calls, with guidance of scale 1.5 and 20 steps."""
    steps, scale = 20, 1.5
    calls = 0

    def sample(**options: Any) -> torch.Tensor:
        return diffusion(model, labels(), steps=steps, noise=noise, guidance_scale=scale, **options)

    def cached(config: Any) -> Callable[[], torch.Tensor]:
        def run() -> torch.Tensor:
            with caching.apply_cache(model, config, blocks="blocks"):
                return sample()

        return run

    rows: list[Row] = [("guidance at every step", sample)]
    for gamma in (0.99, 0.999):
        rule = guidance.AdaptiveGuidance(scale, threshold=gamma)
        rows.append((f"Adaptive Guidance, {gamma}", lambda rule=rule: sample(guidance=rule)))
    for interval, order in ((2, 1), (2, 2), (3, 1), (3, 2), (4, 2)):
        config = caching.Forecast(interval=interval, order=order)
        rows.append((f"forecast, blocks at 1 of {interval} steps, order {order}", cached(config)))
    rows.append(("first-block cache, 0.05", cached(caching.FirstBlockCache(threshold=0.05))))
    lines = [
        "### Quality against work: dpmpp_2m, 20 steps, guidance scale 1.5",
        "",
        "| sampler | block evaluations per image | Frechet distance | accuracy |",
        "|---|---|---|---|",
    ]

    def weigh(_: Any, inputs: Any) -> None:
        nonlocal calls
        calls += inputs[0].shape[0]

    hooks = [block.attn.register_forward_pre_hook(weigh) for block in model.blocks]
    most = math.nan
    for name, run in rows:
        calls = 0
        images = run()
        work = calls / len(labels())
        most = work if math.isnan(most) else most
        accuracy, distance = score(images)
        lines.append(
            f"| {name} | {work:.0f} ({100 * work / most:.0f} %) | {distance:.2f} | "
            f"{100 * accuracy:.1f} % |"
        )
        print(lines[-1], flush=True)
    for hook in hooks:
        hook.remove()
    return [*lines, ""]


def table(threads: int) -> list[str]:
    torch.set_num_threads(threads)
    model = load_digits_dit()
    size = (len(labels()), model.in_channels, model.input_size, model.input_size)
    noise = torch.empty(size)
    px.ops.random_normal(size, seed=1, out=noise)
    lines = solver_rows(model, noise)
    return [
        *lines,
        "![digits](../../docs/digit_samplers.png)",
        "",
        *saving_rows(model, noise),
    ]
