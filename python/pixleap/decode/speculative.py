"""Speculative next-scale decoding: a draft proposes the tokens of several scales, the target checks
them in one block-causal pass.

Speculative sampling (Leviathan et al., arXiv:2211.17192; Chen et al., arXiv:2302.01318), carried
over to VAR (arXiv:2404.02905), whose tokens of one scale are independent given the coarser ones.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .draft_plan import DraftPlan, measure, run_trial
from .layers import check_labels
from .next_scale import (
    NextScaleDecoder,
    Progress,
    Sampling,
    as_decoder,
    reuse,
)
from .speculative_run import Run, SpeculativeResult, Verifier

if TYPE_CHECKING:
    from ..models.var import VAR


class SpeculativeDecoder:
    """Next-scale decoding with a draft model.

    Args:
        target, draft: `pixleap.models.VAR` over one tokeniser, or `NextScaleDecoder`s of them. A
            draft may be a smaller model or a coarser copy of the target (`weights="int8"` or
            "bfloat16").
        rule: "rejection": drafted tokens are accepted by speculative sampling and the result has
            exactly the target's law. "coupled": draft and target draw with the same Gumbel noise
            and the target's tokens always win, so that the result is that of plain decoding, bit
            for bit; a scale counts as accepted where all tokens agree.
        mode: of rule "rejection": "token" decides each position by itself and "joint" a scale as a
            whole, which accepts more scales; see `ops.speculative_accept`.
        drafted: scales to draft before each target pass, or "auto": what the measured costs and
            acceptances say, per scale (`calibrate`; measured at the first call if it was not
            before). 0 is plain decoding, and "auto" chooses it where drafting does not pay.
        weights: as for `NextScaleDecoder`, of models that are not packed yet.

    The first rejected scale is complete after its redraw, so that every pass of the target finishes
    at least one scale. In a batch, samples that got further wait with their tokens decided: each
    sample has the target's law, but with rule "rejection" not the tokens it would have alone, and
    the tokens of a seed depend on how much is drafted.

    Raises:
        ValueError: models that do not fit each other, unknown rule or mode, a negative `drafted`.
    """

    def __init__(
        self,
        target: VAR | NextScaleDecoder,
        draft: VAR | NextScaleDecoder,
        *,
        rule: str = "rejection",
        mode: str = "token",
        drafted: int | str = "auto",
        weights: str = "float32",
    ) -> None:
        for name, value, known in (
            ("rule", rule, ("rejection", "coupled")),
            ("mode", mode, ("token", "joint")),
        ):
            if value not in known:
                raise ValueError(
                    f"SpeculativeDecoder: argument '{name}' expected one of {known}, got {value!r}"
                )
        if drafted != "auto" and (not isinstance(drafted, int) or drafted < 0):
            raise ValueError(
                f"SpeculativeDecoder: argument 'drafted' expected 'auto' or an integer >= 0, got "
                f"{drafted!r}"
            )
        self.target, self.draft = as_decoder(target, weights), as_decoder(draft, weights)
        self.target.check_pair("SpeculativeDecoder", ("target", "draft"), self.draft)
        self.rule, self.mode, self.drafted = rule, mode, drafted
        self.plans: dict[tuple[Any, ...], DraftPlan] = {}
        self._runs: dict[Hashable, Run] = {}

    def _verifier(self, options: dict[str, Any]) -> Verifier:
        sampling = Sampling(**options).check(self.target.packed.vocabulary)
        if sampling.more_smooth:
            raise ValueError(
                "SpeculativeDecoder: argument 'more_smooth' expected False: features of soft "
                "tokens cannot be checked"
            )
        return Verifier(self.rule, self.mode, sampling, len(self.target.packed.patch_nums))

    @staticmethod
    def _key(batch: int, sampling: Sampling) -> tuple[Any, ...]:
        law = asdict(sampling)
        return batch, *(law[name] for name in ("cfg", "temperature", "top_k", "top_p"))

    @torch.no_grad()
    def calibrate(
        self, labels: Tensor, *, samples: int = 64, repeats: int = 3, **options: Any
    ) -> DraftPlan:
        """Measures seconds per pass and acceptance per scale at this batch size and these options.

        labels: (B,). samples: images to estimate the acceptance from, at least. repeats: runs of
        every pass, of which the fastest counts. A plan that promises to gain is tried against plain
        decoding, and dropped if it does not.

        Returns:
            The plan, which later calls with "auto" use. `plan.to_dict()` is JSON-able;
            `use(plan, **options)` takes one that was kept.
        """
        verifier = self._verifier(options)
        for name, value in (("samples", samples), ("repeats", repeats)):
            if value < 1:
                raise ValueError(
                    f"SpeculativeDecoder.calibrate: argument '{name}' expected a number >= 1, got "
                    f"{value}"
                )
        check_labels("SpeculativeDecoder.calibrate", labels, max(labels.numel(), 1),
                     self.target.packed.num_classes)  # fmt: skip
        plan = measure(self.target, self.draft, labels, verifier, samples, repeats)
        counts = plan.choice()
        if any(map(any, counts)):

            def decode(course: list[list[int]] | None, image: int) -> None:
                law = replace(verifier.sampling, seed=verifier.sampling.seed + image + 2)
                self._decode(labels, replace(verifier, sampling=law), course, None)

            trial = run_trial(partial(decode, None), partial(decode, counts), max(repeats, 3))
            plan = replace(plan, trial=trial)
        self.use(plan, **options)
        return plan

    def use(self, plan: DraftPlan, **options: Any) -> None:
        """Takes a plan for its batch size and these options."""
        if len(plan.acceptance) != len(self.target.packed.patch_nums):
            raise ValueError(
                f"SpeculativeDecoder.use: argument 'plan' expected one for "
                f"{len(self.target.packed.patch_nums)} scales, got {len(plan.acceptance)}"
            )
        self.plans[self._key(plan.batch, Sampling(**options))] = plan

    @torch.no_grad()
    def tokens(
        self, labels: Tensor, *, progress: Progress | None = None, **options: Any
    ) -> SpeculativeResult:
        """Draws all scales; arguments and errors as in `NextScaleDecoder.tokens`, but for
        `more_smooth`. progress is called for every scale once its tokens are final."""
        verifier = self._verifier(options)
        counts: list[list[int]] | None = None
        if self.drafted != "auto":
            counts = [[int(self.drafted)] * (k + 1) for k in range(verifier.scales)]
        elif labels.numel():
            key = self._key(labels.numel(), verifier.sampling)
            counts = (self.plans.get(key) or self.calibrate(labels, **options)).choice()
        return self._decode(labels, verifier, counts, progress)

    def _decode(
        self,
        labels: Tensor,
        verifier: Verifier,
        counts: list[list[int]] | None,
        progress: Progress | None,
    ) -> SpeculativeResult:
        """counts: scales to draft at scale k with c scales in the draft's cache, [k][c]."""
        scales, guided = verifier.scales, verifier.sampling.guided
        if counts is None or not any(map(any, counts)):
            batch = self.target.batch(labels, guided)
            batch.draw(verifier.sampling, scales, progress)
            zeros = [0] * scales
            return SpeculativeResult(*batch.pyramid.result(), scales, 0, zeros, zeros[:])
        run = reuse(
            self._runs, (tuple(labels.shape), guided), labels,
            lambda: Run(self.target, self.draft, labels, guided),
        )  # fmt: skip
        run.begin(verifier, progress)
        while (scale := run.pyramid.scales) < scales:
            run.advance(min(counts[scale][run.cached], scales - 1 - scale))
        run.result.tokens, run.result.f_hat = run.pyramid.result()
        return run.result

    def __call__(self, labels: Tensor, **options: Any) -> Tensor:
        """Images (B, channels, height, width) in [0, 1]; options as in `tokens`."""
        return self.target.images(self.tokens(labels, **options).f_hat)


def speculative(
    target: VAR | NextScaleDecoder,
    draft: VAR | NextScaleDecoder,
    labels: Tensor,
    *,
    rule: str = "rejection",
    mode: str = "token",
    drafted: int | str = "auto",
    **options: Any,
) -> SpeculativeResult:
    """Tokens by speculative decoding; see `SpeculativeDecoder`, which packs and measures once."""
    decoder = SpeculativeDecoder(target, draft, rule=rule, mode=mode, drafted=drafted)
    return decoder.tokens(labels, **options)
