"""VAR's image tokeniser: convolutional encoder, multi-scale quantiser, convolutional decoder.

The network is the VQGAN of Esser et al. (2021) with the quantiser of VAR (arXiv:2404.02905).
Defaults and parameter names are those of the official checkpoint `vae_ch160v4096z32.pth`.
Images are (B, in_channels, H, W) in [-1, 1]; features are (B, z_channels, H/f, W/f) with
f = 2 ** (len(ch_mult) - 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .quantizer import PATCH_NUMS_256, MultiScaleQuantizer


def _norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=1e-6)


def _conv3(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=3, padding=1)


class ResnetBlock(nn.Module):
    """(B, in, H, W) -> (B, out, H, W): two norm-SiLU-conv3x3 steps around a shortcut."""

    def __init__(self, inputs: int, outputs: int, groups: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(inputs, groups), _conv3(inputs, outputs)
        self.norm2, self.conv2 = _norm(outputs, groups), _conv3(outputs, outputs)
        self.dropout = nn.Dropout(dropout)
        self.nin_shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x), inplace=True))
        h = self.conv2(self.dropout(F.silu(self.norm2(h), inplace=True)))
        return self.nin_shortcut(x) + h


class AttnBlock(nn.Module):
    """(B, C, H, W) -> same: one-head self-attention over the H*W positions, residual."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = _norm(channels, groups)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).chunk(3, dim=1)  # each (B, C, H*W)
        weights = torch.bmm(q.transpose(1, 2), k).mul_(x.shape[1] ** -0.5).softmax(dim=2)
        return x + self.proj_out(torch.bmm(v, weights.transpose(1, 2)).view_as(x))


