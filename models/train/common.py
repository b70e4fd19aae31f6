"""What the VQ-VAE and VAR training scripts share: augmentation, EMA weights, schedule, log."""

from __future__ import annotations

import copy
import csv
import math
from pathlib import Path
from typing import Generic, TypeVar

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

REPOSITORY = Path(__file__).resolve().parents[2]
WEIGHTS = REPOSITORY / "python" / "pixleap" / "models" / "weights"
LOGS = REPOSITORY / "models" / "logs"


def augment(images: Tensor, generator: torch.Generator, strength: float = 1.0) -> Tensor:
    """Random small affine maps of (N, 1, H, W) images in [-1, 1]; background stays -1.

    At strength 1: rotation up to 6 degrees, scale up to 6 %, shift up to 1.2 pixels.
    """
    n, _, height, width = images.shape
    u = (torch.rand(n, 4, generator=generator) * 2 - 1) * strength
    angle, scale = u[:, 0] * math.radians(6), 1 + 0.06 * u[:, 1]
    cos, sin = scale * angle.cos(), scale * angle.sin()
    dx, dy = u[:, 2] * 2.4 / width, u[:, 3] * 2.4 / height
    theta = torch.stack([cos, -sin, dx, sin, cos, dy], dim=1).view(n, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images + 1, grid, mode="bicubic", align_corners=False).clamp(0, 2) - 1


Model = TypeVar("Model", bound=nn.Module)


class Ema(Generic[Model]):
    """Exponential moving average of a model's parameters, used for validation and shipping."""

    def __init__(self, model: Model, decay: float) -> None:
        self.model: Model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: Model) -> None:
        self.updates += 1
        decay = min(self.decay, self.updates / (self.updates + 10))
        for mean, value in zip(self.model.parameters(), model.parameters(), strict=True):
            mean.lerp_(value, 1 - decay)


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up to `peak`, then a cosine to 2 % of it."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


class Log:
    """Rows of figures, written after each to LOGS/<name>.csv and at the end drawn as <name>.png."""

    def __init__(self, name: str) -> None:
        self.path = LOGS / f"{name}.csv"
        self.rows: list[dict[str, float]] = []
        LOGS.mkdir(parents=True, exist_ok=True)

    def add(self, **row: float) -> None:
        self.rows.append({key: round(float(value), 5) for key, value in row.items()})
        with self.path.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(self.rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
        print("  ".join(f"{key} {value:g}" for key, value in self.rows[-1].items()), flush=True)

    def draw(self, columns: list[str], ylabel: str) -> None:
        figure, axes = plt.subplots(figsize=(6, 4), dpi=100)
        for column in columns:
            axes.plot([r["step"] for r in self.rows], [r[column] for r in self.rows], label=column)
        axes.set_xlabel("step")
        axes.set_ylabel(ylabel)
        axes.grid(alpha=0.3)
        axes.legend()
        figure.tight_layout()
        figure.savefig(self.path.with_suffix(".png"))
        plt.close(figure)


def save_grid(images: Tensor, path: Path, columns: int) -> None:
    """(N, 1, H, W) images in [0, 1] -> one PNG, `columns` wide."""
    n, _, height, width = images.shape
    rows = n // columns
    grid = images[: rows * columns].view(rows, columns, height, width).permute(0, 2, 1, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    plt.imsave(path, grid.reshape(rows * height, columns * width).numpy(), cmap="gray")
