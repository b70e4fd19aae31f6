"""Train the embedded class-conditional diffusion transformer on 28 x 28 digits.

The weights in the package come from three rounds, each going on from a copy of the last one's:
python models/train/train_dit.py --stop 2500
python models/train/train_dit.py --init COPY.npz --steps 3000 --stop 1300 --rate 1.5e-3 --seed 1
python models/train/train_dit.py --init COPY.npz --steps 400 --rate 1e-3 --seed 2
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.progress import Progress
from torch import Tensor

from pixleap.cli.demo import digit_score
from pixleap.decode import diffusion, noise_schedule
from pixleap.models.checkpoint import save_checkpoint
from pixleap.models.dit import DiT
from pixleap.models.dit_load import load_dit

from common import LOGS, WEIGHTS, Ema, Log, augment, learning_rate, save_grid
from data import load_digits


class Noiser:
    """Draws times and noise; gives noised images and what the model shall predict.

    Times are 999 u^power with u uniform: a power above 1 spends less on nearly pure noise, of
    which the linear schedule has a lot.
    """

    def __init__(self, model: DiT, generator: torch.Generator, power: float = 1.0) -> None:
        self.diffusion, self.schedule = model.diffusion, noise_schedule(model)
        self.generator, self.power = generator, power

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images (N, 1, 28, 28) -> times (N,), noised images, targets."""
        n = len(images)
        # One time in each of n equal parts of the range: less variance than n free draws.
        u = torch.randperm(n, generator=self.generator) + torch.rand(n, generator=self.generator)
        t = (u.double() / n) ** self.power * (self.diffusion["num_train_timesteps"] - 1)
        points = [self.schedule.at_time(time) for time in t.tolist()]
        alpha = torch.tensor([p.alpha for p in points]).view(-1, 1, 1, 1)
        sigma = torch.tensor([p.sigma for p in points]).view(-1, 1, 1, 1)
        noise = torch.randn(images.shape, generator=self.generator)
        v = self.diffusion["prediction_type"] == "v_prediction"
        target = alpha * noise - sigma * images if v else noise
        return t.float(), alpha * images + sigma * noise, target


@torch.no_grad()
def validate(model: DiT, images: Tensor, labels: Tensor) -> float:
    """Loss on the held-out digits with one fixed draw of times and noise."""
    t, noised, target = Noiser(model, torch.Generator().manual_seed(1))(images)
    return F.mse_loss(model(noised, t, labels), target).item()


@torch.no_grad()
def widen_embeddings(model: DiT) -> None:
    """Start times and labels at a size that blocks can tell apart at once.

    The official start (standard deviation 0.02) suits runs a hundred times as long.
    """
    for layer in model.t_embedder.mlp:
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.xavier_uniform_(layer.weight)
    torch.nn.init.normal_(model.y_embedder.embedding_table.weight, std=0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", default="dit_digits")
    parser.add_argument("--prediction-type", default="v_prediction")
    parser.add_argument("--depth", type=int, default=5)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--heads", type=int, default=3)
    parser.add_argument("--steps", type=int, default=7500)
    parser.add_argument("--stop", type=int, help="end after so many steps of the schedule")
    parser.add_argument("--init", type=Path, help="go on from this checkpoint")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--augment", type=float, default=0.5)
    parser.add_argument("--power", type=float, default=1.5, help="of the times; 1: uniform")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)

    images, labels, held_out, held_out_labels = load_digits()
    model = DiT(28, 4, 1, args.width, args.depth, args.heads, num_classes=10, learn_sigma=False,
                diffusion={"prediction_type": args.prediction_type})  # fmt: skip
    log = Log(args.name)
    widen_embeddings(model)
    if args.init:
        model.load_state_dict(load_dit(args.init).state_dict())
        with log.path.open(newline="") as file:  # the earlier round's
            log.rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    done, seconds = (log.rows[-1]["step"], log.rows[-1]["seconds"]) if log.rows else (0, 0.0)
    ema = Ema(model, args.ema)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.rate, betas=(0.9, 0.99), weight_decay=0.0
    )
    print(f"{sum(p.numel() for p in model.parameters())} parameters")
    path = WEIGHTS / f"{args.name}.npz"
    start = time.perf_counter() - seconds
    noiser, train_loss = Noiser(model, generator, args.power), 0.0
    per_epoch = len(images) // args.batch
    with Progress() as progress:
        for step in progress.track(range(args.stop or args.steps), description=args.name):
            if step % per_epoch == 0:  # a fresh augmentation of every digit
                changed = augment(images, generator, args.augment)
                order = torch.randperm(len(images), generator=generator)
            pick = order[step % per_epoch * args.batch :][: args.batch]
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, args.steps, args.rate, 100)
            t, noised, target = noiser(changed[pick])
            loss = F.mse_loss(model(noised, t, labels[pick]), target)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            ema.update(model)
            train_loss += (loss.item() - train_loss) * max(0.01, 1 / (step + 1))
            if (step + 1) % 100 == 0 or step + 1 == (args.stop or args.steps):
                save_checkpoint(path, model.config, ema.model.state_dict())
                log.add(step=done + step + 1, train_loss=train_loss,
                        held_out_loss=validate(ema.model, held_out, held_out_labels),
                        seconds=time.perf_counter() - start)  # fmt: skip
    log.draw(["train_loss", "held_out_loss"], f"mean squared error of {args.prediction_type}")
    model = load_dit(path)
    digits = torch.arange(10).repeat(10)
    for steps, scale in ((10, 2.0), (20, 2.0), (50, 1.5), (50, 2.0)):
        samples = diffusion(
            model, digits, solver="ddim", steps=steps, sigmas="trailing", guidance_scale=scale,
            seed=args.seed,
        )  # fmt: skip
        accuracy, distance = digit_score(samples.clamp(-1, 1), digits)
        print(f"{steps} steps, cfg {scale}: accuracy {accuracy:.2f}, Frechet {distance:.2f}")
    save_grid(samples.clamp(-1, 1) / 2 + 0.5, LOGS / f"{args.name}_samples.png", columns=10)


if __name__ == "__main__":
    main()