class Downsample2x(nn.Module):
    """(B, C, H, W) -> (B, C, H/2, W/2): stride-2 conv3x3, padded right and below only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample2x(nn.Module):
    """(B, C, H, W) -> (B, C, 2H, 2W): nearest neighbour, then conv3x3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _conv3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Blocks of one resolution; attention after each block where `attention` is set."""

    def __init__(
        self, inputs: int, outputs: int, count: int, attention: bool, groups: int, dropout: float
    ) -> None:
        super().__init__()
        widths = [inputs] + [outputs] * count
        self.block = nn.ModuleList(ResnetBlock(a, b, groups, dropout) for a, b in pairwise(widths))
        self.attn = nn.ModuleList(AttnBlock(outputs, groups) for _ in range(count * attention))
        self.downsample: nn.Module | None = None
        self.upsample: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        for resample in (self.downsample, self.upsample):
            if resample is not None:
                x = resample(x)
        return x


class Middle(nn.Module):
    """Block, attention, block at the lowest resolution."""

    def __init__(self, channels: int, groups: int, dropout: float) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, groups, dropout)
        self.attn_1 = AttnBlock(channels, groups)
        self.block_2 = ResnetBlock(channels, channels, groups, dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """Images (B, in_channels, H, W) -> features (B, z_channels, H/f, W/f)."""

    def __init__(
        self, image_channels: int, z_channels: int, widths: Sequence[int], first: int,
        blocks: int, groups: int, dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        last = len(widths) - 1
        self.conv_in = _conv3(image_channels, first)
        self.down = nn.ModuleList()
        for i, (a, b) in enumerate(pairwise([first, *widths])):
            level = Level(a, b, blocks, i == last, groups, dropout)
            level.downsample = Downsample2x(b) if i < last else None
            self.down.append(level)
        self.mid = Middle(widths[-1], groups, dropout)
        self.norm_out = _norm(widths[-1], groups)
        self.conv_out = _conv3(widths[-1], z_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x)), inplace=True))


class Decoder(nn.Module):
    """Features (B, z_channels, h, w) -> images (B, in_channels, h f, w f), not yet clamped."""

    def __init__(
        self, image_channels: int, z_channels: int, widths: Sequence[int],
        blocks: int, groups: int, dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        last = len(widths) - 1
        self.conv_in = _conv3(z_channels, widths[-1])
        self.mid = Middle(widths[-1], groups, dropout)
        self.up = nn.ModuleList()  # index = resolution level; run from the last to the first
        for i, b in enumerate(widths):
            level = Level(widths[min(i + 1, last)], b, blocks + 1, i == last, groups, dropout)
            level.upsample = Upsample2x(b) if i > 0 else None
            self.up.append(level)
        self.norm_out = _norm(widths[0], groups)
        self.conv_out = _conv3(widths[0], image_channels)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x), inplace=True))


class VQVAE(nn.Module):
    """Multi-scale residual VQ-VAE.

    Args:
        vocab_size: codes in the shared code book.
        z_channels: channels of the features and codes.
        ch: channels of the first level; level i has ch * ch_mult[i].
        ch_mult: one factor per resolution; the image is halved between levels.
        in_channels: image channels.
        num_res_blocks: residual blocks per encoder level (the decoder has one more).
        norm_groups: groups of the group norms (must divide every ch * ch_mult[i]).
        patch_nums, quant_resi, share_quant_resi, using_znorm, beta: see MultiScaleQuantizer.
        dropout: in the residual blocks, while training.
    """

    def __init__(
        self,
        *,
        vocab_size: int = 4096,
        z_channels: int = 32,
        ch: int = 160,
        ch_mult: Sequence[int] = (1, 1, 2, 2, 4),
        in_channels: int = 3,
        num_res_blocks: int = 2,
        norm_groups: int = 32,
        patch_nums: Sequence[int] = PATCH_NUMS_256,
        quant_resi: float = 0.5,
        share_quant_resi: int = 4,
        using_znorm: bool = False,
        beta: float = 0.25,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "vocab_size": vocab_size, "z_channels": z_channels, "ch": ch,
            "ch_mult": list(ch_mult), "in_channels": in_channels,
            "num_res_blocks": num_res_blocks, "norm_groups": norm_groups,
            "patch_nums": list(patch_nums), "quant_resi": quant_resi,
            "share_quant_resi": share_quant_resi, "using_znorm": using_znorm,
        }  # fmt: skip
        self.vocab_size, self.Cvae = vocab_size, z_channels
        self.patch_nums = tuple(patch_nums)
        self.downsample = 2 ** (len(ch_mult) - 1)
        widths = [ch * factor for factor in ch_mult]
        common = (num_res_blocks, norm_groups, dropout)
        self.encoder = Encoder(in_channels, z_channels, widths, ch, *common)
        self.decoder = Decoder(in_channels, z_channels, widths, *common)
        self.quantize = MultiScaleQuantizer(
            vocab_size, z_channels, patch_nums, quant_resi=quant_resi,
            share_quant_resi=share_quant_resi, using_znorm=using_znorm, beta=beta,
        )  # fmt: skip
        self.quant_conv = _conv3(z_channels, z_channels)
        self.post_quant_conv = _conv3(z_channels, z_channels)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Training: images -> reconstruction (not clamped), VQ loss (), codes per scale."""
        f_hat, loss, codes = self.quantize(self.quant_conv(self.encoder(images)))
        return self.decoder(self.post_quant_conv(f_hat)), loss, codes

    def img_to_idxBl(self, images: Tensor) -> list[Tensor]:
        """Images (B, in_channels, H, W) -> codes (B, n_k) int64 for every scale."""
        features = self.quant_conv(self.encoder(images))
        return self.quantize.f_to_idxBl_or_fhat(features, to_fhat=False)

    def fhat_to_img(self, f_hat: Tensor) -> Tensor:
        """Summed code features (B, C, h, w) -> images clamped to [-1, 1]."""
        return self.decoder(self.post_quant_conv(f_hat)).clamp_(-1, 1)

    def idxBl_to_img(self, codes: Sequence[Tensor], last_one: bool = True) -> list[Tensor]:
        """Codes (B, n_k) of every scale -> images in [-1, 1] after the last (or each) scale."""
        grids = [
            self.quantize.embedding(c).transpose(1, 2).reshape(-1, self.Cvae, side, side)
            for c, side in zip(codes, self.patch_nums, strict=True)
        ]
        sums = self.quantize.embed_to_fhat(grids)
        return [self.fhat_to_img(f_hat) for f_hat in (sums[-1:] if last_one else sums)]

    def img_to_reconstructed_img(self, images: Tensor, last_one: bool = True) -> list[Tensor]:
        """Images -> reconstructions in [-1, 1] from all scales (or from each prefix of them)."""
        sums = self.quantize.f_to_idxBl_or_fhat(self.quant_conv(self.encoder(images)), to_fhat=True)
        return [self.fhat_to_img(f_hat) for f_hat in (sums[-1:] if last_one else sums)]
