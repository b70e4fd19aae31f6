"""Transformer layers of STARFlow: causal attention with rotary positions, whole sequences or
windows behind a cache of keys and values that can be rolled back."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Rope = tuple[Tensor, Tensor]  # cosines and sines (rows, head_dim)


class RMSNorm(nn.Module):
    """x / rms(x) * (1 + weight) over the last dimension."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.zeros(dim)), eps

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * (1 + self.weight)


def make_norm(kind: str, dim: int) -> nn.Module:
    """ "layer_norm" or "rms_norm"."""
    norms = {"layer_norm": nn.LayerNorm, "rms_norm": RMSNorm}
    if kind not in norms:
        raise ValueError(f"StarFlow: norm_type expected one of {', '.join(norms)}, got {kind!r}")
    return norms[kind](dim)


def rotary(height: int, width: int, text: int, head_dim: int, side: int, with_text: bool) -> Rope:
    """Angles of `text` text tokens and then height x width image tokens in raster order.

    Coordinates are scaled so that an image of any size spans about `side` (of the training's
    square). with_text: a model that knows text keeps 8 frequencies for the place in the text.
    """
    half = head_dim // 2 - (8 if with_text else 0)
    spatial = 10000.0 ** -(torch.arange(0, half, 2)[: half // 2] / half)
    mean = math.sqrt(height * width)
    row, column = torch.meshgrid(
        torch.arange(height) / mean * side, torch.arange(width) / mean * side, indexing="ij"
    )
    zero = torch.zeros(text)
    angles = [torch.cat((zero, axis.flatten()))[:, None] * spatial for axis in (row, column)]
    if with_text:
        place = torch.arange(text) / max(text, 1) * side
        place = torch.cat((place, torch.zeros(height * width)))
        angles.append(place[:, None] * 10000.0 ** -(torch.arange(8) / 8))
    pairs = torch.cat(angles, 1).repeat_interleave(2, dim=1)
    return pairs.cos(), pairs.sin()


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """x (B, H, L, D) turned by the angles of its L rows; neighbours in D are a pair."""
    cos, sin = rope
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    return x * cos + torch.stack((-second, first), -1).flatten(-2) * sin


class RowCache:
    """Keys (turned) and values of the rows so far of one layer, (B, H, rows, D) each, in buffers
    that are allocated once."""

    def __init__(self, batch: int, heads: int, rows: int, head_dim: int, like: Tensor) -> None:
        self.keys = like.new_empty(batch, heads, rows, head_dim)
        self.values = torch.empty_like(self.keys)
        self.length = 0

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        end = self.length + k.shape[2]
        self.keys[:, :, self.length : end] = k
        self.values[:, :, self.length : end] = v
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class StarAttention(nn.Module):
    """Pre-norm causal attention, with fewer heads for keys and values than for queries if told."""

    def __init__(
        self, channels: int, head_dim: int, kv_heads: int, norm_type: str, qk_norm: bool,
        post_norm: bool, bias: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        if channels % head_dim or (channels // head_dim) % kv_heads:
            raise ValueError(
                f"StarFlow: channels={channels} in heads of {head_dim} do not fit "
                f"num_kv_heads={kv_heads}"
            )
        self.head_dim, self.kv_heads = head_dim, kv_heads
        self.norm = make_norm(norm_type, channels)
        self.qkv = nn.Linear(channels, channels + 2 * kv_heads * head_dim, bias=bias)
        self.proj = nn.Linear(channels, channels, bias=bias)
        self.query_norm = RMSNorm(head_dim) if qk_norm else None
        self.key_norm = RMSNorm(head_dim) if qk_norm else None
        self.post_norm = RMSNorm(channels) if post_norm else None

    def forward(self, x: Tensor, rope: Rope, cache: RowCache | None, temp: float) -> Tensor:
        """x (B, L, C): the rows after those in the cache, whose angles `rope` has."""
        channels, kv = x.shape[-1], self.kv_heads * self.head_dim
        parts = self.qkv(self.norm(x)).split((channels, kv, kv), dim=-1)
        q, k, v = (p.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for p in parts)
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        q, k = rotate(q, rope), rotate(k, rope)
        before = 0
        if cache is not None:
            before = cache.length
            k, v = cache.append(k, v)
        group = q.shape[1] // self.kv_heads
        if group > 1:
            k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        rows = q.shape[2]
        mask = None
        if before and rows > 1:
            ones = torch.ones(rows, before + rows, dtype=torch.bool, device=x.device)
            mask = ones.tril(before)
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=not before, scale=self.head_dim**-0.5 / temp
        )
        y = self.proj(y.transpose(1, 2).flatten(2))
        return y if self.post_norm is None else self.post_norm(y)


class StarMLP(nn.Module):
    """Pre-norm perceptron with GELU, or gated (up times the tanh-GELU of gate; the repository calls
    it SwiGLU)."""

    def __init__(
        self, channels: int, expansion: float, gated: bool, norm_type: str, post_norm: bool,
        bias: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.norm = make_norm(norm_type, channels)
        self.post_norm = RMSNorm(channels) if post_norm else None
        hidden = int(channels * expansion)
        self.gated = gated
        if gated:
            self.gate_proj = nn.Linear(channels, hidden, bias=bias)
            self.up_proj = nn.Linear(channels, hidden, bias=bias)
            self.down_proj = nn.Linear(hidden, channels, bias=bias)
        else:
            self.main = nn.Sequential(
                nn.Linear(channels, hidden, bias=bias),
                nn.GELU(),
                nn.Linear(hidden, channels, bias=bias),
            )

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        if self.gated:
            x = self.down_proj(F.gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x))
        else:
            x = self.main(x)
        return x if self.post_norm is None else self.post_norm(x)


class StarLayer(nn.Module):
    """Residual attention, then a residual perceptron."""

    def __init__(self, attention: StarAttention, mlp: StarMLP) -> None:
        super().__init__()
        self.attention, self.mlp = attention, mlp

    def forward(self, x: Tensor, rope: Rope, cache: RowCache | None, temp: float) -> Tensor:
        x = x + self.attention(x, rope, cache, temp)
        return x + self.mlp(x)
