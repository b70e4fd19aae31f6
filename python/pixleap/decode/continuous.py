"""Continuous batching of next-scale decoding: images join and leave between any two scales."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate, groupby, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..kv_cache import KVCache
from .layers import Ragged
from .next_scale import NextScaleDecoder, PackedVAR, Passes, Progress, Pyramid, Sampling, as_decoder
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
    label: int
    sampling: Sampling
    progress: Progress | None

    @property
    def law(self) -> tuple[Any, ...]:
        """Requests that agree in it can be drawn in one call, each from its own seed. Soft tokens
        have no call for several seeds."""
        alone = self.number if self.sampling.more_smooth else -1
        return alone, *vars(replace(self.sampling, seed=0)).values()


@dataclass(frozen=True)
class _Group:
    """Requests that joined at the same step, and so are at the same scale, with one law: a batch.

    slots: of its rows, those with label and then those without.
    """

    requests: list[_Request]
    passes: Passes
    pyramid: Pyramid
    slots: list[int]
    seeds: Tensor | None

    def draw(self, logits: Tensor, scale: int, scales: int) -> None:
        """Adds the next scale to the pyramid."""
        sampling, book = self.requests[0].sampling, self.pyramid.codebook.weight
        if self.seeds is None:
            self.pyramid.add(*sampling.draw_with_codes(logits, scale, scales, book))
        else:
            self.pyramid.add(sampling.draw(logits, scale, scales, self.seeds))
        for i, request in enumerate(self.requests):
            if request.progress is not None:
                request.progress(scale, self.pyramid.f_hat[i : i + 1])

    def finished(self) -> list[Finished]:
        pyramid = self.pyramid
        return [
            Finished(r.number, [t[i : i + 1] for t in pyramid.tokens], pyramid.f_hat[i : i + 1])
            for i, r in enumerate(self.requests)
        ]


class _Slots:
    """Keys, values and gains of all rows that can be decoded at a time, allocated once."""

    def __init__(self, packed: PackedVAR, count: int) -> None:
        self.caches = [
            KVCache(count, block.heads, block.head_dim, packed.ends[-1], like=packed.positions)
            for block in packed.blocks
        ]
        self.gains = np.empty((len(packed.blocks), count, 2, packed.width), np.float32)
        self._free = list(range(count))

    def take(self, passes: Passes) -> list[int]:
        """Slots for the rows of `passes`, with their gains."""
        count = len(passes.condition)
        slots, self._free = self._free[:count], self._free[count:]
        for table, six in zip(self.gains, passes.sixes, strict=True):
            for i in range(2):
                table[slots, i] = six[i].numpy()
        return slots

    def give_back(self, slots: list[int]) -> None:
        self._free = sorted(self._free + slots)  # the lowest first: their memory is in use


class _StepCost:
    """What a step costs besides its tokens, in tokens: a line through the times of recent steps,
    seconds = fixed + slope * tokens."""

    MEMORY = 0.98  # what a step keeps of the sums so far

    def __init__(self) -> None:
        self._sums = np.zeros(5)  # of 1, x, y, xx and xy

    def add(self, tokens: int, seconds: float) -> None:
        new = (1.0, tokens, seconds, tokens * tokens, tokens * seconds)
        self._sums = self.MEMORY * self._sums + new

    @property
    def overhead(self) -> float:
        n, x, y, xx, xy = self._sums
        spread = n * xx - x * x
        if n < 3 or spread <= 1e-6 * xx:
            return 0.0  # not known yet
        slope = (n * xy - x * y) / spread
        fixed = (y - slope * x) / n
        return math.inf if slope <= 0 else max(0.0, fixed / slope)


class ContinuousBatcher:
    """Decodes requests at different scales in one batch.

    Every step takes each request one scale further. The tokens of all of them are rows of one
    call of each op per layer, with their own modulation and their own slot of one cache. Requests
    that joined together stay together: they are embedded and drawn in one call. A request's tokens
    are, bit for bit, those of `NextScaleDecoder.tokens` of it alone.

    A request that joins others shares what a step costs whatever is in it, and delays them by its
    own tokens. While the first far outweighs the second (a GPU, large weights, many threads),
    requests join at once. Where time goes by tokens, as on a few CPU cores, those that wait join
    together when nothing is left to delay; so they do when more wait than there is room for, since
    under overload nothing is faster than full batches.

    Args:
        model: `pixleap.models.VAR`, or a `NextScaleDecoder` of it.
        max_requests: how many are decoded at a time; others wait. Caches for all of them are
            allocated here (their memory is touched when it is first used).
        weights: as for `NextScaleDecoder`, of a model that is not packed yet.
        step_overhead: the fixed cost of a step, in tokens; None measures it while it runs. Decides
            when requests join, never what is drawn: `math.inf` for at once, 0 for batches that run
            to their end.

    Raises:
        ValueError: max_requests below 1, step_overhead below 0.
    """

    def __init__(
        self,
        model: VAR | NextScaleDecoder,
        max_requests: int = 16,
        weights: str = "float32",
        *,
        step_overhead: float | None = None,
    ) -> None:
        if max_requests < 1:
            raise ValueError(
                f"ContinuousBatcher: argument 'max_requests' expected a number >= 1, got "
                f"{max_requests}"
            )
        if step_overhead is not None and not step_overhead >= 0:
            raise ValueError(
                f"ContinuousBatcher: argument 'step_overhead' expected a number >= 0, got "
                f"{step_overhead}"
            )
        self.decoder = as_decoder(model, weights)
        self.max_requests = max_requests
        self._slots = _Slots(self.decoder.packed, 2 * max_requests)  # with and without the label
        self._waiting: deque[_Request] = deque()
        self._groups: list[_Group] = []
        self._active = 0
        self._fixed_overhead, self._cost = step_overhead, _StepCost()
        self._count = 0

    def __len__(self) -> int:
        """Requests that wait or are decoded."""
        return len(self._waiting) + self._active

    def add(self, label: int, *, progress: Progress | None = None, **options: Any) -> int:
        """Queues one image and returns the request's number; options as in
        `NextScaleDecoder.tokens`, each request its own.

        Raises:
            ValueError: a label or options that do not fit.
        """
        packed = self.decoder.packed
        sampling = Sampling(**options).check(packed.vocabulary)
        packed.check_labels(torch.as_tensor([label]))
        self._waiting.append(_Request(self._count, label, sampling, progress))
        self._count += 1
        return self._count - 1

    @property
    def step_overhead(self) -> float:
        """The fixed cost of a step in tokens, as given or as measured so far."""
        return self._cost.overhead if self._fixed_overhead is None else self._fixed_overhead

    def _join(self) -> bool:
        """Whether waiting requests join now: always when nothing is decoded, never when they do not
        fit, else if the fixed cost of an image's steps is at least twice the tokens by which one
        more image delays the others (twice, since tokens of mixed steps cost more, and since those
        who come a little later could have shared every step)."""
        if not self._groups:
            return True
        if len(self._waiting) > self.max_requests - self._active:
            return False
        packed = self.decoder.packed
        halves = 2 if self._waiting[0].sampling.guided else 1
        delay = self._active * halves * packed.ends[-1]
        return 2 * delay <= self.step_overhead * len(packed.lengths)

    def _admit(self) -> None:
        room, waiting = self.max_requests - self._active, len(self._waiting)
        if not waiting or not self._join():
            return
        joining = [self._waiting.popleft() for _ in range(min(room, waiting))]
        self._active += len(joining)
        joining.sort(key=lambda r: r.law)  # stable
        for _, members in groupby(joining, lambda r: r.law):
            requests = list(members)
            labels = torch.tensor([r.label for r in requests])
            guided = requests[0].sampling.guided
            passes = self.decoder.packed.start(labels, guided=guided, scales=0)
            seeds = torch.tensor([r.sampling.seed for r in requests])
            self._groups.append(
                _Group(
                    requests,
                    passes,
                    Pyramid(self.decoder.codebook, len(requests)),
                    self._slots.take(passes),
                    seeds if len(requests) > 1 else None,
                )
            )

    def _logits(self) -> list[Tensor]:
        """One pass; per group its logits (B or 2B, n_k, V)."""
        packed, groups, held = self.decoder.packed, self._groups, self._slots
        counts = [len(g.slots) for g in groups]
        scales = np.repeat([g.passes.scales for g in groups], counts)
        slots = np.concatenate([np.array(g.slots) for g in groups])
        ends = np.array(packed.ends)
        positions, lengths = ends[scales], ends[scales + 1]
        ragged = Ragged.of(positions, lengths - positions, slots)
        offsets = ragged.offsets
        rows, first = int(offsets[-1]), int(lengths[0] - positions[0])
        # One group is a batch. Tokens of several are one row each, so that every linear op reads
        # its weights once; gains are then spread to the rows, while norms go by group.
        one = groups[0].passes if len(groups) == 1 else None
        shape = (len(slots), first) if one is not None else (rows, 1)
        index = np.repeat(slots, lengths - positions)
        x, hidden = (packed.scratch.get(name, *shape, packed.width) for name in ("x", "hidden"))
        gains = packed.scratch.get("gains", rows, 2, packed.width)
        spread, pair = gains.numpy(), gains.unbind(1)
        spans, tokens = [], []
        cuts = pairwise(int(offsets[i]) for i in accumulate(counts, initial=0))
        for g, (a, b) in zip(groups, cuts, strict=True):
            size = len(g.slots), packed.lengths[g.passes.scales]
            spans.append((slice(a, b), *size))
            part, work = (t.view(rows, -1)[a:b].view(*size, -1) for t in (x, hidden))
            packed.embed(g.passes, g.pyramid.maps, g.passes.scales + 1, part)
            tokens.append((part, work))

        for i, (block, cache) in enumerate(zip(packed.blocks, held.caches, strict=True)):

            def attend(
                qkv: Tensor, out: Tensor, block: Block = block, cache: KVCache = cache
            ) -> None:
                block.attend_ragged(
                    qkv.view(rows, -1), cache, out.view(rows, -1), ragged, packed.scratch
                )

            if one is not None:
                block(x, one.sixes[i], attend, packed.scratch)
                continue
            # By NumPy on this thread: torch's would spin on the cores that the next call needs.
            np.take(held.gains[i], index, axis=0, out=spread, mode="clip")
            parts = [(a, b, g.passes.sixes[i]) for (a, b), g in zip(tokens, groups, strict=True)]
            block(x, pair, attend, packed.scratch, parts)
        for g in groups:
            g.passes.scales += 1
        heads = [(a, b, g.passes.head_pair) for (a, b), g in zip(tokens, groups, strict=True)]
        logits = packed.logits(x, (), heads).view(rows, -1)
        return [logits[part].view(h, n, -1) for part, h, n in spans]

    @torch.no_grad()
    def step(self) -> list[Finished]:
        """Takes every request one scale further; returns those that are done."""
        self._admit()
        if not self._groups:
            return []
        scales, start = len(self.decoder.packed.patch_nums), time.perf_counter()
        tokens = sum(self.decoder.packed.lengths[g.passes.scales] * len(g.slots)
                     for g in self._groups)  # fmt: skip
        for g, logits in zip(self._groups, self._logits(), strict=True):
            g.draw(logits, g.pyramid.scales, scales)
        self._cost.add(tokens, time.perf_counter() - start)
        done = [g for g in self._groups if g.pyramid.scales == scales]
        self._groups = [g for g in self._groups if g.pyramid.scales < scales]
        for g in done:
            self._slots.give_back(g.slots)
            self._active -= len(g.requests)
        return [finished for g in done for finished in g.finished()]

    def run(self) -> Iterator[Finished]:
        """Steps until nothing is left, and yields each request as it ends; more may be added
        meanwhile."""
        while len(self):
            yield from self.step()
