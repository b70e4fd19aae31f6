"""One batch of speculative next-scale decoding: proposing, verifying, waiting for each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .. import ops
from .next_scale import NextScaleDecoder, Passes, Progress, Pyramid, Sampling

ACCEPT_STREAM = 1 << 21  # offsets of the acceptance's noise, apart from the draws'


@dataclass
class SpeculativeResult:
    """What a speculative run gives.

    tokens: (B, n_k) int64 per scale. f_hat: (B, Cv, h, w). target_passes, draft_passes: forward
    passes of each model. drafted, accepted: per scale, samples whose drafted tokens were checked,
    and those that kept all of them.
    """

    tokens: list[Tensor]
    f_hat: Tensor
    target_passes: int
    draft_passes: int
    drafted: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)

    @property
    def acceptance(self) -> list[float | None]:
        """Share accepted per scale; None where nothing was drafted."""
        pairs = zip(self.accepted, self.drafted, strict=True)
        return [a / d if d else None for a, d in pairs]


@dataclass(frozen=True)
class Verifier:
    """How drafted tokens are checked; see `SpeculativeDecoder`."""

    rule: str
    mode: str
    sampling: Sampling
    scales: int

    def draft_law(self, logits: Tensor, scale: int) -> Tensor | None:
        """What `__call__` needs of the draft's logits."""
        if self.rule == "coupled":
            return None
        return self.sampling.probabilities(logits, scale, self.scales)

    def __call__(
        self, logits: Tensor, law: Tensor | None, tokens: Tensor, scale: int
    ) -> tuple[Tensor, Tensor]:
        """The target's logits, the draft's law and tokens (B, n) -> the tokens that hold, and
        which samples (B,) keep all drafted ones."""
        if law is None:
            final = self.sampling.draw(logits, scale, self.scales)
            return final, (final == tokens).all(1)
        final, accepted, _ = ops.speculative_accept(
            self.sampling.probabilities(logits, scale, self.scales), law, tokens, mode=self.mode,
            seed=self.sampling.seed, offset=ACCEPT_STREAM + scale,
            first_sample=self.sampling.first_sample,
        )  # fmt: skip
        return final, accepted.all(1)


class Run:
    """One batch on its way. `decided[b]` scales of sample b are final; those beyond the pyramid's
    (which holds what all samples have) lie in `final` until the others catch up."""

    def __init__(
        self,
        target: NextScaleDecoder,
        draft: NextScaleDecoder,
        labels: Tensor,
        verifier: Verifier,
        progress: Progress | None,
    ) -> None:
        self.target, self.draft, self.verify = target.packed, draft.packed, verifier
        self.progress, self.sampling, self.scales = progress, verifier.sampling, verifier.scales
        guided = self.sampling.guided
        self.target_passes = self.target.start(labels, guided=guided)
        self._start_draft: Callable[[], Passes] = lambda: self.draft.start(labels, guided=guided)
        self.draft_passes: Passes | None = None
        batch = self.target_passes.batch
        self.pyramid = Pyramid(target.codebook, batch, history=True)
        self.decided = torch.zeros(batch, dtype=torch.int64)
        self.final: list[Tensor] = [torch.empty(batch, 0, dtype=torch.int64)] * self.scales
        zeros = [0] * self.scales
        self.result = SpeculativeResult([], self.pyramid.f_hat, 0, 0, zeros[:], zeros[:])

    def _forced(self, scale: int, tokens: Tensor) -> Tensor:
        """Tokens with the decided ones of samples that got further in their place."""
        known = self.decided > scale
        return torch.where(known[:, None], self.final[scale], tokens) if known.any() else tokens

    def _propose(self, count: int) -> list[Tensor | None]:
        """Adds `count` drafted scales to the pyramid; returns their laws."""
        if count and self.draft_passes is None:
            self.draft_passes = self._start_draft()
        laws = []
        for scale in range(self.pyramid.scales, self.pyramid.scales + count):
            assert self.draft_passes is not None
            logits = self.draft.run(
                self.draft_passes, self.pyramid.maps, scale + 1, logits_from=scale
            )[0]
            self.result.draft_passes += 1
            laws.append(self.verify.draft_law(logits, scale))
            drawn = self.sampling.draw(logits, scale, self.scales)
            self.pyramid.add(self._forced(scale, drawn))
        return laws

    def advance(self, count: int) -> None:
        """One target pass over `count` drafted scales and the next: at least one scale more."""
        first, pyramid = self.pyramid.scales, self.pyramid
        stop = first + count + 1
        laws = self._propose(count)
        logits = self.target.run(self.target_passes, pyramid.maps, stop)
        self.result.target_passes += 1
        alive = torch.ones_like(self.decided, dtype=torch.bool)
        for scale in range(first, stop):
            known = self.decided > scale
            undecided = alive & ~known
            if scale < stop - 1:
                drafted = pyramid.tokens[scale]
                drawn, kept = self.verify(
                    logits[scale - first], laws[scale - first], drafted, scale
                )
                self.result.drafted[scale] += int(undecided.sum())
                self.result.accepted[scale] += int((undecided & kept).sum())
                alive = known | (alive & kept)
            else:
                drawn = self.sampling.draw(logits[-1], scale, self.scales)
            self.final[scale] = self._forced(scale, drawn)
            self.decided = torch.where(undecided, scale + 1, self.decided)
            if not alive.any():
                break
        done = int(self.decided.min()) if len(self.decided) else stop
        self._settle(first, done)

    def _settle(self, first: int, done: int) -> None:
        """The scales that all samples have decided replace the drafted ones; the rest goes."""
        pyramid = self.pyramid
        pyramid.rollback(done)
        for scale in range(first, pyramid.scales):
            if not torch.equal(pyramid.tokens[scale], self.final[scale]):
                pyramid.rollback(scale)
                break
        for scale in range(pyramid.scales, done):
            pyramid.add(self.final[scale])
        # Keys and values of the last scale hold: they follow from the scales before it.
        self.target_passes.rollback(done)
        if self.draft_passes is not None:
            self.draft_passes.rollback(done)
        if self.progress is not None:
            for scale in range(first, done):
                self.progress(scale, pyramid.features_after(scale + 1))
