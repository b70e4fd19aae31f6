"""VAR: next-scale autoregressive image model (Tian et al. 2024, arXiv:2404.02905).

The transformer predicts, scale by scale, all codes of the next finer grid at once. The sampling
loop here is the PLAIN one: what the official code does, with its costs. It is the baseline that
the accelerated decoder is measured and tested against.

Shape letters: B batch, L all tokens, n_k tokens of scale k, C width, V vocabulary, Cv channels of
the tokeniser's codes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .quantizer import PATCH_NUMS_256
from .token_sampling import draw_tokens, filter_top_k_top_p_, gumbel_softmax
from .var_layers import AdaLNBeforeHead, AdaLNSelfAttn, KVCache, SelfAttention, SharedAdaLin
from .vqvae import VQVAE

Draw = Callable[[Tensor, int], Tensor]
Progress = Callable[[int, Tensor], None]


def class_labels(
    batch: int, labels: int | Tensor | None, classes: int, generator: torch.Generator | None
) -> Tensor:
    """(batch,) int64 of `autoregressive_infer_cfg`: None draws them, a negative one means "no
    label", which is number `classes`."""
    if labels is None:
        device = torch.device("cpu") if generator is None else generator.device
        uniform = torch.full((1, classes), 1.0 / classes, device=device)
        return torch.multinomial(uniform, batch, True, generator=generator).view(batch)
    given = torch.as_tensor(labels)
    if given.is_floating_point() or given.dtype == torch.bool:
        raise TypeError(f"VAR: label_B must hold integers, got {given.dtype}")
    if given.dim() == 0:
        given = given.expand(batch)
    if tuple(given.shape) != (batch,):
        raise ValueError(f"VAR: label_B must be ({batch},), got {tuple(given.shape)}")
    if batch and int(given.max()) > classes:
        raise ValueError(f"VAR: label {int(given.max())} is beyond the {classes} classes")
    return torch.where(given < 0, classes, given).long()


