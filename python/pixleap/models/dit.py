"""DiT (Peebles & Xie 2022, arXiv 2212.09748): a diffusion transformer with adaLN-Zero blocks.

Parameter names are those of facebookresearch/DiT, so its checkpoints load (`load_dit`). What the
model predicts and on which noise schedule it was trained stands in `DiT.diffusion`, under the
names of diffusers' schedulers:

    prediction_type  "epsilon" or "v_prediction" (v = alpha eps - sigma x0, arXiv 2202.00512)
    beta_schedule "linear", beta_start, beta_end, num_train_timesteps: beta_i = linspace(beta_start,
    beta_end, num_train_timesteps); alpha_t^2 = prod of (1 - beta_i) for i <= t; sigma_t^2 = 1 -
    alpha_t^2; between whole t, log(sigma / alpha) is linear in t (`decode.noise_schedule`).

Noised images are alpha_t x0 + sigma_t eps; t counts from 0 (nearly clean) to
num_train_timesteps - 1 (nearly noise) and may be fractional.

Shape letters: N batch, C channels, S image side, p patch side, T = (S / p)^2 tokens, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .var_layers import FFN

# How the official checkpoints were trained; the learnt variance is the second half of the output.
OFFICIAL_DIFFUSION: dict[str, Any] = {
    "prediction_type": "epsilon",
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "num_train_timesteps": 1000,
}


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (N, T, D) * (1 + scale) + shift, both (N, D)."""
    return torch.addcmul(shift.unsqueeze(1), x, 1 + scale.unsqueeze(1))


