"""Train a TarFlow on digits: the embedded one on 14 x 14 pixels, or one on 28 x 28 (196 patches).

The weights in the package come from two rounds, the second going on from a copy of the first's:
python models/train/train_tarflow.py
python models/train/train_tarflow.py --init COPY.npz --steps 700 --lr 1e-3 --warmup 30 --seed 1
Those of `bench/models/`, on which parallel decoding is timed, were ended after 600 steps:
python models/train/train_tarflow.py --size 28 --steps 1500 --batch 32
"""

from __future__ import annotations

import argparse
import copy
import csv
import math
import time
from pathlib import Path

import matplotlib
import torch
from rich.progress import Progress
from torch import Tensor

from pixleap.models.checkpoint import save_checkpoint
from pixleap.models.tarflow import TarFlow, load_tarflow

from data import halve, load_digits

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = {
    14: ROOT / "python/pixleap/models/weights/tarflow_digits.npz",
    28: ROOT / "bench/models/tarflow_digits_28.npz",
}
LOGS = ROOT / "models/logs"
Row = tuple[int, float, float, float]  # step, training loss, held-out loss, seconds


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1800)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--noise-std", type=float, default=0.1)
    parser.add_argument("--label-drop", type=float, default=0.1)
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--eval-every", type=int, default=100)
    parser.add_argument("--init", type=Path, help="go on from this checkpoint")
    parser.add_argument("--size", type=int, choices=tuple(WEIGHTS), default=14)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--logs", type=Path, default=LOGS)
    args = parser.parse_args()
    args.out = args.out or WEIGHTS[args.size]
    return args


@torch.no_grad()
def validate(model: TarFlow, x: Tensor, y: Tensor, noise_std: float) -> float:
    """Loss on the held-out digits with one fixed draw of noise."""
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    z, _, logdet = model(x + noise_std * noise, y)
    return float(model.loss(z, logdet))


def read_log(path: Path) -> list[Row]:
    """The rows of an earlier round."""
    with open(path, newline="") as file:
        return [
            (int(r[0]), float(r[1]), float(r[2]), float(r[3])) for r in list(csv.reader(file))[1:]
        ]


def plot(rows: list[Row], path: Path) -> None:
    """Curves of the losses."""
    steps, train, val, _ = zip(*rows, strict=True)
    plt.figure(figsize=(6, 4))
    plt.plot(steps, train, label="train")
    plt.plot(steps, val, label="held out (EMA)")
    plt.xlabel("step")
    plt.ylabel("loss, nats per dimension")
    plt.legend()
    plt.tight_layout()
    plt.savefig(path, dpi=100)
    plt.close()


def main() -> None:
    args = parse_args()
    args.logs.mkdir(parents=True, exist_ok=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    x, y, held_x, held_y = load_digits()
    if args.size == 14:
        x, held_x = halve(x), halve(held_x)
    name = "tarflow" if args.size == 14 else f"tarflow_{args.size}"

    model = TarFlow(1, args.size, 2, 64, 4, 3, head_dim=32, num_classes=10)
    if args.init:
        model.load_state_dict(load_tarflow(args.init).state_dict())
    ema = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.lr, betas=(0.9, 0.95), weight_decay=1e-4
    )

    def rate(step: int) -> float:
        warm = min(1.0, (step + 1) / args.warmup)
        return warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / args.steps)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    rows = read_log(args.logs / f"{name}.csv") if args.init else []
    done, seconds = (rows[-1][0], rows[-1][3]) if rows else (0, 0.0)
    running, start = 0.0, time.perf_counter() - seconds
    with Progress() as bar, open(args.logs / f"{name}.csv", "a" if rows else "w") as file:
        log = csv.writer(file, lineterminator="\n")
        if not rows:
            log.writerow(["step", "train_loss", "held_out_loss", "seconds"])
        task = bar.add_task("tarflow", total=args.steps)
        for step in range(1, args.steps + 1):
            pick = torch.randint(len(x), (args.batch,))
            batch = x[pick] + args.noise_std * torch.randn(args.batch, *x.shape[1:])
            labels = y[pick].masked_fill(torch.rand(args.batch) < args.label_drop, -1)
            z, _, logdet = model(batch, labels)
            loss = model.loss(z, logdet)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            decay = min(args.ema, (1 + step) / (10 + step))
            with torch.no_grad():
                for mean, value in zip(ema.parameters(), model.parameters(), strict=True):
                    mean.lerp_(value, 1 - decay)
            running += loss.item()
            if step % args.eval_every == 0 or step == args.steps:
                count = args.eval_every if step % args.eval_every == 0 else step % args.eval_every
                held_loss = validate(ema, held_x, held_y, args.noise_std)
                seconds = time.perf_counter() - start
                rows.append((done + step, running / count, held_loss, seconds))
                running = 0.0
                log.writerow([done + step, *(f"{v:.4f}" for v in rows[-1][1:])])
                file.flush()
                bar.console.print(
                    f"{done + step}: train {rows[-1][1]:.4f}  held out {held_loss:.4f}"
                )
                config = {**model.config, "noise_std": args.noise_std}
                save_checkpoint(args.out, config, ema.state_dict())
            bar.advance(task)
    plot(rows, args.logs / f"{name}.png")


if __name__ == "__main__":
    main()
