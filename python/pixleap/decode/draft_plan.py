"""How many scales to draft: measured seconds and acceptances, and the cheapest expected course."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property, partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .next_scale import NextScaleDecoder, PackedVAR, Passes, Pyramid, draw_scales

if TYPE_CHECKING:
    from .speculative_run import Verifier

GAIN = 0.97  # drafting must take at most this share of the plain time
MAX_DRAFTED = 5  # scales per target pass
TRIAL_SECONDS = 2.0  # of decoding, after which a trial is as long as it needs to be
MAX_TRIALS = 40
CHUNK = 8  # images at a time while acceptance is estimated; more would need more memory


@dataclass(frozen=True)
class DraftPlan:
    """Costs in seconds at one batch size, and what the draft is worth.

    lengths: tokens of each of the S scales. target, draft: (a, b, c), a pass over scales k .. j - 1
    takes a + b (its tokens) + c (its tokens times the keys they see). draw, verify: per scale,
    drawing and checking it. acceptance: per scale, the probability that a sample keeps all drafted
    tokens. trial: seconds of plain decoding and of this plan, run side by side, the plan's with one
    standard error of the difference added; None if not tried.
    """

    batch: int
    lengths: list[int]
    target: list[float]
    draft: list[float]
    draw: list[float]
    verify: list[float]
    acceptance: list[float]
    trial: list[float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `DraftPlan(**values)` reads it."""
        return asdict(self)

    def plain_seconds(self) -> float:
        """Expected, of decoding without drafts."""
        passes = (pass_seconds(self.target, self.lengths, k, k + 1) for k in range(len(self.draw)))
        return sum(passes) + sum(self.draw)

    def expected(self) -> tuple[float, list[list[int]]]:
        """Expected seconds of the best course, and the scales it drafts: [k][c] at scale k when the
        draft has c scales in its cache. Backward induction over (k, c)."""
        scales = len(self.draw)
        passed = [a**self.batch for a in self.acceptance]  # a batch advances with its slowest

        def cost(k: int, c: int, m: int) -> float:
            spent = pass_seconds(self.target, self.lengths, k, k + m + 1)
            spent += self.draw[k + m] + sum(self.verify[k : k + m])
            for s in range(k, k + m):
                spent += pass_seconds(self.draft, self.lengths, c, s + 1) + self.draw[s]
                c = s + 1
            reach = 1.0
            for s in range(k, k + m):
                # Scale s is the first with a rejection: it is redrawn, and decoding goes on after.
                ahead = best(s + 1, s + 1)[0] + self.draw[s]
                spent += reach * (1 - passed[s]) * ahead
                reach *= passed[s]
            return spent + reach * best(k + m + 1, c)[0]

        @cache
        def best(k: int, c: int) -> tuple[float, int]:
            if k == scales:
                return 0.0, 0
            return min((cost(k, c, m), m) for m in range(min(MAX_DRAFTED, scales - 1 - k) + 1))

        counts = [[best(k, c)[1] for c in range(k + 1)] for k in range(scales)]
        return best(0, 0)[0], counts

    def choice(self) -> list[list[int]]:
        """`expected()`'s counts, or zeros where drafting promises, or proved, too little."""
        return self._choice

    @cached_property  # the induction takes as long as a small model's pass
    def _choice(self) -> list[list[int]]:
        seconds, counts = self.expected()
        plain, drafted = self.trial or (self.plain_seconds(), seconds)
        return counts if drafted <= GAIN * plain else [[0] * len(row) for row in counts]


def pass_seconds(cost: Sequence[float], lengths: Sequence[int], first: int, stop: int) -> float:
    """Of a pass over scales first .. stop - 1, by the three numbers of a `DraftPlan`."""
    return sum(c * f for c, f in zip(cost, _work(lengths, first, stop), strict=True))


def _work(lengths: Sequence[int], first: int, stop: int) -> tuple[float, float, float]:
    """(1, tokens, tokens times visible keys) of a pass."""
    ends = list(accumulate(lengths, initial=0))
    pairs = sum(lengths[s] * ends[s + 1] for s in range(first, stop))
    return 1.0, float(ends[stop] - ends[first]), float(pairs)


def seconds_of(action: Callable[..., Any], *args: Any) -> float:
    """Of one call, up to the end of what it started on a device."""
    cuda = torch.cuda.is_initialized()
    if cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    action(*args)
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _fastest(actions: Sequence[Callable[[], Any]], repeats: int) -> list[float]:
    """Least seconds of each, taken in turns so that a busy moment of the machine hits all."""
    times = [float("inf")] * len(actions)
    for _ in range(repeats + 1):  # the first round warms up
        for i, action in enumerate(actions):
            times[i] = min(times[i], seconds_of(action))
    return times


