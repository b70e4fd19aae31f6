"""Small VAR models with random weights, and the noise of the native draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pixleap.models import VAR, VQVAE
from pixleap.reference.philox import uniform_open, words


def liven(model: VAR) -> VAR:
    """Modulation and head away from their small start, ready for inference."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "ada" in name or "head" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    for m in (model.vae, model):
        m.eval().requires_grad_(False)
    return model


def random_var(
    shared_aln: bool = False,
    share_phi: int = 4,
    l2_norm: bool = True,
    sides: tuple[int, ...] = (1, 2, 3, 4),
    vocabulary: int = 37,
    seed: int = 1,
) -> VAR:
    torch.manual_seed(seed)
    vae = VQVAE(
        vocab_size=vocabulary, z_channels=8, ch=32, ch_mult=(1, 1), in_channels=1,
        num_res_blocks=1, patch_nums=sides, share_quant_resi=share_phi,
    )  # fmt: skip
    return liven(
        VAR(
            vae, num_classes=5, depth=2, embed_dim=48, num_heads=3, shared_aln=shared_aln,
            attn_l2_norm=l2_norm, patch_nums=sides,
        )
    )  # fmt: skip


def sibling(model: VAR, classes: int = 5, seed: int = 7) -> VAR:
    """A smaller model over the same tokeniser."""
    torch.manual_seed(seed)
    return liven(
        VAR(
            model.vae, num_classes=classes, depth=1, embed_dim=32, num_heads=2,
            patch_nums=model.patch_nums,
        )
    )  # fmt: skip


def shared_noise(model: VAR, batch: int, seed: int) -> Any:
    """The Gumbel noise of ops.sample_tokens, for the plain loop."""

    def draw(logits: torch.Tensor, scale: int) -> torch.Tensor:
        count = batch * model.patch_nums[scale] ** 2 * model.V
        gumbel = -np.log(-np.log(uniform_open(words(count, seed, scale))))
        return (logits.double() + torch.from_numpy(gumbel).view(logits.shape)).argmax(-1)

    return draw
