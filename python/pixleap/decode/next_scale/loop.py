"""The loop over scales that plain decoding, editing and collaborative decoding share."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from ..graphs import Graphs
from .packed import PackedVAR, Passes
from .pyramid import Codebook, Pyramid
from .sampling import Sampling

Progress = Callable[[int, Tensor], None]
KEPT_BATCHES = 4  # batch sizes and the like whose memory and graphs a decoder keeps


class Steps(Graphs):
    """Steps of a batch, and the `seeds` (B, 2) that captured ones draw by (`Sampling`)."""

    def __init__(self, device: torch.device, batch: int) -> None:
        super().__init__(device)
        if batch == 0:  # nothing to launch
            self._backend = None
        self._seeds = torch.empty(batch, 2, dtype=torch.int64, device=device)

    def seeds(self, sampling: Sampling) -> Tensor | None:
        """Written for the next steps; None if they are plain calls, which need no tensor."""
        if not self.active:
            return None
        sampling.write_seeds(self._seeds)
        return self._seeds


class Batch:
    """A batch under way through one model. Where steps are captured it serves all batches of its
    size, one after the other (`restart`): captured graphs hold its addresses."""

    def __init__(
        self,
        packed: PackedVAR,
        codebook: Codebook,
        labels: Tensor,
        guided: bool,
        scales: int | None = None,
    ) -> None:
        self.packed, self.steps = packed, Steps(packed.device, labels.numel())
        kept = self.steps.active
        self.passes = packed.start(labels, guided=guided, scales=scales, kept=kept)
        self.pyramid = Pyramid(codebook, self.passes.batch, kept=kept)

    def restart(self, labels: Tensor) -> None:
        """Begins another batch of the same size."""
        self.passes.restart(labels, self.steps)
        self.pyramid.reset()

    def draw(
        self,
        sampling: Sampling,
        stop: int,
        progress: Progress | None = None,
        keep: tuple[Tensor, Tensor | None] | None = None,
    ) -> None:
        """`draw_scales` of this batch."""
        draw_scales(
            self.packed, self.passes, self.pyramid, sampling, stop, progress, keep, self.steps
        )


class _Restarts(Protocol):
    @property
    def steps(self) -> Steps: ...

    def restart(self, labels: Tensor) -> None: ...


Kept = TypeVar("Kept", bound=_Restarts)


def reuse(
    held: dict[Hashable, Kept], key: Hashable, labels: Tensor, make: Callable[[], Kept]
) -> Kept:
    """The batch held under this key, restarted with the labels; or a new one, which is held from
    then on if its steps are captured."""
    batch = held.pop(key, None)
    if batch is None:
        batch = make()
    else:
        batch.restart(labels)
    if batch.steps.active:
        held[key] = batch
        if len(held) > KEPT_BATCHES:
            del held[next(iter(held))]
    return batch


def draw_scales(
    packed: PackedVAR,
    passes: Passes,
    pyramid: Pyramid,
    sampling: Sampling,
    stop: int,
    progress: Progress | None = None,
    keep: tuple[Tensor, Tensor | None] | None = None,
    steps: Steps | None = None,
) -> None:
    """Draws the scales that the pyramid lacks, up to `stop`.

    The first pass also covers the scales that the pyramid has and the caches lack. keep: tokens
    (B, n_k), and a mask that is False where they stay, None if all do: such a scale needs no pass.
    steps: of these passes and this pyramid, where a scale is a captured step; None for plain calls.
    """
    scales, book = len(packed.patch_nums), pyramid.codebook.weight
    seeds = None if steps is None else steps.seeds(sampling)
    for scale in range(pyramid.scales, stop):
        if keep is not None and keep[1] is None:
            pyramid.add(keep[0])
        else:

            def step(*kept: Tensor, k: int = scale) -> None:
                logits = packed.run(passes, pyramid.maps, k + 1, logits_from=k)[0]
                tokens, codes = sampling.draw_with_codes(
                    logits, k, scales, book, seeds, pyramid.token_buffer(k)
                )
                if kept:
                    tokens = torch.where(kept[1], tokens, kept[0])
                    if codes is not None:
                        codes = torch.where(kept[1][..., None], codes, book[tokens])
                pyramid.write(k, tokens, codes)

            given = () if keep is None or keep[1] is None else (keep[0], keep[1])
            if steps is None:
                step(*given)
            else:
                steps(("scale", passes.scales, scale, sampling.law), step, *given)
                passes.advance_to(scale + 1)
            pyramid.scales = scale + 1
        if progress is not None:
            progress(scale, pyramid.f_hat)
