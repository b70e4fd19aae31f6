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
        zeros = float_tensor(vae.quantize.embedding.weight).new_zeros
        return zeros(vae.Cvae, vae.Cvae, 3, 3), zeros(vae.Cvae), 0.0
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

    history: keep the features after every scale, so that `rollback` works; without it there is one
        feature map, updated in place.
    kept: the pyramid is used for one batch after the other (`reset`) by captured CUDA graphs: all
        of its memory is allocated here, and tokens are copied into it.

    Attributes:
        scales: scales held.
    """

    def __init__(
        self, codebook: Codebook, batch: int, history: bool = False, kept: bool = False
    ) -> None:
        self.codebook, self.history, self.kept = codebook, history, kept
        self._batch, self.scales = batch, 0
        sides, new = codebook.patch_nums, codebook.weight.new_zeros
        channels = codebook.weight.shape[1]
        self._maps: list[Tensor | None] = [new(batch, 0, channels), *[None] * (len(sides) - 1)]
        self._features: list[Tensor | None] = [new(batch, channels, sides[-1], sides[-1])]
        self._features += [None] * (len(sides) if history else 0)
        self._tokens: list[Any] = [None] * len(sides)
        if kept:
            for scale, side in enumerate(sides):
                self._outputs(scale)
                self._tokens[scale] = new((batch, side * side), dtype=torch.int64)

    @property
    def tokens(self) -> list[Tensor]:
        """Per scale (B, n_k) int64."""
        return self._tokens[: self.scales]

    @property
    def maps(self) -> list[Tensor]:
        """maps[k] (B, n_k, Cv) is the transformer's input of scale k; maps[0] is empty. Those after
        maps[scales] are of scales that are no longer held."""
        return [m for m in self._maps if m is not None]

    @property
    def f_hat(self) -> Tensor:
        """(B, Cv, h, w): the features so far."""
        return self.features_after(self.scales)

    def features_after(self, scales: int) -> Tensor:
        """(B, Cv, h, w): the features of the first `scales` scales (needs `history`)."""
        features = self._features[scales if self.history else 0]
        assert features is not None
        return features

    def _outputs(self, scale: int) -> tuple[Tensor, Tensor]:
        """Where the features after a scale and the next scale's map go."""
        sides, after = self.codebook.patch_nums, scale + 1 if self.history else 0
        features = self._features[after]
        if features is None:
            features = self._features[after] = torch.empty_like(self.features_after(0))
        if scale + 1 == len(sides):
            return features, features.new_empty(self._batch, 0, features.shape[1])
        next_map = self._maps[scale + 1]
        if next_map is None:
            size = self._batch, sides[scale + 1] ** 2, features.shape[1]
            next_map = self._maps[scale + 1] = features.new_empty(size)
        return features, next_map

    def token_buffer(self, scale: int) -> Tensor | None:
        """Where the tokens of a scale may be drawn to; None if the pyramid takes any tensor."""
        return self._tokens[scale] if self.kept else None

    def write(self, scale: int, tokens: Tensor, codes: Tensor | None = None) -> None:
        """Computes what `add` does to a scale, those before it being there; leaves `scales` alone,
        so that it can be captured."""
        book = self.codebook
        sides, (batch, length) = book.patch_nums, tokens.shape
        side = sides[scale + 1] if scale + 1 < len(sides) else 0
        rows, table = tokens, book.weight
        if codes is not None:
            rows = torch.arange(batch * length, device=codes.device).view(batch, length)
            table = codes.reshape(batch * length, -1)
        weight, bias, ratio = book.phis[scale]
        f_hat = self.features_after(scale)
        ops.next_scale_update(
            rows, table, weight, bias, f_hat, side, phi_ratio=ratio, out=self._outputs(scale)
        )
        if not self.kept:
            self._tokens[scale] = tokens
        elif tokens is not self._tokens[scale]:
            self._tokens[scale].copy_(tokens)

    def written(self, scale: int) -> Tensor:
        """Tokens that `write` put there last."""
        return self._tokens[scale]  # type: ignore[no-any-return]

    def add(self, tokens: Tensor, codes: Tensor | None = None) -> None:
        """Adds the next scale. codes (B, n_k, Cv) replaces the codebook's rows, for soft tokens."""
        self.write(self.scales, tokens, codes)
        self.scales += 1

    def rollback(self, scales: int) -> None:
        """Forgets all but the first `scales` scales (needs `history`)."""
        self.scales = min(self.scales, scales)

    def reset(self) -> None:
        """Forgets all scales."""
        self.scales = 0
        self.features_after(0).zero_()

    def result(self) -> tuple[list[Tensor], Tensor]:
        """Tokens and features, the caller's own."""
        if self.kept:
            return [t.clone() for t in self.tokens], self.f_hat.clone()
        return self.tokens, self.f_hat
