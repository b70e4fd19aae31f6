"""The loop over scales that plain decoding, editing and collaborative decoding share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .packed import PackedVAR, Passes
from .pyramid import Pyramid
from .sampling import Sampling

Progress = Callable[[int, Tensor], None]


def draw_scales(
    packed: PackedVAR,
    passes: Passes,
    pyramid: Pyramid,
    sampling: Sampling,
    stop: int,
    progress: Progress | None = None,
    keep: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Draws the scales that the pyramid lacks, up to `stop`.

    The first pass also covers the scales that the pyramid has and the caches lack. keep: tokens
    (B, n_k), and a mask that is False where they stay; a scale of kept tokens needs no pass.
    """
    scales = len(packed.patch_nums)
    for scale in range(pyramid.scales, stop):
        codes = None
        if keep is not None and not bool(keep[1].any()):
            tokens = keep[0]
        else:
            logits = packed.run(passes, pyramid.maps, scale + 1, logits_from=scale)[0]
            book = pyramid.codebook.weight
            tokens, codes = sampling.draw_with_codes(logits, scale, scales, book)
            if keep is not None:
                tokens = torch.where(keep[1], tokens, keep[0])
                if codes is not None:
                    codes = torch.where(keep[1][..., None], codes, book[tokens])
        pyramid.add(tokens, codes)
        if progress is not None:
            progress(scale, pyramid.f_hat)
