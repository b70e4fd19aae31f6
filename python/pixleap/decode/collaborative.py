"""Collaborative decoding (CoDe, Chen et al. 2024, arXiv:2411.17787): a large VAR draws the coarse
scales, a small one the fine ones, where most of the time and of the cache goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .next_scale import NextScaleDecoder, Progress, Pyramid, Sampling, as_decoder, draw_scales

if TYPE_CHECKING:
    from ..models.var import VAR


class CollaborativeDecoder:
    """Two VAR models over one tokeniser; the large one draws the first `draft_scales` scales.

    Args:
        large, small: `pixleap.models.VAR`, or `NextScaleDecoder`s of them.
        draft_scales: N, 0 to the number of scales S. N = S is the large model alone, N = 0 the
            small one.
        weights: as for `NextScaleDecoder`, of models that are not packed yet.

    The small model's first pass takes the large one's scales and its own first scale together.

    Raises:
        ValueError: patch_nums, codebooks or classes that differ, draft_scales out of range.
    """

    def __init__(
        self,
        large: VAR | NextScaleDecoder,
        small: VAR | NextScaleDecoder,
        draft_scales: int,
        weights: str = "float32",
    ) -> None:
        self.large, self.small = as_decoder(large, weights), as_decoder(small, weights)
        self.large.check_pair("CollaborativeDecoder", ("large", "small"), self.small)
        scales = len(self.large.packed.patch_nums)
        if not 0 <= draft_scales <= scales:
            raise ValueError(
                f"CollaborativeDecoder: argument 'draft_scales' expected 0 to {scales}, got "
                f"{draft_scales}"
            )
        self.draft_scales = draft_scales

    @torch.no_grad()
    def tokens(
        self, labels: Tensor, *, progress: Progress | None = None, **options: Any
    ) -> tuple[list[Tensor], Tensor]:
        """Tokens and features; arguments, results and errors as in `NextScaleDecoder.tokens`."""
        large, small = self.large.packed, self.small.packed
        drawn, scales = self.draft_scales, len(large.patch_nums)
        sampling = Sampling(**options).check(large.vocabulary)
        pyramid = Pyramid(self.large.codebook, labels.numel())
        for packed, stop in ((large, drawn), (small, scales)):
            if pyramid.scales < stop:
                # The large model's caches hold its own scales only, and are gone before the small
                # model's are made.
                passes = packed.start(labels, guided=sampling.guided, scales=stop)
                draw_scales(packed, passes, pyramid, sampling, stop, progress)
                del passes
        return pyramid.tokens, pyramid.f_hat

    def memory(self, batch: int, guided: bool = True) -> dict[str, int]:
        """Bytes at a batch size: weights of both models, the largest caches held at a time, and
        those of the large model alone, to compare."""
        scales = len(self.large.packed.patch_nums)
        held = [self.large.packed.cache_bytes(batch, self.draft_scales, guided)]
        if self.draft_scales < scales:
            held.append(self.small.packed.cache_bytes(batch, scales, guided))
        return {
            "weights_large": self.large.packed.weight_bytes,
            "weights_small": self.small.packed.weight_bytes,
            "caches": max(held),
            "caches_large_alone": self.large.packed.cache_bytes(batch, scales, guided),
        }

    def __call__(self, labels: Tensor, **options: Any) -> Tensor:
        """Images (B, channels, height, width) in [0, 1]; options as in `tokens`."""
        return self.large.images(self.tokens(labels, **options)[1])


def collaborative(
    large: VAR | NextScaleDecoder,
    small: VAR | NextScaleDecoder,
    labels: Tensor,
    draft_scales: int,
    **options: Any,
) -> Tensor:
    """Images by collaborative decoding; see `CollaborativeDecoder`, which packs only once."""
    return CollaborativeDecoder(large, small, draft_scales)(labels, **options)
