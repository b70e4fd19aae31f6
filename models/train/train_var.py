"""Train the embedded digit VAR, or its draft, on the codes of the digit VQ-VAE.

    PYTHONPATH=python python models/train/train_var.py
    PYTHONPATH=python python models/train/train_var.py --name var_digits_draft \
        --depth 3 --width 64 --heads 2 --rate 3e-3
"""

from __future__ import annotations

import argparse
import time

import torch
import torch.nn.functional as F
from rich.progress import Progress
from torch import Tensor

from pixleap.models.checkpoint import save_checkpoint
from pixleap.models.var import VAR
from pixleap.models.var_load import load_var, load_vqvae
from pixleap.models.vqvae import VQVAE

from common import LOGS, WEIGHTS, Ema, Log, augment, learning_rate, save_grid
from data import load_digits


@torch.no_grad()
def encode(vae: VQVAE, images: Tensor) -> list[Tensor]:
    """Images -> codes (N, n_k) of each scale."""
    parts = [vae.img_to_idxBl(batch) for batch in images.split(250)]
    return [torch.cat(scale) for scale in zip(*parts, strict=True)]


@torch.no_grad()
def validate(model: VAR, codes: list[Tensor], labels: Tensor) -> list[float]:
    """Held-out cross-entropy per token: overall, then of each scale (nats)."""
    total = torch.zeros(model.L)
    for pick in torch.arange(len(labels)).split(250):
        batch = [c[pick] for c in codes]
        logits = model(labels[pick], model.vae.quantize.idxBl_to_var_input(batch))
        target = torch.cat(batch, dim=1)
        total += F.cross_entropy(logits.transpose(1, 2), target, reduction="none").sum(0)
    total /= len(labels)
    scales = total.split([side * side for side in model.patch_nums])
    return [total.mean().item(), *(scale.mean().item() for scale in scales)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", default="var_digits")
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--drop", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)

    vae = load_vqvae()
    images, labels, held_out, held_out_labels = load_digits()
    held_out_codes = encode(vae, held_out)
    model = VAR(vae, num_classes=10, depth=args.depth, embed_dim=args.width,
                num_heads=args.heads, patch_nums=vae.patch_nums, drop_rate=args.drop)  # fmt: skip
    ema = Ema(model, 0.998)
    decayed = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}],
        lr=args.rate, betas=(0.9, 0.95),
    )  # fmt: skip
    print(f"{sum(p.numel() for p in model.parameters())} parameters")
    path = WEIGHTS / f"{args.name}.npz"
    log, start = Log(args.name), time.perf_counter()
    train_loss, best_loss = 0.0, float("inf")
    per_epoch = len(images) // args.batch
    with Progress() as progress:
        for step in progress.track(range(args.steps), description=args.name):
            if step % per_epoch == 0:  # a fresh augmentation of every digit
                codes = encode(vae, augment(images, generator))
                order = torch.randperm(len(images), generator=generator)
            pick = order[step % per_epoch * args.batch :][: args.batch]
            batch = [c[pick] for c in codes]
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, args.steps, args.rate, 100)
            logits = model(labels[pick], vae.quantize.idxBl_to_var_input(batch))
            loss = F.cross_entropy(logits.flatten(0, 1), torch.cat(batch, dim=1).flatten())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            ema.update(model)
            train_loss += (loss.item() - train_loss) * max(0.02, 1 / (step + 1))
            if (step + 1) % 100 == 0 or step + 1 == args.steps:
                held_out_loss, *scales = validate(ema.model, held_out_codes, held_out_labels)
                if held_out_loss < best_loss:
                    best_loss = held_out_loss
                    save_checkpoint(path, model.config, ema.model.state_dict())
                by_scale = {f"scale_{side}": x for side, x in zip(vae.patch_nums, scales,
                                                                  strict=True)}  # fmt: skip
                log.add(step=step + 1, train_loss=train_loss, held_out_loss=held_out_loss,
                        **by_scale, seconds=time.perf_counter() - start)  # fmt: skip
    log.draw(["train_loss", "held_out_loss"], "cross-entropy per token (nats)")
    model = load_var(path)
    digits = torch.arange(10).repeat(10)
    samples = model.autoregressive_infer_cfg(100, digits, g_seed=args.seed, cfg=1.5)
    save_grid(samples, LOGS / f"{args.name}_samples.png", columns=10)


if __name__ == "__main__":
    main()
