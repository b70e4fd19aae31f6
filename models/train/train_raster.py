"""Train the raster-order token model of the Jacobi decoding benchmark on 8 x 8 digits.

    PYTHONPATH=python python models/train/train_raster.py

A digit is cut to its middle 24 x 24 pixels, averaged 3 x 3 and rounded to 16 grey levels: 64
tokens. The weights go to bench/models/: they serve the benchmark and tests, not the package.
"""

from __future__ import annotations

import argparse
import time

import torch
import torch.nn.functional as F
from rich.progress import Progress
from torch import Tensor

from pixleap.models.checkpoint import save_checkpoint
from pixleap.models.raster_ar import RasterAR, load_raster_ar

from common import LOGS, REPOSITORY, Ema, Log, augment, learning_rate, save_grid
from data import load_digits

LEVELS, SIDE = 16, 8
WEIGHTS = REPOSITORY / "bench" / "models" / "raster_digits.npz"


def tokens_of(images: Tensor) -> Tensor:
    """(N, 1, 28, 28) images in [-1, 1] -> (N, 64) int64 grey levels in raster order."""
    small = F.avg_pool2d(images[:, :, 2:26, 2:26], 3)
    return (small.add(1).mul((LEVELS - 1) / 2)).round().long().flatten(1)


@torch.no_grad()
def validate(model: RasterAR, tokens: Tensor, labels: Tensor) -> float:
    """Held-out cross-entropy per token in nats."""
    logits = model(tokens[:, :-1], labels)
    return float(F.cross_entropy(logits.flatten(0, 1), tokens.flatten()))


@torch.no_grad()
def samples(model: RasterAR, labels: Tensor, seed: int) -> Tensor:
    """(N, 64) tokens, one after the other with torch's generator."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.zeros((len(labels), 0), dtype=torch.int64)
    for _ in range(model.length):
        p = model(tokens, labels)[:, -1].softmax(-1)
        tokens = torch.cat((tokens, p.multinomial(1, generator=generator)), 1)
    return tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--label-drop", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)

    images, labels, held_out, held_out_labels = load_digits()
    held_out_tokens = tokens_of(held_out)
    model = RasterAR(LEVELS, SIDE * SIDE, args.width, args.depth, args.heads, num_classes=10)
    ema = Ema(model, 0.998)
    decayed = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}],
        lr=args.rate, betas=(0.9, 0.95),
    )  # fmt: skip
    print(f"{sum(p.numel() for p in model.parameters())} parameters")
    WEIGHTS.parent.mkdir(parents=True, exist_ok=True)
    log, start = Log("raster_digits"), time.perf_counter()
    train_loss, best_loss = 0.0, float("inf")
    per_epoch = len(images) // args.batch
    with Progress() as progress:
        for step in progress.track(range(args.steps), description="raster_digits"):
            if step % per_epoch == 0:  # a fresh augmentation of every digit
                tokens = tokens_of(augment(images, generator))
                order = torch.randperm(len(images), generator=generator)
            pick = order[step % per_epoch * args.batch :][: args.batch]
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, args.steps, args.rate, 100)
            dropped = torch.rand(len(pick), generator=generator) < args.label_drop
            logits = model(tokens[pick, :-1], labels[pick].masked_fill(dropped, -1))
            loss = F.cross_entropy(logits.flatten(0, 1), tokens[pick].flatten())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            ema.update(model)
            train_loss += (loss.item() - train_loss) * max(0.02, 1 / (step + 1))
            if (step + 1) % 100 == 0 or step + 1 == args.steps:
                held_out_loss = validate(ema.model, held_out_tokens, held_out_labels)
                if held_out_loss < best_loss:
                    best_loss = held_out_loss
                    save_checkpoint(WEIGHTS, model.config, ema.model.state_dict())
                log.add(step=step + 1, train_loss=train_loss, held_out_loss=held_out_loss,
                        seconds=time.perf_counter() - start)  # fmt: skip
    log.draw(["train_loss", "held_out_loss"], "cross-entropy per token (nats)")
    drawn = samples(load_raster_ar(WEIGHTS), torch.arange(10).repeat(10), args.seed)
    grid = drawn.view(-1, 1, SIDE, SIDE).float() / (LEVELS - 1)
    save_grid(grid, LOGS / "raster_digits_samples.png", columns=10)


if __name__ == "__main__":
    main()
