"""Transformer layers of TarFlow: whole sequences in `forward`, one token with a cache in `step`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LayerCache = tuple[list[Tensor], list[Tensor]]  # keys and values (B, H, 1, D), one per token


class Attention(nn.Module):
    """Pre-norm multi-head self-attention, (B, T, C) -> (B, T, C)."""

    def __init__(self, channels: int, head_dim: int) -> None:
        super().__init__()
        if channels % head_dim:
            raise ValueError(f"channels={channels} is not a multiple of head_dim={head_dim}")
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.head_dim = head_dim

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys, values, each (B, H, T, D)."""
        qkv = self.qkv(self.norm(x)).unflatten(-1, (3, -1, self.head_dim))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return q, k, v

    def forward(self, x: Tensor) -> Tensor:
        """Causal attention over the whole sequence."""
        y = F.scaled_dot_product_attention(*self._heads(x), is_causal=True)
        return self.proj(y.transpose(1, 2).flatten(2))

    def step(self, x: Tensor, cache: LayerCache, temp: float) -> Tensor:
        """Attention of one new token x (B, 1, C) to itself and all tokens in the cache."""
        q, k, v = self._heads(x)
        keys, values = cache
        keys.append(k)
        values.append(v)
        k, v = torch.cat(keys, dim=2), torch.cat(values, dim=2)
        y = F.scaled_dot_product_attention(q, k, v, scale=self.head_dim**-0.5 / temp)
        return self.proj(y.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Pre-norm two-layer perceptron with GELU."""

    def __init__(self, channels: int, expansion: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        hidden = channels * expansion
        self.main = nn.Sequential(
            nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.main(self.norm(x))


class AttentionBlock(nn.Module):
    """Residual attention followed by a residual MLP."""

    def __init__(self, channels: int, head_dim: int, expansion: int) -> None:
        super().__init__()
        self.attention = Attention(channels, head_dim)
        self.mlp = MLP(channels, expansion)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.mlp(x)

    def step(self, x: Tensor, cache: LayerCache, temp: float) -> Tensor:
        x = x + self.attention.step(x, cache, temp)
        return x + self.mlp(x)
