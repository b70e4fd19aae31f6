"""One batch of speculative next-scale decoding: proposing, verifying, waiting for each other."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .. import ops
from .graphs import HostRead
from .next_scale import NextScaleDecoder, Passes, Progress, Pyramid, Sampling, Steps

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
        self,
        logits: Tensor,
        law: Tensor | None,
        tokens: Tensor,
        scale: int,
        seeds: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The target's logits, the draft's law and tokens (B, n) -> the tokens that hold, and
        which samples (B,) keep all drafted ones. seeds: as for `Sampling.draw`."""
        if law is None:
            final = self.sampling.draw(logits, scale, self.scales, seeds)
            return final, (final == tokens).all(1)
        final, accepted, _ = ops.speculative_accept(
            self.sampling.probabilities(logits, scale, self.scales), law, tokens, mode=self.mode,
            offset=ACCEPT_STREAM + scale, **self.sampling.key(seeds),
        )  # fmt: skip
        return final, accepted.all(1)


class Run:
    """A batch under way. `decided[b]` scales of sample b are final; those beyond the pyramid's
    (which holds what all samples have) lie in `final` until the others catch up. Where steps are
    captured a run serves one batch after the other, as `next_scale.Batch` does."""

    def __init__(
        self, target: NextScaleDecoder, draft: NextScaleDecoder, labels: Tensor, guided: bool
    ) -> None:
        self.target, self.draft = target.packed, draft.packed
        self.scales = len(self.target.patch_nums)
        self.steps = Steps(self.target.device, labels.numel())
        kept = self.steps.active
        self.target_passes = self.target.start(labels, guided=guided, kept=kept)
        self._labels = labels
        self._draft_passes: Passes | None = None
        batch = self.target_passes.batch
        self.pyramid = Pyramid(target.codebook, batch, history=True, kept=kept)
        new = self.pyramid.f_hat.new_zeros
        self.decided = new(batch, dtype=torch.int64)
        self.final = [new((batch, n), dtype=torch.int64) for n in self.target.lengths]
        # Scales that all samples have decided; per scale whether the pyramid holds the decided
        # tokens, the samples whose tokens were checked, and those that kept them.
        self._report = new(1 + 3 * self.scales, dtype=torch.int64)
        self._read = HostRead(self._report)

    def restart(self, labels: Tensor) -> None:
        """Begins another batch of the same size."""
        self.target_passes.restart(labels, self.steps)
        if self._draft_passes is not None:
            self._draft_passes.restart(labels, self.steps)
        self._labels = labels
        self.pyramid.reset()
        self.decided.zero_()

    @property
    def draft_passes(self) -> Passes:
        """Made when the first scale is drafted."""
        if self._draft_passes is None:
            passes = self.target_passes
            self._draft_passes = self.draft.start(
                self._labels, guided=passes.guided, kept=passes.kept
            )
        return self._draft_passes

    @property
    def cached(self) -> int:
        """Scales in the draft's caches."""
        return 0 if self._draft_passes is None else self._draft_passes.scales

    def begin(self, verifier: Verifier, progress: Progress | None) -> None:
        """What the batch is drawn by."""
        self.verify, self.sampling, self.progress = verifier, verifier.sampling, progress
        self._seeds = self.steps.seeds(self.sampling)
        zeros = [0] * self.scales
        self.result = SpeculativeResult([], self.pyramid.f_hat, 0, 0, zeros[:], zeros[:])

    def _forced(self, scale: int, tokens: Tensor) -> Tensor:
        """Tokens with the decided ones of samples that got further in their place."""
        known = self.decided > scale
        if not self.steps.active and not known.any():
            return tokens
        return torch.where(known[:, None], self.final[scale], tokens)

    def _propose(self, first: int, count: int) -> list[Tensor | None]:
        """Writes `count` drafted scales to the pyramid; returns their laws."""
        laws = []
        for scale in range(first, first + count):
            logits = self.draft.run(
                self.draft_passes, self.pyramid.maps, scale + 1, logits_from=scale
            )[0]
            laws.append(self.verify.draft_law(logits, scale))
            drawn = self.sampling.draw(logits, scale, self.scales, self._seeds)
            self.pyramid.write(scale, self._forced(scale, drawn))
        return laws

    def _chunk(self, first: int, count: int) -> None:
        """One target pass over `count` drafted scales and the next; decides, and reports."""
        stop = first + count + 1
        laws = self._propose(first, count)
        logits = self.target.run(self.target_passes, self.pyramid.maps, stop)
        alive = torch.ones_like(self.decided, dtype=torch.bool)
        agree, checked, accepted = self._report[1:].view(3, -1).zero_().unbind(0)
        for scale in range(first, stop):
            known = self.decided > scale
            undecided = alive & ~known
            if scale < stop - 1:
                drafted = self.pyramid.written(scale)
                drawn, kept = self.verify(
                    logits[scale - first], laws[scale - first], drafted, scale, self._seeds
                )
                torch.sum(undecided, 0, out=checked[scale])
                torch.sum(undecided & kept, 0, out=accepted[scale])
                alive = known | (alive & kept)
            else:
                drawn = self.sampling.draw(logits[-1], scale, self.scales, self._seeds)
            drawn = self._forced(scale, drawn)
            decided = torch.where(undecided, scale + 1, self.decided)
            if self.steps.active:
                self.final[scale].copy_(drawn)
                self.decided.copy_(decided)
            else:
                self.final[scale], self.decided = drawn, decided
            if scale < stop - 1:
                agree[scale] = (self.final[scale] == drafted).all()
            # Where steps are plain calls the rest is left out; its outcome would not count.
            if not self.steps.active and not alive.any():
                break
        if len(self.decided):
            self._report[0] = self.decided.min()
        else:
            self._report[0] = stop

    def advance(self, count: int) -> None:
        """One target pass over `count` drafted scales and the next: at least one scale more. The
        host reads one small tensor."""
        first, verify = self.pyramid.scales, self.verify
        cached = self.draft_passes.scales if count else self.cached
        key = "chunk", first, count, cached, verify.rule, verify.mode, verify.sampling.law
        self.steps(key, lambda: self._chunk(first, count))
        done, *counts = self._read(self._report)
        n = self.scales
        agree, checked, accepted = (counts[i * n : (i + 1) * n] for i in range(3))
        self.result.target_passes += 1
        self.result.draft_passes += count
        for total, new in ((self.result.drafted, checked), (self.result.accepted, accepted)):
            total[:] = [a + b for a, b in zip(total, new, strict=True)]
        # The scales that all samples have decided replace the drafted ones; the rest goes.
        drafted = range(first, min(done, first + count))
        self.pyramid.scales = next((k for k in drafted if not agree[k]), drafted.stop)
        for scale in range(self.pyramid.scales, done):
            self.pyramid.add(self.final[scale])
        # Keys and values of the last scale hold: they follow from the scales before it.
        self.target_passes.advance_to(done)
        if self._draft_passes is not None:
            self._draft_passes.advance_to(min(first + count if count else cached, done))
        if self.progress is not None:
            for scale in range(first, done):
                self.progress(scale, self.pyramid.features_after(scale + 1))
