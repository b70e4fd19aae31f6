"""Small VAR models with random weights."""

from __future__ import annotations

import torch

from pixleap.models import VAR, VQVAE


def random_var(shared_aln: bool = False, share_phi: int = 4, l2_norm: bool = True) -> VAR:
    torch.manual_seed(1)
    sides = (1, 2, 3, 4)
    vae = VQVAE(
        vocab_size=37, z_channels=8, ch=32, ch_mult=(1, 1), in_channels=1, num_res_blocks=1,
        patch_nums=sides, share_quant_resi=share_phi,
    )  # fmt: skip
    model = VAR(
        vae, num_classes=5, depth=2, embed_dim=48, num_heads=3, shared_aln=shared_aln,
        attn_l2_norm=l2_norm, patch_nums=sides,
    )  # fmt: skip
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "ada" in name or "head" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    for m in (vae, model):
        m.eval().requires_grad_(False)
    return model
