"""The demo's pictures."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from torch import Tensor

from ..decode import FlowResult


def grid(images: Tensor, columns: int = 10) -> np.ndarray:
    """(N, 1, h, w) in [0, 1] as one array with a pixel of space between."""
    n, _, height, width = images.shape
    rows = -(-n // columns)
    canvas = np.ones((rows * (height + 1) + 1, columns * (width + 1) + 1))
    for i, image in enumerate(images[:, 0].clamp(0, 1).numpy()):
        y, x = (i // columns) * (height + 1) + 1, (i % columns) * (width + 1) + 1
        canvas[y : y + height, x : x + width] = image
    return canvas


def side_by_side(path: Path, plain: Tensor, native: Tensor) -> None:
    """Two sample grids, ten per class."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 5.3), dpi=110)
    for axis, images, title in zip(
        axes, (plain, native), ("plain PyTorch loop", "pixleap"), strict=True
    ):
        axis.imshow(grid(images), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(title)
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def trace(path: Path, result: FlowResult) -> None:
    """From noise (top) to image (bottom) through the blocks, one column per class."""
    rows = [s.clamp(-2, 2) / 4 + 0.5 for s in result.sequence]
    names = ["noise", *(f"block {i}" for i in range(1, len(rows)))]
    strip(path, rows, names)


def strip(path: Path, rows: list[Tensor], names: list[str]) -> None:
    """One row of images (N, 1, h, w) in [0, 1] for every name."""
    figure, axes = plt.subplots(len(rows), 1, figsize=(8, 0.9 * len(rows)), dpi=110)
    for axis, images, name in zip(axes, rows, names, strict=True):
        axis.imshow(grid(images), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_ylabel(name, rotation=0, ha="right", va="center")
        axis.set_xticks([])
        axis.set_yticks([])
    figure.tight_layout()
    figure.savefig(path, bbox_inches="tight")  # labels may be wide
    plt.close(figure)


def residuals(path: Path, result: FlowResult) -> None:
    """Largest change in the window after each sweep, per block, with all tokens in the window."""
    figure, axis = plt.subplots(figsize=(6, 4), dpi=110)
    for i, values in enumerate(result.residuals):
        axis.semilogy(range(1, len(values) + 1), np.maximum(values, 1e-8), label=f"block {i + 1}")
    axis.set_xlabel("sweep")
    axis.set_ylabel("largest change of a token")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def save_grid(path: Path, images: Tensor, columns: int = 10) -> None:
    """(N, 1 or 3, h, w) in [0, 1] as one picture, four screen pixels per pixel."""
    canvas = grid(images, columns)
    plt.imsave(path, np.kron(canvas, np.ones((4, 4))), cmap="gray", vmin=0, vmax=1)
