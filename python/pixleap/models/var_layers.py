"""Transformer blocks of VAR (arXiv:2404.02905) under the parameter names of its checkpoints.

Shape letters: B batch, l new tokens, L tokens so far, C width, H heads, D head width (C = H D).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class KVCache:
    """Keys and values (B, H, L, D) of one layer; grows by `torch.cat`, as the official loop's."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add (B, H, l, D) and return everything so far."""
        if self.keys is not None and self.values is not None:
            keys = torch.cat((self.keys, keys), dim=2)
            values = torch.cat((self.values, values), dim=2)
        self.keys, self.values = keys, values
        return keys, values


class FFN(nn.Module):
    """(B, l, C) -> (B, l, C): linear, GELU (tanh form), linear."""

    def __init__(self, width: int, hidden: int, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU(approximate="tanh")
        self.fc2 = nn.Linear(hidden, width)
        self.drop = nn.Dropout(drop_rate) if drop_rate > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.act(self.fc1(x))))


class SelfAttention(nn.Module):
    """(B, l, C) -> (B, l, C).

    With `l2_norm`, queries and keys are unit vectors and queries carry a learnt scale per head,
    exp(scale_mul_1H11) capped at 100; otherwise the scale is 1 / (4 sqrt(D)), as in the
    official code. Keys have no bias: `zero_k_bias` only fills its place in the joint projection.
    """

    zero_k_bias: Tensor

    def __init__(self, width: int, num_heads: int, l2_norm: bool, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, width // num_heads
        self.l2_norm = l2_norm
        self.scale = 1.0 if l2_norm else 0.25 / math.sqrt(self.head_dim)
        if l2_norm:
            self.scale_mul_1H11 = nn.Parameter(torch.full((1, num_heads, 1, 1), math.log(4.0)))
            self.max_scale_mul = math.log(100.0)
        self.mat_qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("zero_k_bias", torch.zeros(width), persistent=False)
        self.proj = nn.Linear(width, width)
        self.proj_drop = nn.Dropout(drop_rate) if drop_rate > 0 else nn.Identity()

    def forward(self, x: Tensor, mask: Tensor | None, cache: KVCache | None) -> Tensor:
        """`mask` (1, 1, L, L) is added to the scores; `cache` supplies earlier keys and values."""
        batch, length, width = x.shape
        bias = torch.cat((self.q_bias, self.zero_k_bias, self.v_bias))
        qkv = F.linear(x, self.mat_qkv.weight, bias)
        qkv = qkv.view(batch, length, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(dim=0)  # each (B, H, l, D)
        if self.l2_norm:
            q = F.normalize(q, dim=-1) * self.scale_mul_1H11.clamp_max(self.max_scale_mul).exp()
            k = F.normalize(k, dim=-1)
        if cache is not None:
            k, v = cache.append(k, v)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale)
        return self.proj_drop(self.proj(out.transpose(1, 2).reshape(batch, length, width)))


class AdaLNSelfAttn(nn.Module):
    """One block: attention and FFN, each normalised, modulated by the class, and gated.

    The six modulation vectors (two gains of the branches, two scales, two shifts) come from the
    block's own projection of the class embedding (B, C), or, with `shared_aln`, from one
    projection (B, 1, 6, C) shared by all blocks plus a learnt offset `ada_gss` of this block.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        mlp_ratio: float,
        norm_eps: float,
        shared_aln: bool,
        l2_norm: bool,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.width, self.shared_aln = width, shared_aln
        self.attn = SelfAttention(width, num_heads, l2_norm, drop_rate)
        self.ffn = FFN(width, round(width * mlp_ratio), drop_rate)
        self.ln_wo_grad = nn.LayerNorm(width, eps=norm_eps, elementwise_affine=False)
        if shared_aln:
            self.ada_gss = nn.Parameter(torch.randn(1, 1, 6, width) / width**0.5)
        else:
            self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    @torch.no_grad()
    def scale_weights(self, depth: int) -> None:
        """Official start: gates near 0, milder modulation, outputs smaller in deeper models."""
        self.attn.proj.weight.div_(math.sqrt(2 * depth))
        self.ffn.fc2.weight.div_(math.sqrt(2 * depth))
        six = self.ada_gss[0, 0] if self.shared_aln else self.ada_lin.get_parameter("1.weight")
        gates = len(six) // 3
        six[:gates].mul_(1e-5)
        six[gates:].mul_(0.5)

    def forward(
        self, x: Tensor, condition: Tensor, mask: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        """x (B, l, C), condition (B, C) or shared (B, 1, 6, C) -> (B, l, C)."""
        if self.shared_aln:
            six = self.ada_gss + condition
        else:
            six = self.ada_lin(condition).view(-1, 1, 6, self.width)
        gain1, gain2, scale1, scale2, shift1, shift2 = six.unbind(2)  # each (B, 1, C)
        h = self.ln_wo_grad(x).mul(scale1.add(1)).add_(shift1)
        x = x + self.attn(h, mask, cache).mul_(gain1)
        h = self.ln_wo_grad(x).mul(scale2.add(1)).add_(shift2)
        return x + self.ffn(h).mul(gain2)


class AdaLNBeforeHead(nn.Module):
    """(B, l, C), class embedding (B, C) -> (B, l, C): layer norm with class scale and shift."""

    def __init__(self, width: int, norm_eps: float) -> None:
        super().__init__()
        self.width = width
        self.ln_wo_grad = nn.LayerNorm(width, eps=norm_eps, elementwise_affine=False)
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.ada_lin(condition).view(-1, 1, 2, self.width).unbind(2)
        return self.ln_wo_grad(x).mul(scale.add(1)).add_(shift)


class SharedAdaLin(nn.Linear):
    """(B, C) -> (B, 1, 6, C): the modulation shared by all blocks."""

    def forward(self, condition: Tensor) -> Tensor:
        return super().forward(condition).view(-1, 1, 6, self.out_features // 6)
