"""Train the embedded digit VQ-VAE (python/pixleap/models/weights/vqvae_digits.npz).

PYTHONPATH=python python models/train/train_vqvae.py
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import Progress
from torch import Tensor

from pixleap.models.checkpoint import save_checkpoint
from pixleap.models.quantizer import MultiScaleQuantizer
from pixleap.models.vqvae import VQVAE

from common import LOGS, WEIGHTS, Ema, Log, augment, learning_rate, save_grid
from data import load_digits

CONFIG: dict[str, Any] = {
    "vocab_size": 256, "z_channels": 16, "ch": 16, "ch_mult": [1, 2, 4], "in_channels": 1,
    "num_res_blocks": 1, "norm_groups": 8, "patch_nums": [1, 2, 3, 4, 7],
    "quant_resi": 0.5, "share_quant_resi": 4,
}  # fmt: skip


@torch.no_grad()
def revive(quantizer: MultiScaleQuantizer, features: Tensor, dead: Tensor) -> None:
    """Put each dead code (V,) bool on a random vector that some scale would have looked up.

    Works on the vectors of `features` (B, C, H, W); changes the code book in place.
    """
    sums = quantizer.f_to_idxBl_or_fhat(features, to_fhat=True)
    partial = [torch.zeros_like(features), *sums[:-1]]
    pools = [quantizer.queries(k, features - f) for k, f in enumerate(partial)]
    for code in dead.nonzero().flatten().tolist():
        pool = pools[int(torch.randint(len(pools), ()))]
        quantizer.embedding.weight[code] = pool[int(torch.randint(len(pool), ()))]


@torch.no_grad()
def validate(model: VQVAE, images: Tensor) -> tuple[float, Tensor]:
    """Mean squared error of held-out reconstructions, and use count of each code (V,)."""
    error, counts = 0.0, torch.zeros(model.vocab_size)
    for batch in images.split(250):
        codes = model.img_to_idxBl(batch)
        error += F.mse_loss(model.idxBl_to_img(codes)[0], batch).item() * len(batch)
        counts += torch.cat(codes, dim=1).flatten().bincount(minlength=model.vocab_size)
    return error / len(images), counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", default="vqvae_digits")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)

    images, _, held_out, _ = load_digits()
    model = VQVAE(**CONFIG)
    ema = Ema(model, 0.995)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.rate, betas=(0.9, 0.98),
                                  weight_decay=1e-4)  # fmt: skip
    print(f"{sum(p.numel() for p in model.parameters())} parameters")
    log, start = Log(args.name), time.perf_counter()
    usage = torch.ones(model.vocab_size)
    reconstruction, vector = 0.0, 0.0
    with Progress() as progress:
        for step in progress.track(range(args.steps), description="VQ-VAE"):
            pick = torch.randint(len(images), (args.batch,), generator=generator)
            batch = augment(images[pick], generator)
            if step % 25 == 0 and step < 0.6 * args.steps:
                with torch.no_grad():
                    features = model.quant_conv(model.encoder(batch))
                dead = usage < 0.02 if step else torch.ones_like(usage, dtype=torch.bool)
                revive(model.quantize, features, dead)
                usage[dead] = 1.0
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, args.steps, args.rate, 50)
            output, vq_loss, codes = model(batch)
            mse = F.mse_loss(output, batch)
            loss = mse + 0.2 * F.l1_loss(output, batch) + vq_loss
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            ema.update(model)
            counts = torch.cat(codes, dim=1).flatten().bincount(minlength=len(usage))
            usage = 0.97 * usage + 0.03 * (counts.float() * (len(usage) / counts.sum()))
            reconstruction += (mse.item() - reconstruction) * 0.03
            vector += (vq_loss.item() - vector) * 0.03
            if (step + 1) % 100 == 0 or step + 1 == args.steps:
                error, uses = validate(ema.model, held_out)
                share = uses / uses.sum()
                perplexity = torch.exp(-(share * (share + 1e-9).log()).sum()).item()
                log.add(step=step + 1, train_mse=reconstruction, vq_loss=vector,
                        held_out_mse=error, code_perplexity=perplexity,
                        codes_used=float((uses > 0).sum()),
                        seconds=time.perf_counter() - start)  # fmt: skip
    log.draw(["train_mse", "held_out_mse"], "mean squared error, images in [-1, 1]")
    save_checkpoint(WEIGHTS / f"{args.name}.npz", ema.model.config, ema.model.state_dict())
    some = held_out[::12][:40]  # sorted by class: 4 of each
    pairs = torch.cat([some, ema.model.img_to_reconstructed_img(some)[0]])
    order = torch.arange(80).view(2, 4, 10).transpose(0, 1).flatten()
    save_grid((pairs[order] + 1) / 2, LOGS / f"{args.name}_reconstructions.png", columns=10)


if __name__ == "__main__":
    main()
