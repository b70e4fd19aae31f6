"""Minimal modules with the parameter names, attributes and behaviour of the attention layers of the
official VAR (models/basic_var.py) and TarFlow (transformer_flow.py), to test drop-ins against."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class VarAttention(nn.Module):
    def __init__(self, width: int, heads: int, l2_norm: bool, drop: float = 0.0) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.attn_l2_norm = heads, width // heads, l2_norm
        self.scale = 1.0 if l2_norm else 0.25 / math.sqrt(width // heads)
        if l2_norm:
            self.scale_mul_1H11 = nn.Parameter(torch.full((1, heads, 1, 1), math.log(4.0)))
            self.max_scale_mul = math.log(100)
        self.mat_qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.randn(width) * 0.1)
        self.v_bias = nn.Parameter(torch.randn(width) * 0.1)
        self.zero_k_bias: Tensor
        self.register_buffer("zero_k_bias", torch.zeros(width))
        self.proj, self.proj_drop = nn.Linear(width, width), nn.Identity()
        self.attn_drop, self.using_flash, self.using_xform = drop, False, False
        self.cached_k: Tensor | None = None
        self.cached_v: Tensor | None = None
        self.caching = False

    def kv_caching(self, enable: bool) -> None:
        self.caching, self.cached_k, self.cached_v = enable, None, None

    def forward(self, x: Tensor, attn_bias: Tensor | None) -> Tensor:
        bias = torch.cat([self.q_bias, self.zero_k_bias, self.v_bias])
        projected = F.linear(x, self.mat_qkv.weight, bias).unflatten(2, (3, self.num_heads, -1))
        q, k, v = (projected[:, :, i].transpose(1, 2) for i in range(3))
        if self.attn_l2_norm:
            q = F.normalize(q, dim=-1) * self.scale_mul_1H11.clamp_max(self.max_scale_mul).exp()
            k = F.normalize(k, dim=-1)
        if self.caching:
            if self.cached_k is not None and self.cached_v is not None:
                k = torch.cat([self.cached_k, k], 2)
                v = torch.cat([self.cached_v, v], 2)
            self.cached_k, self.cached_v = k, v
        dropout = self.attn_drop if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_bias, dropout, scale=self.scale)
        return self.proj_drop(self.proj(y.transpose(1, 2).flatten(2)))


class TarFlowAttention(nn.Module):
    USE_SPDA = True

    def __init__(self, channels: int, head_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.num_heads, self.sqrt_scale = channels // head_dim, head_dim**-0.25
        self.sample = False
        self.k_cache: dict[str, list[Tensor]] = {"cond": [], "uncond": []}
        self.v_cache: dict[str, list[Tensor]] = {"cond": [], "uncond": []}

    def forward(
        self, x: Tensor, mask: Any = None, temp: float = 1.0, which_cache: str = "cond"
    ) -> Tensor:
        normal = self.norm(x.float()).type(x.dtype)
        heads = self.qkv(normal).unflatten(2, (3 * self.num_heads, -1)).transpose(1, 2)
        q, k, v = heads.chunk(3, 1)
        if self.sample:
            self.k_cache[which_cache].append(k)
            self.v_cache[which_cache].append(v)
            k = torch.cat(self.k_cache[which_cache], 2)
            v = torch.cat(self.v_cache[which_cache], 2)
        seen = None if mask is None else mask.bool()
        y = F.scaled_dot_product_attention(q, k, v, seen, scale=self.sqrt_scale**2 / temp)
        return self.proj(y.transpose(1, 2).flatten(2))


class TarFlowBlock(nn.Module):
    """Residual attention layers, with the mask and the sample mode of the official MetaBlock."""

    def __init__(self, channels: int, head_dim: int, patches: int, layers: int = 2) -> None:
        super().__init__()
        self.attn_blocks = nn.ModuleList(
            TarFlowAttention(channels, head_dim) for _ in range(layers)
        )
        self.attn_mask: Tensor
        self.register_buffer("attn_mask", torch.ones(patches, patches).tril())

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        if not kwargs:
            kwargs["mask"] = self.attn_mask
        for layer in self.attn_blocks:
            x = x + layer(x, **kwargs)
        return x

    def set_sample_mode(self, flag: bool = True) -> None:
        for m in self.attn_blocks:
            m.sample = flag  # type: ignore[assignment]
            m.k_cache = {"cond": [], "uncond": []}  # type: ignore[assignment]
            m.v_cache = {"cond": [], "uncond": []}  # type: ignore[assignment]