class VAR(nn.Module):
    """Class-conditional next-scale transformer over the codes of `vae`.

    Args:
        vae: the tokeniser. It follows `.to(...)` but is no part of `state_dict()`.
        num_classes: labels 0 .. num_classes-1; label num_classes means "no label".
        depth, embed_dim, num_heads, mlp_ratio, norm_eps: the transformer.
        shared_aln: one modulation projection for all blocks (official at 512 px).
        cond_drop_rate: share of labels dropped while training, for classifier-free guidance.
        attn_l2_norm: unit queries and keys with a learnt scale per head.
        patch_nums: side of the code grid of each scale; must be the tokeniser's.
        drop_rate: dropout after attention and FFN while training.
    """

    lvl_1L: Tensor

    def __init__(
        self,
        vae: VQVAE,
        *,
        num_classes: int = 1000,
        depth: int = 16,
        embed_dim: int = 1024,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        norm_eps: float = 1e-6,
        shared_aln: bool = False,
        cond_drop_rate: float = 0.1,
        attn_l2_norm: bool = True,
        patch_nums: Sequence[int] = PATCH_NUMS_256,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"VAR: embed_dim {embed_dim} is no multiple of num_heads {num_heads}")
        if tuple(patch_nums) != vae.patch_nums:
            raise ValueError(f"VAR: patch_nums {tuple(patch_nums)}, but the vae's are "
                             f"{vae.patch_nums}")  # fmt: skip
        self.config: dict[str, Any] = {
            "num_classes": num_classes, "depth": depth, "embed_dim": embed_dim,
            "num_heads": num_heads, "mlp_ratio": mlp_ratio, "norm_eps": norm_eps,
            "shared_aln": shared_aln, "cond_drop_rate": cond_drop_rate,
            "attn_l2_norm": attn_l2_norm, "patch_nums": list(patch_nums),
        }  # fmt: skip
        self.num_classes, self.depth, self.C, self.num_heads = (
            num_classes, depth, embed_dim, num_heads)  # fmt: skip
        self.cond_drop_rate = cond_drop_rate
        self.patch_nums = tuple(patch_nums)
        self.L = sum(side * side for side in patch_nums)
        self.first_l = patch_nums[0] ** 2
        self.Cvae, self.V = vae.Cvae, vae.vocab_size
        self._vae = (vae,)  # in a tuple: not a submodule, so its weights stay out of state_dict

        self.word_embed = nn.Linear(self.Cvae, embed_dim)
        self.class_emb = nn.Embedding(num_classes + 1, embed_dim)
        self.pos_start = nn.Parameter(torch.empty(1, self.first_l, embed_dim))
        self.pos_1LC = nn.Parameter(torch.empty(1, self.L, embed_dim))
        self.lvl_embed = nn.Embedding(len(patch_nums), embed_dim)
        self.shared_ada_lin = (
            nn.Sequential(nn.SiLU(), SharedAdaLin(embed_dim, 6 * embed_dim))
            if shared_aln
            else nn.Identity()
        )
        self.blocks = nn.ModuleList(
            AdaLNSelfAttn(
                embed_dim, num_heads, mlp_ratio=mlp_ratio, norm_eps=norm_eps,
                shared_aln=shared_aln, l2_norm=attn_l2_norm, drop_rate=drop_rate,
            )
            for _ in range(depth)
        )  # fmt: skip
        self.head_nm = AdaLNBeforeHead(embed_dim, norm_eps)
        self.head = nn.Linear(embed_dim, self.V)
        self.register_buffer("lvl_1L", torch.empty(0), persistent=False)
        self.reset_buffers()
        self.init_weights()

    @property
    def vae(self) -> VQVAE:
        """The tokeniser."""
        return self._vae[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> VAR:
        """`.to()`, `.cuda()` and the like act on the tokeniser too."""
        self.vae._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def reset_buffers(self) -> None:
        """Compute the constants (needed after construction on the meta device)."""
        device = self.class_emb.weight.device
        sides = torch.tensor([side * side for side in self.patch_nums])
        levels = torch.arange(len(sides)).repeat_interleave(sides, output_size=self.L)
        self.lvl_1L = levels.unsqueeze(0).to(device)
        for module in self.modules():
            if isinstance(module, SelfAttention):
                module.zero_k_bias = torch.zeros(self.C, device=device)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Random weights by the official recipe: gates near 0, small head, depth-scaled outputs."""
        std = math.sqrt(1 / self.C / 3)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
        for position in (self.pos_start, self.pos_1LC):
            nn.init.trunc_normal_(position, std=std)
        self.head.weight.mul_(0.02)
        self.head_nm.get_parameter("ada_lin.1.weight").mul_(0.5)
        for module in self.modules():
            if isinstance(module, AdaLNSelfAttn):
                module.scale_weights(self.depth)

    def get_logits(self, hidden: Tensor, class_embedding: Tensor) -> Tensor:
        """Hidden (B, l, C), class embedding (B, C) -> logits (B, l, V) float32."""
        return self.head(self.head_nm(hidden.float(), class_embedding).float()).float()

    def forward(self, labels: Tensor, x_BLCv_wo_first_l: Tensor) -> Tensor:
        """Teacher-forced logits of every token in one block-causal pass.

        Args:
            labels: (B,) int64 in 0 .. num_classes; in train mode some are dropped.
            x_BLCv_wo_first_l: (B, L - n_0, Cv), from `vae.quantize.idxBl_to_var_input`.

        Returns:
            (B, L, V) float32.
        """
        if self.training and self.cond_drop_rate > 0:
            dropped = torch.rand(labels.shape[0], device=labels.device) < self.cond_drop_rate
            labels = torch.where(dropped, self.num_classes, labels)
        with torch.autocast(labels.device.type, enabled=False):
            condition = self.class_emb(labels)
            start = condition.unsqueeze(1) + self.pos_start
            x = torch.cat((start, self.word_embed(x_BLCv_wo_first_l.float())), dim=1)
            x = x + self.lvl_embed(self.lvl_1L) + self.pos_1LC
        allowed = self.lvl_1L.transpose(0, 1) >= self.lvl_1L  # (L, L): to own or coarser scale
        mask = torch.where(allowed, 0.0, -torch.inf).view(1, 1, self.L, self.L)
        modulation = self.shared_ada_lin(condition)
        for block in self.blocks:
            x = block(x, modulation, mask=mask)
        return self.get_logits(x, condition)

    @torch.no_grad()
    def autoregressive_infer_cfg(
        self,
        B: int,
        label_B: int | Tensor | None,
        g_seed: int | None = None,
        cfg: float = 1.5,
        top_k: int = 0,
        top_p: float = 0.0,
        more_smooth: bool = False,
        *,
        draw: Draw | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """Sample images with classifier-free guidance: the plain loop.

        Args:
            B: images.
            label_B: one label for all, (B,) labels, or None for random ones; negative (or
                num_classes) means unconditional.
            g_seed: seed of the draws; None uses torch's global generator.
            cfg: guidance; scale k of S runs at t = cfg k / (S - 1) and its logits are
                (1 + t) conditional - t unconditional.
            top_k, top_p: filters (0 = off), top-k first.
            more_smooth: mix codes by a Gumbel softmax (for pictures, not for metrics).
            draw: replaces the multinomial draw: (filtered logits (B, n_k, V) float32, scale
                index) -> tokens (B, n_k) int64.
            progress: called after each scale with its index and f_hat (B, Cv, H, W), the
                features so far (`vae.fhat_to_img` makes images of them). The next scale is
                added to the same tensor: clone it to keep it, and do not write to it.

        Returns:
            Images (B, channels, height, width) in [0, 1].
        """
        if not 0.0 <= top_p <= 1.0:
            raise ValueError(f"VAR: top_p must be in [0, 1], got {top_p}")
        device = self.class_emb.weight.device
        generator = None
        if g_seed is not None:
            generator = torch.Generator(device).manual_seed(g_seed)
        labels = class_labels(B, label_B, self.num_classes, generator).to(self.pos_start.device)
        quantizer = self.vae.quantize
        scales = len(self.patch_nums)

        unlabelled = torch.full_like(labels, self.num_classes)
        condition = self.class_emb(torch.cat((labels, unlabelled)))  # (2B, C): with, without
        positions = self.lvl_embed(self.lvl_1L) + self.pos_1LC
        x = condition.unsqueeze(1) + self.pos_start + positions[:, : self.first_l]
        f_hat = condition.new_zeros(B, self.Cvae, self.patch_nums[-1], self.patch_nums[-1])
        caches = [KVCache() for _ in self.blocks]
        done = 0
        for scale, side in enumerate(self.patch_nums):
            done += side * side
            ratio = scale / (scales - 1) if scales > 1 else 0.0
            modulation = self.shared_ada_lin(condition)
            for block, cache in zip(self.blocks, caches, strict=True):
                x = block(x, modulation, cache=cache)
            logits = self.get_logits(x, condition)
            t = cfg * ratio
            logits = (1 + t) * logits[:B] - t * logits[B:]
            filter_top_k_top_p_(logits, top_k, top_p)
            tokens = draw(logits, scale) if draw else draw_tokens(logits, generator)
            if more_smooth:
                temperature = max(0.27 * (1 - ratio * 0.95), 0.005)
                weights = gumbel_softmax(logits * (1 + ratio), temperature, generator)
                codes = weights @ quantizer.embedding.weight
            else:
                codes = quantizer.embedding(tokens)
            grid = codes.transpose(1, 2).reshape(B, self.Cvae, side, side)
            f_hat, pooled = quantizer.get_next_autoregressive_input(scale, scales, f_hat, grid)
            if progress is not None:
                progress(scale, f_hat)
            if scale < scales - 1:
                length = self.patch_nums[scale + 1] ** 2
                x = self.word_embed(pooled.flatten(2).transpose(1, 2))
                x = (x + positions[:, done : done + length]).repeat(2, 1, 1)
        return self.vae.fhat_to_img(f_hat).add_(1).mul_(0.5)