def run_trial(
    plain: Callable[[int], Any], drafted: Callable[[int], Any], least: int
) -> list[float]:
    """A plan's `trial`: both decode the images numbered 0, 1, ... in turns, `least` of them at
    least, and more while that is quick."""
    pairs: list[list[float]] = []
    for _ in range(3 if torch.cuda.is_initialized() else 1):  # warm up; on a GPU, capture steps
        plain(0), drafted(0)
    while len(pairs) < least or (len(pairs) < MAX_TRIALS and sum(map(sum, pairs)) < TRIAL_SECONDS):
        pairs.append([seconds_of(course, len(pairs)) for course in (plain, drafted)])
    seconds = np.array(pairs)
    error = np.diff(seconds).std(ddof=1) / np.sqrt(len(pairs))
    means = seconds.mean(axis=0)
    return [float(means[0]), float(means[1] + error)]


def fit_cost(work: np.ndarray, seconds: np.ndarray) -> list[float]:
    """Coefficients >= 0 with the least relative error: work (n, 3), seconds (n,)."""
    scaled = work / seconds[:, None]
    best, found = np.inf, np.zeros(3)
    for chosen in ([0], [1], [2], [0, 1], [0, 2], [1, 2], [0, 1, 2]):
        part = np.linalg.lstsq(scaled[:, chosen], np.ones(len(work)), rcond=None)[0]
        error = np.square(scaled[:, chosen] @ part - 1).sum()
        if (part >= 0).all() and error < best:
            best, found = error, np.zeros(3)
            found[chosen] = part
    return found.tolist()


def _fit_passes(
    packed: PackedVAR, passes: Passes, maps: list[Tensor], last: bool, repeats: int
) -> list[float]:
    """Times passes over one scale each, and over all scales up to each, and fits the cost."""
    scales = len(packed.patch_nums)
    ranges = [(k, k + 1) for k in range(scales)] + [(0, j) for j in range(2, scales + 1)]

    def run(first: int, stop: int) -> None:
        passes.rollback(first)  # in the order of `ranges` the scales before are always there
        packed.run(passes, maps, stop, logits_from=stop - 1 if last else first)

    seconds = _fastest([partial(run, *r) for r in ranges], repeats)
    work = [_work(packed.lengths, *r) for r in ranges]
    return fit_cost(np.array(work), np.array(seconds))


def measure(
    target: NextScaleDecoder,
    draft: NextScaleDecoder,
    labels: Tensor,
    verifier: Verifier,
    samples: int,
    repeats: int,
) -> DraftPlan:
    """Lets the draft follow drawn images to see how often it is right, and times passes."""
    sampling = replace(verifier.sampling, first_sample=0)
    guided, batch, scales = sampling.guided, len(labels), verifier.scales
    many = labels.repeat(-(-min(samples, CHUNK) // batch))
    rounds = -(-samples // len(many))
    kept = [0] * scales
    for part in range(rounds):
        sampling = replace(sampling, first_sample=part * len(many))
        # The drafts' noise must not be that of the images they follow.
        judge = replace(verifier, sampling=replace(sampling, seed=sampling.seed + 1))
        pyramid = Pyramid(target.codebook, len(many), history=True)
        passes = target.packed.start(many, guided=guided)
        draw_scales(target.packed, passes, pyramid, sampling, scales)
        passes.rollback(0)
        seen = target.packed.run(passes, pyramid.maps, scales)
        guesses = draft.packed.run(draft.packed.start(many, guided=guided), pyramid.maps, scales)
        for scale, (theirs, ours) in enumerate(zip(guesses, seen, strict=True)):
            proposed = judge.sampling.draw(theirs, scale, scales)
            same = judge(ours, judge.draft_law(theirs, scale), proposed, scale)[1]
            kept[scale] += int(same.sum())
    acceptance = [(k + 0.5) / (rounds * len(many) + 1) for k in kept]
    checks: list[Callable[[], Any]] = []
    draws: list[Callable[[], Any]] = []
    few = torch.arange(batch, device=target.packed.device)
    few = torch.cat((few, few + len(many))) if guided else few
    for scale, (theirs, ours) in enumerate(zip(guesses, seen, strict=True)):
        proposed = judge.sampling.draw(theirs, scale, scales)
        grown = Pyramid(target.codebook, batch, history=True)
        for tokens in pyramid.tokens[:scale]:
            grown.add(tokens[:batch])

        def check(t: Tensor, o: Tensor, proposed: Tensor, scale: int) -> None:
            judge(o, judge.draft_law(t, scale), proposed, scale)

        def draw(o: Tensor, scale: int, grown: Pyramid) -> None:
            grown.rollback(scale)
            grown.add(judge.sampling.draw(o, scale, scales))

        checks.append(partial(check, theirs[few], ours[few], proposed[:batch], scale))
        draws.append(partial(draw, ours[few], scale, grown))
    seconds = _fastest([*draws, *checks], repeats)
    maps = [m[:batch] for m in pyramid.maps]
    costs = [
        _fit_passes(packed, packed.start(labels, guided=guided), maps, last, repeats)
        for packed, last in ((target.packed, False), (draft.packed, True))
    ]
    return DraftPlan(
        batch, list(target.packed.lengths), costs[0], costs[1], seconds[:scales], seconds[scales:],
        acceptance,
    )  # fmt: skip