class PatchEmbed(nn.Module):
    """Images (N, C, S, S) -> tokens (N, T, D), rows first."""

    def __init__(self, patch_size: int, in_channels: int, hidden_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, hidden_size, patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class TimestepEmbedder(nn.Module):
    """Times (N,), fractional or not -> (N, D): sines and cosines, then an MLP."""

    def __init__(self, hidden_size: int, frequency_embedding_size: int = 256) -> None:
        super().__init__()
        self.frequency_embedding_size = frequency_embedding_size
        self.mlp = nn.Sequential(
            nn.Linear(frequency_embedding_size, hidden_size),
            nn.SiLU(),
            nn.Linear(hidden_size, hidden_size),
        )

    def forward(self, t: Tensor) -> Tensor:
        half = self.frequency_embedding_size // 2
        weight = self.mlp.get_parameter("0.weight")
        dtype = torch.promote_types(weight.dtype, torch.float32)  # bf16 cannot tell t = 998 and 999
        steps = torch.arange(half, dtype=dtype, device=t.device)
        angles = t.to(dtype)[:, None] * torch.exp(steps * (-math.log(10000.0) / half))
        return self.mlp(torch.cat((angles.cos(), angles.sin()), dim=-1).to(weight.dtype))


class LabelEmbedder(nn.Module):
    """Labels (N,) -> (N, D). In training labels become "no label" (num_classes) at random."""

    def __init__(self, num_classes: int, hidden_size: int, dropout_prob: float) -> None:
        super().__init__()
        self.num_classes, self.dropout_prob = num_classes, dropout_prob
        self.embedding_table = nn.Embedding(num_classes + (dropout_prob > 0), hidden_size)

    def forward(self, y: Tensor) -> Tensor:
        if self.training and self.dropout_prob > 0:
            drop = torch.rand(y.shape, device=y.device) < self.dropout_prob
            y = y.masked_fill(drop, self.num_classes)
        return self.embedding_table(y)


class Attention(nn.Module):
    """Self-attention (N, T, D) -> (N, T, D) over all tokens."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (N, heads, T, D / heads)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).flatten(2))


class DiTBlock(nn.Module):
    """Attention and MLP, each normalised, shifted, scaled and gated by the condition c (N, D)."""

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden_size, eps=1e-6, elementwise_affine=False)
        self.attn = Attention(hidden_size, num_heads)
        self.norm2 = nn.LayerNorm(hidden_size, eps=1e-6, elementwise_affine=False)
        self.mlp = FFN(hidden_size, int(hidden_size * mlp_ratio))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 6 * hidden_size))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        six = self.adaLN_modulation(c).chunk(6, dim=1)
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = six
        h = self.attn(modulate(self.norm1(x), shift_msa, scale_msa))
        x = torch.addcmul(x, gate_msa.unsqueeze(1), h)
        h = self.mlp(modulate(self.norm2(x), shift_mlp, scale_mlp))
        return torch.addcmul(x, gate_mlp.unsqueeze(1), h)


class FinalLayer(nn.Module):
    """Tokens (N, T, D), condition (N, D) -> patches (N, T, p * p * out_channels)."""

    def __init__(self, hidden_size: int, patch_size: int, out_channels: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(hidden_size, eps=1e-6, elementwise_affine=False)
        self.linear = nn.Linear(hidden_size, patch_size * patch_size * out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 2 * hidden_size))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


def sincos_positions(hidden_size: int, side: int) -> Tensor:
    """(1, side * side, D): the first half of D encodes a token's column, the second its row."""
    quarter = hidden_size // 4
    steps = torch.arange(quarter, dtype=torch.float64)
    angles = torch.arange(side, dtype=torch.float64)[:, None] * 10000.0 ** (-steps / quarter)
    line = torch.cat((angles.sin(), angles.cos()), dim=1)  # (side, D / 2)
    columns, rows = line.repeat(side, 1), line.repeat_interleave(side, dim=0)
    return torch.cat((columns, rows), dim=1).float().unsqueeze(0)


class DiT(nn.Module):
    """DiT for images (N, in_channels, input_size, input_size); arguments as in the official code.

    `diffusion` (see the module's docstring) says what the output means and for which schedule.
    """

    pos_embed: Tensor
    blocks: Sequence[DiTBlock]  # a ModuleList, said to mypy as what it holds

    def __init__(
        self,
        input_size: int = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        class_dropout_prob: float = 0.1,
        num_classes: int = 1000,
        learn_sigma: bool = True,
        diffusion: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if input_size % patch_size:
            raise ValueError(
                f"DiT: input_size={input_size} is not a multiple of patch_size={patch_size}"
            )
        if hidden_size % num_heads or hidden_size % 4:
            raise ValueError(
                f"DiT: hidden_size must be a multiple of num_heads={num_heads} and of 4, "
                f"got {hidden_size}"
            )
        self.diffusion = {**OFFICIAL_DIFFUSION, **(diffusion or {})}
        self.config: dict[str, Any] = {
            "input_size": input_size,
            "patch_size": patch_size,
            "in_channels": in_channels,
            "hidden_size": hidden_size,
            "depth": depth,
            "num_heads": num_heads,
            "mlp_ratio": mlp_ratio,
            "class_dropout_prob": class_dropout_prob,
            "num_classes": num_classes,
            "learn_sigma": learn_sigma,
            "diffusion": self.diffusion,
        }
        self.input_size, self.patch_size, self.in_channels = input_size, patch_size, in_channels
        self.learn_sigma, self.num_classes = learn_sigma, num_classes
        self.out_channels = in_channels * (2 if learn_sigma else 1)
        self.x_embedder = PatchEmbed(patch_size, in_channels, hidden_size)
        self.t_embedder = TimestepEmbedder(hidden_size)
        self.y_embedder = LabelEmbedder(num_classes, hidden_size, class_dropout_prob)
        positions = sincos_positions(hidden_size, input_size // patch_size)
        self.register_buffer("pos_embed", positions)  # fixed, but part of the state dict
        layers = [DiTBlock(hidden_size, num_heads, mlp_ratio) for _ in range(depth)]
        self.blocks = cast(Sequence[DiTBlock], nn.ModuleList(layers))
        self.final_layer = FinalLayer(hidden_size, patch_size, self.out_channels)
        self._initialize()

    def _initialize(self) -> None:
        """Official start: Xavier, small embeddings, and zeros that make every block the identity
        and the output 0 (adaLN-Zero)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.data.flatten(1))
        nn.init.zeros_(self.x_embedder.proj.get_parameter("bias"))
        nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        for name in ("0.weight", "2.weight"):
            nn.init.normal_(self.t_embedder.mlp.get_parameter(name), std=0.02)
        for modulation in (
            *(b.adaLN_modulation for b in self.blocks),
            self.final_layer.adaLN_modulation,
        ):
            for name in ("1.weight", "1.bias"):
                nn.init.zeros_(modulation.get_parameter(name))
        nn.init.zeros_(self.final_layer.linear.weight)
        nn.init.zeros_(self.final_layer.linear.bias)

    def _check(self, x: Tensor, t: Tensor | float, y: Tensor) -> Tensor:
        """ValueError or TypeError for arguments that do not fit; t as (N,)."""
        image = (self.in_channels, self.input_size, self.input_size)
        if x.dim() != 4 or x.shape[1:] != image:
            raise ValueError(
                f"DiT: x must be (N, {', '.join(map(str, image))}), got {tuple(x.shape)}"
            )
        n = x.shape[0]
        t = torch.as_tensor(t, device=x.device)
        if t.shape not in ((), (1,), (n,)):
            raise ValueError(f"DiT: t must be a number or ({n},), got {tuple(t.shape)}")
        if y.shape != (n,):
            raise ValueError(f"DiT: y must be ({n},) as x has {n} images, got {tuple(y.shape)}")
        if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
            raise TypeError(f"DiT: y must hold integers, got {y.dtype}")
        capturing = y.is_cuda and torch.cuda.is_current_stream_capturing()
        if n and not (y.is_meta or capturing or torch.compiler.is_compiling()):
            rows = self.y_embedder.embedding_table.num_embeddings
            low, high = torch.stack(y.aminmax()).tolist()  # one wait for a device
            if low < 0 or high >= rows:
                none = f" ({self.num_classes}: no label)" if rows > self.num_classes else ""
                raise ValueError(
                    f"DiT: labels y must be 0 to {rows - 1}{none}, got {low if low < 0 else high}"
                )
        return t.expand(n)

    def condition(self, t: Tensor, y: Tensor) -> Tensor:
        """What every block is modulated by, (N, D), from times (N,) and labels (N,)."""
        return self.t_embedder(t) + self.y_embedder(y)

    def embed(self, x: Tensor) -> Tensor:
        """Images (N, C, S, S) -> tokens (N, T, D) that enter the first block."""
        return self.x_embedder(x) + self.pos_embed

    def unpatchify(self, x: Tensor) -> Tensor:
        """Patches (N, T, p * p * out_channels), channels last inside a patch -> images."""
        side, p = self.input_size // self.patch_size, self.patch_size
        x = x.view(-1, side, side, p, p, self.out_channels).permute(0, 5, 1, 3, 2, 4)
        return x.reshape(-1, self.out_channels, self.input_size, self.input_size)

    def head(self, x: Tensor, c: Tensor) -> Tensor:
        """Tokens (N, T, D) after the last block -> model output (N, out_channels, S, S)."""
        return self.unpatchify(self.final_layer(x, c))

    def forward(self, x: Tensor, t: Tensor | float, y: Tensor) -> Tensor:
        """Model output (N, out_channels, S, S) for noised images x (N, C, S, S).

        Args:
            x: in the dtype of the weights.
            t: a number or (N,), from 0 to num_train_timesteps - 1, fractional or not.
            y: integer labels (N,); num_classes stands for "no label".

        With learn_sigma, out_channels is 2 C: the prediction, then the learnt variance.
        """
        t = self._check(x, t, y)
        c = self.condition(t, y)
        x = self.embed(x)
        for block in self.blocks:
            x = block(x, c)
        return self.head(x, c)

    def forward_with_cfg(
        self,
        x: Tensor,
        t: Tensor | float,
        y: Tensor,
        cfg_scale: float,
        guided_channels: int | None = None,
    ) -> Tensor:
        """Classifier-free guidance as in the official code: uncond + cfg_scale (cond - uncond).

        Args:
            x: (2 N, C, S, S); only the first half is read and used for both passes.
            t: a number or (2 N,).
            y: (2 N,): the labels, then num_classes for every image.
            guided_channels: how many channels of the prediction are guided; None: all of them.
                The official samples were made with 3 of 4.

        Returns: (2 N, out_channels, S, S), the guided prediction in both halves.
        """
        if len(x) % 2:
            raise ValueError(f"DiT: x must hold an even number of images, got {len(x)}")
        guided = self.in_channels if guided_channels is None else guided_channels
        if not 0 <= guided <= self.in_channels:
            raise ValueError(f"DiT: guided_channels must be 0 to {self.in_channels}, got {guided}")
        half = x[: len(x) // 2]
        out = self(torch.cat((half, half)), t, y)
        cond, uncond = out[:, :guided].chunk(2)
        mixed = torch.lerp(uncond, cond, cfg_scale)
        return torch.cat((torch.cat((mixed, mixed)), out[:, guided:]), dim=1)
