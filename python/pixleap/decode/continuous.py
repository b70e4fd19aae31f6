"""Continuous batching of next-scale decoding: images join and leave between any two scales."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .next_scale import NextScaleDecoder, Passes, Progress, Pyramid, Sampling, as_decoder
from .next_scale.packed import Block

if TYPE_CHECKING:
    from ..models.var import VAR


@dataclass(frozen=True)
class Finished:
    """A request's number, tokens (1, n_k) int64 per scale and features (1, Cv, h, w)."""

    request: int
    tokens: list[Tensor]
    f_hat: Tensor


@dataclass(frozen=True)
class _Request:
    number: int
    passes: Passes
    pyramid: Pyramid
    sampling: Sampling
    progress: Progress | None


class ContinuousBatcher:
    """Decodes requests at different scales in one batch.

    Every step takes each request one scale further. The tokens of all of them are rows of one
    call of each linear layer, with their own modulation; attention runs per request on its own
    cache. A request's tokens are, bit for bit, those of `NextScaleDecoder.tokens` of it alone.

    Args:
        model: `pixleap.models.VAR`, or a `NextScaleDecoder` of it.
        max_requests: how many are decoded at a time; others wait. Bounds the memory of the caches.
        weights: as for `NextScaleDecoder`, of a model that is not packed yet.

    Raises:
        ValueError: max_requests below 1.
    """

    def __init__(
        self, model: VAR | NextScaleDecoder, max_requests: int = 16, weights: str = "float32"
    ) -> None:
        if max_requests < 1:
            raise ValueError(
                f"ContinuousBatcher: argument 'max_requests' expected a number >= 1, got "
                f"{max_requests}"
            )
        self.decoder = as_decoder(model, weights)
        self.max_requests = max_requests
        self._waiting: deque[tuple[int, Tensor, Sampling, Progress | None]] = deque()
        self._active: list[_Request] = []
        self._count = 0

    def __len__(self) -> int:
        """Requests that wait or are decoded."""
        return len(self._waiting) + len(self._active)

    def add(self, label: int, *, progress: Progress | None = None, **options: Any) -> int:
        """Queues one image and returns the request's number; options as in
        `NextScaleDecoder.tokens`, each request its own.

        Raises:
            ValueError: a label or options that do not fit.
        """
        packed = self.decoder.packed
        sampling = Sampling(**options).check(packed.vocabulary)
        labels = torch.as_tensor([label])
        packed.check_labels(labels)
        self._waiting.append((self._count, labels, sampling, progress))
        self._count += 1
        return self._count - 1

    def _admit(self) -> None:
        while self._waiting and len(self._active) < self.max_requests:
            number, labels, sampling, progress = self._waiting.popleft()
            passes = self.decoder.packed.start(labels, guided=sampling.guided)
            pyramid = Pyramid(self.decoder.codebook, 1)
            self._active.append(_Request(number, passes, pyramid, sampling, progress))

    def _logits(self) -> list[Tensor]:
        """One pass; per request its logits (1 or 2, n_k, V)."""
        packed, active = self.decoder.packed, self._active
        halves = [len(r.passes.condition) for r in active]
        lengths = [packed.lengths[r.passes.scales] for r in active]
        counts = [h * n for h, n in zip(halves, lengths, strict=True)]
        cuts = list(pairwise(accumulate(counts, initial=0)))
        rows = cuts[-1][1]
        x = packed.scratch.get("x", rows, 1, packed.width)
        for r, h, n, (a, b) in zip(active, halves, lengths, cuts, strict=True):
            out = x[a:b].view(h, n, packed.width)
            packed.embed(r.passes, r.pyramid.maps, r.passes.scales + 1, out)

        def spread(name: str, vectors: list[Tensor]) -> Tensor:
            """Of every request (h, k, C) -> (rows, k, C). NumPy copies on this thread: torch's
            threads would spin on the cores that the next native call needs."""
            out = packed.scratch.get(name, rows, *vectors[0].shape[1:])
            for v, h, n, (a, b) in zip(vectors, halves, lengths, cuts, strict=True):
                part = out[a:b].view(h, n, *v.shape[1:]).numpy()
                np.copyto(part, v.numpy()[:, None])
            return out

        for i, block in enumerate(packed.blocks):
            six = spread("six", [r.passes.sixes[i] for r in active])

            def attend(qkv: Tensor, out: Tensor, i: int = i, block: Block = block) -> None:
                for r, h, n, (a, b) in zip(active, halves, lengths, cuts, strict=True):
                    cache = r.passes.caches[i]
                    block.attend(
                        qkv[a:b].view(h, n, -1), cache, out[a:b].view(h, n, -1), [n], packed.scratch
                    )

            block(x, six, attend, packed.scratch)
        for r in active:
            r.passes.scales += 1
        logits = packed.logits(x, spread("pair", [r.passes.head_pair for r in active]))
        parts = zip(halves, lengths, cuts, strict=True)
        return [logits[a:b].view(h, n, -1) for h, n, (a, b) in parts]

    @torch.no_grad()
    def step(self) -> list[Finished]:
        """Takes every request one scale further; returns those that are done."""
        self._admit()
        if not self._active:
            return []
        scales = len(self.decoder.packed.patch_nums)
        for r, logits in zip(self._active, self._logits(), strict=True):
            scale = r.pyramid.scales
            book = self.decoder.codebook.weight
            r.pyramid.add(*r.sampling.draw_with_codes(logits, scale, scales, book))
            if r.progress is not None:
                r.progress(scale, r.pyramid.f_hat)
        done = [r for r in self._active if r.pyramid.scales == scales]
        self._active = [r for r in self._active if r.pyramid.scales < scales]
        return [Finished(r.number, r.pyramid.tokens, r.pyramid.f_hat) for r in done]

    def run(self) -> Iterator[Finished]:
        """Steps until nothing is left, and yields each request as it ends; more may be added
        meanwhile."""
        while len(self):
            yield from self.step()
