"""Train the digit classifier. Run: python models/train/train_classifier.py"""

from __future__ import annotations

import argparse
import csv
import math
import time
from pathlib import Path

import matplotlib
import torch
import torch.nn.functional as F
from rich.progress import Progress
from torch import Tensor

from pixleap.models.checkpoint import save_checkpoint
from pixleap.models.classifier import DigitClassifier

from data import halve, load_digits

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = ROOT / "python/pixleap/models/weights/digit_classifier.npz"
LOGS = ROOT / "models/logs"


def augment(x: Tensor) -> Tensor:
    """Small rotations, scalings and shifts, blur through 14 x 14 for half of them, and noise."""
    n = len(x)
    angle = (torch.rand(n) - 0.5) * math.radians(24)
    zoom = 1 + (torch.rand(n) - 0.5) * 0.24
    shift = (torch.rand(n, 2) - 0.5) * 4 / 14
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    theta = torch.stack([cos, -sin, shift[:, 0], sin, cos, shift[:, 1]], dim=1).view(n, 2, 3)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    x = F.grid_sample(x + 1, grid, align_corners=False) - 1  # the background is -1
    small = halve(x)
    small = small + 0.1 * torch.rand(n, 1, 1, 1) * torch.randn_like(small)
    blurred = F.interpolate(small, (28, 28), mode="bilinear", align_corners=False)
    x = torch.where(torch.rand(n, 1, 1, 1) < 0.5, blurred, x)
    return x + 0.1 * torch.rand(n, 1, 1, 1) * torch.randn_like(x)


@torch.no_grad()
def accuracy(model: DigitClassifier, x: Tensor, y: Tensor) -> float:
    """Share of x (N, 1, H, W) that is classified as y (N,)."""
    model.eval()
    right = (model(x).argmax(dim=1) == y).float().mean()
    model.train()
    return float(right)


def plot(log: Path) -> None:
    """Curves of the log file, as a PNG of the same name."""
    with open(log, newline="") as file:
        rows = list(csv.DictReader(file))
    epochs = [int(row["epoch"]) for row in rows]
    _, axes = plt.subplots(1, 2, figsize=(9, 3.5))
    for axis, columns in zip(axes, (["train_loss"], ["accuracy_28", "accuracy_14"]), strict=True):
        for column in columns:
            axis.plot(epochs, [float(row[column]) for row in rows], label=column)
        axis.set_xlabel("epoch")
        axis.legend()
    plt.tight_layout()
    plt.savefig(log.with_suffix(".png"), dpi=100)
    plt.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument("--logs", type=Path, default=LOGS)
    args = parser.parse_args()
    args.logs.mkdir(parents=True, exist_ok=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    x, y, held_x, held_y = load_digits()

    model = DigitClassifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=1e-2)
    steps = args.epochs * (len(x) // args.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=steps)
    start = time.perf_counter()
    with Progress() as bar, open(args.logs / "classifier.csv", "w", newline="") as file:
        log = csv.writer(file)
        log.writerow(["epoch", "train_loss", "accuracy_28", "accuracy_14", "seconds"])
        task = bar.add_task("classifier", total=steps)
        for epoch in range(1, args.epochs + 1):
            total = 0.0
            for pick in torch.randperm(len(x)).split(args.batch):
                loss = F.cross_entropy(model(augment(x[pick])), y[pick])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.item() * len(pick) / len(x)
                bar.advance(task)
            at_28, at_14 = accuracy(model, held_x, held_y), accuracy(model, halve(held_x), held_y)
            seconds = time.perf_counter() - start
            row = [f"{total:.4f}", f"{at_28:.4f}", f"{at_14:.4f}", f"{seconds:.1f}"]
            log.writerow([epoch, *row])
            file.flush()
            bar.console.print(f"{epoch}: loss {row[0]}  28 px {row[1]}  14 px {row[2]}")
    save_checkpoint(args.out, model.config, model.state_dict())
    plot(args.logs / "classifier.csv")


if __name__ == "__main__":
    main()
