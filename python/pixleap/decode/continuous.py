"""Continuous batching of next-scale decoding: images join and leave between any two scales."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate, groupby, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..kv_cache import KVCache
from .next_scale import NextScaleDecoder, PackedVAR, Passes, Progress, Pyramid, Sampling, as_decoder
from .next_scale.packed import Block, Ragged

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


class ContinuousBatcher:
    """Decodes requests at different scales in one batch.

    Every step takes each request one scale further. The tokens of all of them are rows of one
    call of each op per layer, with their own modulation and their own slot of one cache. Requests
    that joined together stay together: they are embedded and drawn in one call. A request's tokens
    are, bit for bit, those of `NextScaleDecoder.tokens` of it alone.

    Requests join as soon as there is room for all that wait; when more wait, as soon as half of
    the room is free, so that under load they go through in few large groups.

    Args:
        model: `pixleap.models.VAR`, or a `NextScaleDecoder` of it.
        max_requests: how many are decoded at a time; others wait. Caches for all of them are
            allocated here (their memory is touched when it is first used).
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
        self._slots = _Slots(self.decoder.packed, 2 * max_requests)  # with and without the label
        self._waiting: deque[_Request] = deque()
        self._groups: list[_Group] = []
        self._active = 0
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

    def _admit(self) -> None:
        room, waiting = self.max_requests - self._active, len(self._waiting)
        if not waiting or (waiting > room and 2 * room < self.max_requests):
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
        offsets = np.concatenate(([0], np.cumsum(lengths - positions)))
        ragged = Ragged(offsets, positions, lengths, slots)
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
        scales = len(self.decoder.packed.patch_nums)
        for g, logits in zip(self._groups, self._logits(), strict=True):
            g.draw(logits, g.pyramid.scales, scales)
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
