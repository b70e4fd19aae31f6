"""The tokens of a batch so far and the feature maps they sum to, by native ops."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ... import ops
from ..layers import float_tensor

if TYPE_CHECKING:
    from ...models.vqvae import VQVAE


def _phi(vae: VQVAE, scale: int) -> tuple[Tensor, Tensor, float]:
    """Residual convolution of a scale; ratio 0 where the tokeniser has none."""
    phi: Any = vae.quantize.phi(scale)
    if isinstance(phi, torch.nn.Identity):
        return torch.zeros(vae.Cvae, vae.Cvae, 3, 3), torch.zeros(vae.Cvae), 0.0
    return float_tensor(phi.weight), float_tensor(phi.bias), float(phi.ratio)


class Codebook:
    """The tokeniser's side of next-scale decoding: codes and residual convolutions."""

    def __init__(self, vae: VQVAE) -> None:
        self.vae, self.patch_nums = vae, vae.patch_nums
        self.weight = float_tensor(vae.quantize.embedding.weight)
        self.phis = [_phi(vae, scale) for scale in range(len(vae.patch_nums))]

    def check_same(self, where: str, names: tuple[str, str], other: Codebook) -> None:
        """Two models can share tokens and features only if their tokenisers agree.

        Raises:
            ValueError: other patch_nums, codes or convolutions.
        """
        one, two = names
        if self.patch_nums != other.patch_nums:
            raise ValueError(
                f"{where}: argument '{two}' expected patch_nums {self.patch_nums} as '{one}' has, "
                f"got {other.patch_nums}"
            )
        if self.weight.shape != other.weight.shape:
            raise ValueError(
                f"{where}: argument '{two}' expected a codebook of shape "
                f"{tuple(self.weight.shape)} as '{one}' has, got {tuple(other.weight.shape)}"
            )
        same = torch.equal(self.weight, other.weight) and all(
            a[2] == b[2] and torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
            for a, b in zip(self.phis, other.phis, strict=True)
        )
        if not same:
            raise ValueError(
                f"{where}: argument '{two}' expected the tokeniser of '{one}', got one with other "
                "codes or convolutions"
            )

    def check_tokens(self, where: str, tokens: Any) -> None:
        """Tokens are one integer tensor (B, n_k) per scale with values below V.

        Raises:
            ValueError: something else.
        """
        sides, vocabulary = self.patch_nums, len(self.weight)
        if len(tokens) != len(sides):
            raise ValueError(
                f"{where}: argument 'tokens' expected one tensor for each of the {len(sides)} "
                f"scales, got {len(tokens)}"
            )
        for scale, (t, side) in enumerate(zip(tokens, sides, strict=True)):
            size = (len(tokens[0]), side * side)
            if t.dtype != torch.int64 or tuple(t.shape) != size:
                raise ValueError(
                    f"{where}: argument 'tokens[{scale}]' expected shape {size} of torch.int64, "
                    f"got {tuple(t.shape)} of {t.dtype}"
                )
            if t.numel() and not 0 <= int(t.min()) <= int(t.max()) < vocabulary:
                raise ValueError(
                    f"{where}: argument 'tokens[{scale}]' expected numbers from 0 to "
                    f"{vocabulary - 1}, got {int(t.min())} to {int(t.max())}"
                )


class Pyramid:
    """Tokens of the scales so far, and what the next scale sees.

    Attributes:
        tokens: per scale (B, n_k) int64.
        maps: maps[k] (B, n_k, Cv) is the transformer's input of scale k; maps[0] is empty.
        history: keep the features after every scale, so that `rollback` works; without it there is
            one feature map, updated in place.
    """

    def __init__(self, codebook: Codebook, batch: int, history: bool = False) -> None:
        self.codebook, self.history = codebook, history
        side, channels = codebook.patch_nums[-1], codebook.weight.shape[1]
        self.tokens: list[Tensor] = []
        self.maps: list[Tensor] = [codebook.weight.new_zeros(batch, 0, channels)]
        self._features = [codebook.weight.new_zeros(batch, channels, side, side)]

    @property
    def scales(self) -> int:
        """Scales held."""
        return len(self.tokens)

    @property
    def f_hat(self) -> Tensor:
        """(B, Cv, h, w): the features so far."""
        return self._features[-1]

    def features_after(self, scales: int) -> Tensor:
        """(B, Cv, h, w): the features of the first `scales` scales (needs `history`)."""
        return self._features[scales]

    def add(self, tokens: Tensor, codes: Tensor | None = None) -> None:
        """Adds the next scale. codes (B, n_k, Cv) replaces the codebook's rows, for soft tokens."""
        book, scale = self.codebook, self.scales
        sides, (batch, length) = book.patch_nums, tokens.shape
        side = sides[scale + 1] if scale + 1 < len(sides) else 0
        rows, table = tokens, book.weight
        if codes is not None:
            rows = torch.arange(batch * length).view(batch, length)
            table = codes.reshape(batch * length, -1)
        weight, bias, ratio = book.phis[scale]
        f_hat = self.f_hat
        out = torch.empty_like(f_hat) if self.history else f_hat
        next_map = f_hat.new_empty(batch, side * side, f_hat.shape[1])
        ops.next_scale_update(
            rows, table, weight, bias, f_hat, side, phi_ratio=ratio, out=(out, next_map)
        )
        if self.history:
            self._features.append(out)
        self.tokens.append(tokens)
        if side:
            self.maps.append(next_map)

    def rollback(self, scales: int) -> None:
        """Forgets all but the first `scales` scales (needs `history`)."""
        if scales < self.scales:
            del self.tokens[scales:], self.maps[scales + 1 :], self._features[scales + 1 :]
