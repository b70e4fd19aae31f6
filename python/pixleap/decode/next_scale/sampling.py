"""How tokens are drawn from logits: one set of options for every next-scale driver."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ... import ops

NOISES = ("float32", "float64")
SOFT_STREAM = 1 << 20  # offsets of the noise of soft tokens, apart from the draws'


@dataclass(frozen=True)
class Sampling:
    """Options of a draw.

    cfg: guidance; scale k of S has logits (1 + t) cond - t uncond with t = cfg k / (S - 1).
    temperature: divides the logits; 0 takes the largest.
    top_k, top_p: filters of `ops.sample_tokens`; 0 and 1 filter nothing.
    seed, first_sample: the draws of sample b at scale k depend on (seed, k, first_sample + b).
    noise_dtype: of the draw's noise; see `ops.sample_tokens`.
    more_smooth: features from a Gumbel softmax over the codes, for pictures and not for metrics.
    """

    cfg: float = 1.5
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    first_sample: int = 0
    noise_dtype: str = "float32"
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
            ("noise_dtype", self.noise_dtype in NOISES, f"one of {NOISES}"),
            ("seed", -(2**63) <= self.seed < 2**63, "64 bits with a sign"),
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

    @property
    def law(self) -> tuple[Any, ...]:
        """All options but `seed` and `first_sample`."""
        return astuple(replace(self, seed=0, first_sample=0))

    def write_seeds(self, out: Tensor) -> None:
        """`seed` and `first_sample` as numbers that kernels read: row b of out (B, 2) int64 gets
        seed and first_sample + b, to be given as `seeds`."""
        out[:, 0] = self.seed
        torch.arange(self.first_sample, self.first_sample + len(out), out=out[:, 1])

    def key(self, seeds: Tensor | None) -> dict[str, Any]:
        """Whose noise an op takes: that of `seed` and `first_sample`; with seeds (B,) the former is
        replaced, with (B, 2) both are."""
        first = 0 if seeds is not None and seeds.dim() == 2 else self.first_sample
        return {"seed": self.seed, "first_sample": first, "seeds": seeds}

    def _halves(
        self, logits: Tensor, scale: int, scales: int
    ) -> tuple[Tensor, Tensor | None, float]:
        """Logits with the label, those without, and the guidance scale of `ops.sample_tokens`."""
        t = self.cfg * scale / (scales - 1) if scales > 1 else 0.0
        if not self.guided:
            return logits, None, 1.0
        batch = len(logits) // 2
        return logits[:batch], logits[batch:], 1 + t

    def draw(
        self,
        logits: Tensor,
        scale: int,
        scales: int,
        seeds: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, n, V), or (2B, n, V) with guidance -> tokens (B, n) int64. seeds: (B,) int64,
        samples that are drawn as if each were alone with its seed; or as of `write_seeds`."""
        cond, uncond, guidance = self._halves(logits, scale, scales)
        return ops.sample_tokens(
            cond, uncond=uncond, guidance_scale=guidance, temperature=self.temperature,
            top_k=self.top_k, top_p=self.top_p, offset=scale, noise_dtype=self.noise_dtype,
            out=out, **self.key(seeds),
        )  # fmt: skip

    def draw_with_codes(
        self,
        logits: Tensor,
        scale: int,
        scales: int,
        codebook: Tensor,
        seeds: Tensor | None = None,
        out: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Tokens as of `draw`, and their soft codes where `more_smooth` asks for them."""
        tokens = self.draw(logits, scale, scales, seeds, out)
        if not self.more_smooth:
            return tokens, None
        return tokens, self.soft_codes(logits, scale, scales, codebook, seeds)

    def probabilities(
        self, logits: Tensor, scale: int, scales: int, tokens: Tensor | None = None
    ) -> Tensor:
        """The law that `draw` draws from: float32 (B, n, V), or with tokens (B, n) int64 the
        logarithms (B, n) of theirs."""
        cond, uncond, guidance = self._halves(logits, scale, scales)
        return ops.token_probabilities(
            cond, tokens=tokens, uncond=uncond, guidance_scale=guidance,
            temperature=self.temperature, top_k=self.top_k, top_p=self.top_p,
            log=tokens is not None,
        )  # fmt: skip

    def soft_codes(
        self,
        logits: Tensor,
        scale: int,
        scales: int,
        codebook: Tensor,
        seeds: Tensor | None = None,
    ) -> Tensor:
        """Codes (B, n, Cv) of a Gumbel softmax: VAR's `more_smooth`, with its temperatures.

        It takes the filtered logits at temperature 1, as the official code does.
        """
        ratio = scale / (scales - 1) if scales > 1 else 0.0
        cond, uncond, guidance = self._halves(logits, scale, scales)
        weights = ops.gumbel_softmax(
            cond, uncond=uncond, guidance_scale=guidance, top_k=self.top_k, top_p=self.top_p,
            logit_scale=1 + ratio, temperature=max(0.27 * (1 - ratio * 0.95), 0.005),
            offset=SOFT_STREAM + scale, **self.key(seeds),
        )  # fmt: skip
        return weights @ codebook
