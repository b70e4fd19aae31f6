"""Multi-scale residual vector quantiser of VAR (Tian et al. 2024, arXiv:2404.02905).

A feature map is written as a sum of K terms, coarse to fine. Term k is a small grid of codes,
upsampled (bicubic) to the full grid and passed through a learnt convolution phi. Parameter names
are those of the official FoundationVision/VAR checkpoints (`quantize.*`).

Shape letters: B batch, C code channels, V vocabulary, S scales, n_k = patch_nums[k]**2 tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

PATCH_NUMS_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
PATCH_NUMS_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)


class Phi(nn.Conv2d):
    """(B, C, H, W) -> (1 - r) x + r conv3x3(x): smooths what bicubic upsampling leaves."""

    def __init__(self, channels: int, ratio: float) -> None:
        super().__init__(channels, channels, kernel_size=3, padding=1)
        self.ratio = abs(ratio)

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 - self.ratio) + super().forward(x) * self.ratio


def phi_ticks(count: int) -> np.ndarray:
    """Positions in [0, 1] of `count` phi layers, float64 (count,).

    The official rule: the margin at both ends is half a tick, but a third of one when count is 4.
    """
    margin = 1 / (3 if count == 4 else 2) / count
    return np.linspace(margin, 1 - margin, count)


def phi_index(scale: int, scales: int, count: int) -> int:
    """Which of `count` phi layers serves scale `scale` of `scales`: the nearest tick, ties low."""
    position = scale / (scales - 1) if scales > 1 else 0.0
    return int(np.argmin(np.abs(phi_ticks(count) - position)))


class SharedPhi(nn.Module):
    """One phi for all scales (share_quant_resi=1); state-dict name `qresi`."""

    def __init__(self, phi: nn.Module) -> None:
        super().__init__()
        self.qresi = phi

    def layers(self) -> list[nn.Module]:
        return [self.qresi]


class PartiallySharedPhi(nn.Module):
    """k phi layers for all scales (share_quant_resi=k); state-dict names `qresi_ls.<i>`."""

    def __init__(self, phis: list[nn.Module]) -> None:
        super().__init__()
        self.qresi_ls = nn.ModuleList(phis)

    def layers(self) -> list[nn.Module]:
        return list(self.qresi_ls)


class OwnPhi(nn.ModuleList):
    """One phi per scale (share_quant_resi=0); state-dict names `<i>`."""

    def layers(self) -> list[nn.Module]:
        return list(self)


class MultiScaleQuantizer(nn.Module):
    """Residual quantiser over a pyramid of code grids.

    Args:
        vocab_size: number of codes V.
        channels: code width C.
        patch_nums: side of the code grid of each scale, coarse to fine.
        quant_resi: mixing ratio of phi; 0 removes phi.
        share_quant_resi: 0 one phi per scale, 1 one for all, k > 1 that many, shared by the
            nearest-tick rule.
        using_znorm: nearest code by cosine instead of Euclidean distance.
        beta: weight of the commitment loss.
    """

    def __init__(
        self,
        vocab_size: int,
        channels: int,
        patch_nums: Sequence[int],
        *,
        quant_resi: float = 0.5,
        share_quant_resi: int = 4,
        using_znorm: bool = False,
        beta: float = 0.25,
    ) -> None:
        super().__init__()
        self.vocab_size, self.Cvae = vocab_size, channels
        self.patch_nums = tuple(patch_nums)
        self.using_znorm, self.beta = using_znorm, beta

        def phi() -> nn.Module:
            return Phi(channels, quant_resi) if abs(quant_resi) > 1e-6 else nn.Identity()

        self.quant_resi: SharedPhi | PartiallySharedPhi | OwnPhi
        if share_quant_resi == 0:
            self.quant_resi = OwnPhi([phi() for _ in self.patch_nums])
        elif share_quant_resi == 1:
            self.quant_resi = SharedPhi(phi())
        else:
            self.quant_resi = PartiallySharedPhi([phi() for _ in range(share_quant_resi)])
        self.embedding = nn.Embedding(vocab_size, channels)

    def phi(self, scale: int) -> nn.Module:
        """The phi layer of scale number `scale`."""
        layers = self.quant_resi.layers()
        return layers[phi_index(scale, len(self.patch_nums), len(layers))]

    def nearest(self, features: Tensor) -> Tensor:
        """(N, C) -> codes (N,) int64."""
        codebook = self.embedding.weight
        if self.using_znorm:
            return (F.normalize(features, dim=-1) @ F.normalize(codebook, dim=-1).T).argmax(dim=1)
        norms = features.square().sum(1, keepdim=True) + codebook.square().sum(1)
        return torch.addmm(norms, features, codebook.T, alpha=-2).argmin(dim=1)

    def _grid(self, codes: Tensor, side: int) -> Tensor:
        """Codes (B, side*side) -> embeddings (B, C, side, side)."""
        return self.embedding(codes).transpose(1, 2).reshape(-1, self.Cvae, side, side)

    def _contribution(self, scale: int, grid: Tensor) -> Tensor:
        """Embeddings (B, C, side, side) of one scale -> its term (B, C, H, W) of the sum."""
        full = self.patch_nums[-1]
        if scale < len(self.patch_nums) - 1:
            grid = F.interpolate(grid, size=(full, full), mode="bicubic")
        return self.phi(scale)(grid)

    def queries(self, scale: int, rest: Tensor) -> Tensor:
        """Residual (B, C, H, W) -> the vectors (B * n_k, C) that one scale looks up."""
        side = self.patch_nums[scale]
        if scale < len(self.patch_nums) - 1:
            rest = F.interpolate(rest, size=(side, side), mode="area")
        return rest.permute(0, 2, 3, 1).reshape(-1, self.Cvae)

    def _encode_scale(self, scale: int, rest: Tensor) -> Tensor:
        """Residual (B, C, H, W) -> codes (B, n_k) of one scale."""
        return self.nearest(self.queries(scale, rest)).view(rest.shape[0], -1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Training: features (B, C, H, W) -> straight-through f_hat, VQ loss (), codes per scale.

        The loss is the official one: at every scale, code-book term plus beta times commitment.
        """
        features = features.float()
        fixed = features.detach()
        f_hat = torch.zeros_like(fixed)
        loss = features.new_zeros(())
        codes = []
        for scale, side in enumerate(self.patch_nums):
            with torch.no_grad():
                index = self._encode_scale(scale, fixed - f_hat)
            f_hat = f_hat + self._contribution(scale, self._grid(index, side))
            loss = loss + self.beta * F.mse_loss(f_hat.detach(), features)
            loss = loss + F.mse_loss(f_hat, fixed)
            codes.append(index)
        straight = features + (f_hat - features).detach()
        return straight, loss / len(self.patch_nums), codes

    @torch.no_grad()
    def f_to_idxBl_or_fhat(self, features: Tensor, to_fhat: bool) -> list[Tensor]:
        """Features (B, C, H, W) -> per scale the codes (B, n_k), or the partial sums f_hat."""
        side = self.patch_nums[-1]
        if tuple(features.shape[2:]) != (side, side):
            raise ValueError(
                f"quantizer: features must be (B, {self.Cvae}, {side}, {side}), "
                f"got {tuple(features.shape)}"
            )
        f_hat = torch.zeros_like(features)
        out = []
        for scale, side in enumerate(self.patch_nums):
            index = self._encode_scale(scale, features - f_hat)
            f_hat = f_hat + self._contribution(scale, self._grid(index, side))
            out.append(f_hat if to_fhat else index)
        return out

    def embed_to_fhat(self, grids: Sequence[Tensor]) -> list[Tensor]:
        """Embeddings (B, C, side_k, side_k) of every scale -> partial sums (B, C, H, W)."""
        f_hat: Tensor | None = None
        out = []
        for scale, grid in enumerate(grids):
            term = self._contribution(scale, grid)
            f_hat = term if f_hat is None else f_hat + term
            out.append(f_hat)
        return out

    @torch.no_grad()
    def idxBl_to_var_input(self, codes: Sequence[Tensor]) -> Tensor:
        """Codes per scale (B, n_k) -> teacher-forcing input (B, L - n_0, C), float32.

        Scale k+1 of the transformer sees the sum of scales 0..k, area-pooled to its own grid.
        """
        f_hat = torch.zeros((), device=codes[0].device)
        inputs = [self.embedding.weight.new_zeros(codes[0].shape[0], 0, self.Cvae)]
        for scale in range(len(self.patch_nums) - 1):
            grid = self._grid(codes[scale], self.patch_nums[scale])
            f_hat = f_hat + self._contribution(scale, grid)
            side = self.patch_nums[scale + 1]
            pooled = F.interpolate(f_hat, size=(side, side), mode="area")
            inputs.append(pooled.flatten(2).transpose(1, 2))
        return torch.cat(inputs, dim=1)

    def get_next_autoregressive_input(
        self, scale: int, scales: int, f_hat: Tensor, grid: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Add the embeddings of one scale to f_hat (IN PLACE); pool f_hat for the next scale.

        f_hat (B, C, H, W), grid (B, C, side, side) -> f_hat and (B, C, side', side'), where
        side' is the next scale's side; after the last scale f_hat itself comes twice.
        """
        f_hat.add_(self._contribution(scale, grid))
        if scale == scales - 1:
            return f_hat, f_hat
        side = self.patch_nums[scale + 1]
        return f_hat, F.interpolate(f_hat, size=(side, side), mode="area")
