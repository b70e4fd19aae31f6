"""How tokens are drawn from logits: one set of options for every next-scale driver."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ... import ops
from ...models.token_sampling import filter_top_k_top_p_


@dataclass(frozen=True)
class Sampling:
    """Options of a draw.

    cfg: guidance; scale k of S has logits (1 + t) cond - t uncond with t = cfg k / (S - 1).
    temperature: divides the logits; 0 takes the largest.
    top_k, top_p: filters of `ops.sample_tokens`; 0 and 1 filter nothing.
    seed, first_sample: the draws of sample b at scale k depend on (seed, k, first_sample + b).
    more_smooth: features from a Gumbel softmax over the codes, for pictures and not for metrics.
    """

    cfg: float = 1.5
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    first_sample: int = 0
    more_smooth: bool = False

    def check(self, vocabulary: int) -> Sampling:
        """Returns itself.

        Raises:
            ValueError: an option outside its range.
        """
        for name, good, expected in (
            ("cfg", math.isfinite(self.cfg), "a finite number"),
            ("temperature", 0 <= self.temperature < math.inf, "a finite number >= 0"),
            ("top_k", 0 <= self.top_k <= vocabulary, f"0 to {vocabulary}"),
            ("top_p", 0 < self.top_p <= 1, "a number in (0, 1]"),
            ("first_sample", self.first_sample >= 0, "a number >= 0"),
        ):
            if not good:
                raise ValueError(
                    f"next_scale: argument '{name}' expected {expected}, got {getattr(self, name)}"
                )
        return self

    @property
    def guided(self) -> bool:
        """Whether logits without the label are needed."""
        return self.cfg != 0

    def _halves(
        self, logits: Tensor, scale: int, scales: int
    ) -> tuple[Tensor, Tensor | None, float]:
        """Logits with the label, those without, and the guidance scale of `ops.sample_tokens`."""
        t = self.cfg * scale / (scales - 1) if scales > 1 else 0.0
        if not self.guided:
            return logits, None, 1.0
        batch = len(logits) // 2
        return logits[:batch], logits[batch:], 1 + t

    def draw(self, logits: Tensor, scale: int, scales: int) -> Tensor:
        """Logits (B, n, V), or (2B, n, V) with guidance -> tokens (B, n) int64."""
        cond, uncond, guidance = self._halves(logits, scale, scales)
        return ops.sample_tokens(
            cond, uncond=uncond, guidance_scale=guidance, temperature=self.temperature,
            top_k=self.top_k, top_p=self.top_p, seed=self.seed, offset=scale,
            first_sample=self.first_sample,
        )  # fmt: skip

    def filtered(self, logits: Tensor, scale: int, scales: int) -> Tensor:
        """Logits (B, n, V) after guidance, temperature, top-k and top-p: -inf where dropped."""
        cond, uncond, guidance = self._halves(logits, scale, scales)
        x = cond.clone() if uncond is None else guidance * cond + (1 - guidance) * uncond
        if self.temperature == 0:
            keep = torch.zeros_like(x, dtype=torch.bool).scatter_(-1, x.argmax(-1, True), True)
            return torch.where(keep, 0.0, -torch.inf)
        filter_top_k_top_p_(x, self.top_k, 0.0)
        if self.temperature != 1:
            x /= self.temperature
        return filter_top_k_top_p_(x, 0, self.top_p if self.top_p < 1 else 0.0)

    def probabilities(self, logits: Tensor, scale: int, scales: int) -> Tensor:
        """(B, n, V) float32: the law that `draw` draws from."""
        return self.filtered(logits, scale, scales).softmax(dim=-1)

    def soft_codes(self, logits: Tensor, scale: int, scales: int, codebook: Tensor) -> Tensor:
        """Codes (B, n, Cv) of a Gumbel softmax: VAR's `more_smooth`.

        The official weights: softmax((filtered logits * (1 + r) + Gumbel) / tau), r = k / (S - 1),
        tau = max(0.27 (1 - 0.95 r), 0.005).
        """
        ratio = scale / (scales - 1) if scales > 1 else 0.0
        tau = max(0.27 * (1 - ratio * 0.95), 0.005)
        x = self.filtered(logits, scale, scales)
        per_sample = x[:1].numel()
        # A stream of its own per scale, apart from those of the draws.
        normal = ops.random_normal(
            x.shape, seed=self.seed, offset=(1 << 20) + scale,
            first_element=self.first_sample * per_sample, like=x,
        )  # fmt: skip
        # The normal's distribution function makes it uniform: a Gumbel number is -log(-log u).
        gumbel = -torch.log(-torch.special.log_ndtr(normal))
        weights = x.mul_(1 + ratio).add_(gumbel).div_(tau).softmax(dim=-1)
        return weights @ codebook
