"""A block of TarFlow as a triangular system, with packed weights and native calls.

x_{t+1} = z_{t+1} exp(a_t) + b_t, with (a_t, b_t) a function of x_0 .. x_t by a causal transformer.
All rows of a sweep, of samples at different tokens and of both halves of guidance, are one batch
of each linear layer and one call of attention; caches are written in place at each sample's own
position, and nothing moves when samples are done.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from torch import Tensor

from .. import masks, ops
from .flow_rows import rows_of
from .layers import Norm, PackedLinear, Ragged, Scratch, float_tensor
from .triangular import first_guess

if TYPE_CHECKING:
    from ..models.tarflow import AttentionBlock, MetaBlock
    from .flow_segments import SegmentSweeps

Cache = tuple[Tensor, Tensor]  # keys and values (slots, heads, T, head_dim) of a layer


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance of a flow, as `TarFlow.reverse` has it."""

    scale: float = 0.0
    what: str = "ab"
    attn_temp: float = 1.0
    annealed: bool = False

    def __post_init__(self) -> None:
        for name, good, expected in (
            ("guidance", np.isfinite(self.scale), "a finite number"),
            ("attn_temp", np.isfinite(self.attn_temp) and self.attn_temp > 0, "a number > 0"),
            ("guide_what", set(self.what) <= set("abc"), "letters of 'a' and 'b' (or 'c')"),
        ):
            if not good:
                got = {"guidance": self.scale, "guide_what": self.what}.get(name, self.attn_temp)
                raise ValueError(f"FlowDecoder: argument '{name}' expected {expected}, got {got!r}")

    @property
    def halves(self) -> int:
        """2 where values without label are needed, too."""
        return 2 if self.scale > 0 and self.what else 1

    def strength(self, tokens: int) -> np.ndarray:
        """(tokens,) float32: entry t is for what token t says of token t + 1."""
        ramp = np.arange(1, tokens + 1) / max(tokens - 1, 1) if self.annealed else np.ones(tokens)
        return (ramp * self.scale).astype(np.float32)


class Rows(Protocol):
    """Rows of a sweep whose attention has one temperature."""

    def attend(self, qkv: Tensor, q: Tensor, out: Tensor, cache: Cache, scale: float) -> None:
        """qkv (R, 3, H, D), q and out (R, H, D) for work and the result."""


@dataclass(frozen=True)
class RaggedRows:
    """Of samples at different tokens."""

    rows: Ragged

    def attend(self, qkv: Tensor, q: Tensor, out: Tensor, cache: Cache, scale: float) -> None:
        r = self.rows
        ops.kv_append_varlen(qkv, *cache, r.offsets, r.positions, slots=r.slots, out=q)
        ops.attention_varlen(q, *cache, r.offsets, r.lengths, slots=r.slots, scale=scale, out=out)


@dataclass(frozen=True)
class SegmentRows:
    """Of the slots first .. last - 1, all at the inputs begin - 1 .. end - 2."""

    first: int
    last: int
    begin: int
    end: int

    def attend(self, qkv: Tensor, q: Tensor, out: Tensor, cache: Cache, scale: float) -> None:
        keys, values = (c[self.first : self.last] for c in cache)
        size = (self.last - self.first, self.end - self.begin)
        q, out = (x.view(*size, *x.shape[1:]).transpose(1, 2) for x in (q, out))
        ops.kv_append(qkv.view(*size, *qkv.shape[1:]), keys, values, self.begin - 1, out=q)
        held = slice(self.end - 1)
        ops.attention(
            q, keys[:, :, held], values[:, :, held], mask=masks.causal(), scale=scale, out=out
        )


class _Layer:
    def __init__(self, layer: AttentionBlock, dtype: str) -> None:
        attention, main = layer.attention, layer.mlp.main
        parts: Any = main
        self.head_dim = attention.head_dim
        self.norm1, self.norm2 = Norm(attention.norm), Norm(layer.mlp.norm)
        self.qkv = PackedLinear.of(attention.qkv, dtype)
        self.proj = PackedLinear.of(attention.proj, dtype)
        self.fc1 = PackedLinear.of(parts[0], dtype)
        self.fc2 = PackedLinear.of(parts[2], dtype)

    def __call__(
        self, x: Tensor, cache: Cache, groups: list[tuple[Rows, float]], scratch: Scratch
    ) -> None:
        """x (1, R, C) in place. groups: rows in order, with their attention temperature."""
        _, rows, width = x.shape
        heads = width // self.head_dim
        hidden = scratch.get("hidden", 1, rows, width)
        self.norm1(x, hidden)
        self.qkv(hidden, out=scratch.get("qkv", 1, rows, 3 * width))
        qkv = scratch.get("qkv", rows, 3, heads, self.head_dim)
        q = scratch.get("q", rows, heads, self.head_dim)
        out = scratch.get("hidden", rows, heads, self.head_dim)
        parts = [(qkv, q, out)]
        if len(groups) > 1:  # two of equal size
            parts = list(zip(*(t.chunk(2) for t in parts[0]), strict=True))
        for (own, temp), (qkv, q, out) in zip(groups, parts, strict=True):
            own.attend(qkv, q, out, cache, self.head_dim**-0.5 / temp)
        self.proj(hidden, residual=x, out=x)
        self.norm2(x, hidden)
        wide = scratch.get("wide", 1, rows, self.fc1.out_features)
        self.fc1(hidden, activation="gelu", out=wide)
        self.fc2(wide, residual=x, out=x)


class PackedBlock:
    """One flow block with packed weights."""

    def __init__(self, block: MetaBlock, dtype: str) -> None:
        self.block, self.nvp = block, block.nvp
        self.proj_in = PackedLinear.of(block.proj_in)
        self.proj_out = PackedLinear.of(block.proj_out)
        self.layers = [_Layer(layer, dtype) for layer in block.attn_blocks]
        self.positions = float_tensor(block.order(block.pos_embed, dim=0))

    @property
    def overhead(self) -> float:
        """About what a sweep costs besides its rows, in rows: calls, and weights from memory, at
        the rates of common machines. Of the model alone, so the same everywhere. Measured: 14 rows
        of 18 us with width 64 and 3 layers, 8 of 3.3 ms with width 1024 and 8 layers."""
        linears = [m for a in self.layers for m in (a.qkv, a.proj, a.fc1, a.fc2)]
        flops = sum(2 * m.in_features * m.out_features for m in linears)
        row = flops / 60e9 + 4e-6 * len(self.layers)
        calls = 8e-6 * (9 * len(self.layers) + 4)
        return (calls + sum(m.weight_bytes for m in linears) / 15e9) / row

    def embedding(self, labels: Tensor | None) -> Tensor:
        """Position plus class embedding, (B or 1, T, C)."""
        condition = self.block.condition(labels)
        both = self.positions[None] if condition is None else self.positions + condition
        return both.contiguous()

    def new_caches(self, slots: int) -> list[Cache]:
        """One per layer."""
        tokens, width = self.positions.shape
        caches = []
        for layer in self.layers:
            size = (slots, width // layer.head_dim, tokens, layer.head_dim)
            caches.append((self.positions.new_empty(size), self.positions.new_empty(size)))
        return caches


class FlowSystem:
    """The inversion of one block: x (B, T, P) from z, both in the block's order of tokens.

    Args:
        packed: the block.
        labels: (B,) int64 or None.
        guidance: of the labels.
        caches: one per layer with at least B slots, or 2B with guidance.
        scratch: work buffers.
        draft: makes the same system with weights of another precision.
        index: of the block in its model.
        sweeps: makes or finds, for a window, the captured sweeps of `Segments`.
    """

    first, per_sample = 1, True

    def __init__(
        self,
        packed: PackedBlock,
        labels: Tensor | None,
        guidance: Guidance,
        caches: list[Cache],
        scratch: Scratch,
        draft: Callable[[str], FlowSystem] | None = None,
        index: int = 0,
        sweeps: Callable[[int], SegmentSweeps] | None = None,
    ) -> None:
        self.packed, self.guidance, self.caches, self.scratch = packed, guidance, caches, scratch
        self.index, self.sweeps = index, sweeps
        self.rows, self.overhead = guidance.halves, packed.overhead
        self.length, self.width = packed.positions.shape
        tables = [packed.embedding(labels), packed.embedding(None)][: self.rows]
        self.tables = rows_of(packed.positions, scratch)
        # Rows of (B T, C), or of (T, C) where all samples have the same.
        self.embeddings = [
            (self.tables.table(t.reshape(-1, self.width)), len(t) > 1) for t in tables
        ]
        self.strength = self.tables.index(guidance.strength(self.length))
        if draft is not None:
            self.draft = draft

    def begin(self, noise: Tensor, init: Any) -> Tensor:
        self.batch, _, self.channels = noise.shape
        self.z = noise.contiguous()
        self.x = first_guess(self.z, init, self.first)
        self._x, self._z = (self.tables.table(v.view(-1, self.channels)) for v in (self.x, self.z))
        return self.x

    def evaluate(self, samples: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        packed, scratch, counts = self.packed, self.scratch, ends - starts
        ragged = Ragged.of(starts - 1, counts, samples)  # token t - 1 tells of token t
        rows = int(ragged.offsets[-1])
        inputs: Any
        if len(samples) == 1:
            position: Any = slice(int(starts[0]) - 1, int(ends[0]) - 1)
            base = int(samples[0]) * self.length
            inputs = slice(base + position.start, base + position.stop)
            outputs = slice(inputs.start + 1, inputs.stop + 1)
        else:
            within = np.arange(rows) - np.repeat(ragged.offsets[:-1], counts)
            position = within + np.repeat(starts - 1, counts)
            inputs = position + np.repeat(samples * self.length, counts)
            outputs, inputs, position = (
                self.tables.index(i) for i in (inputs + 1, inputs, position)
            )
        x, z = self._x, self._z

        h = scratch.get("x", 1, self.rows * rows, self.width)
        given = self.tables.take("given", x, inputs)
        for half, (table, own) in enumerate(self.embeddings):
            embedding = self.tables.take("embedding", table, inputs if own else position)
            out = h if self.rows == 1 else h[:, half * rows : (half + 1) * rows]
            packed.proj_in(given, residual=embedding, out=out)
        groups = self._groups(ragged, counts)
        for layer, cache in zip(packed.layers, self.caches, strict=False):
            layer(h, cache, groups, scratch)
        params = packed.proj_out(
            h, out=scratch.get("params", 1, self.rows * rows, packed.proj_out.out_features)
        )
        return self._update(z, x, params, outputs, position, rows)

    def _groups(self, ragged: Ragged, counts: np.ndarray) -> list[tuple[Rows, float]]:
        """Rows with the label, then those without, in slots of their own; together where they have
        the same temperature."""
        if self.rows == 1:
            return [(RaggedRows(ragged), 1.0)]
        free = Ragged.of(ragged.positions, counts, ragged.slots + self.batch)
        temp = self.guidance.attn_temp
        if temp != 1.0:
            return [(RaggedRows(ragged), 1.0), (RaggedRows(free), temp)]
        positions, slots = (
            np.concatenate(p)
            for p in ((ragged.positions, free.positions), (ragged.slots, free.slots))
        )
        return [(RaggedRows(Ragged.of(positions, np.tile(counts, 2), slots)), 1.0)]

    def _update(
        self, z: Any, x: Any, params: Tensor, outputs: Any, position: Any, rows: int
    ) -> np.ndarray:
        """Writes x[outputs] from the log-scales and shifts in `params`; what moved."""
        both = self.tables.table(params)
        a = both[..., : self.channels] if self.packed.nvp else self.tables.zeros(both)
        b = both[..., self.channels :] if self.packed.nvp else both
        options: dict[str, Any] = {}
        if self.rows == 2:
            what = self.guidance.what
            options = {
                "uncond_a": a[:, rows:] if "a" in what else None,
                "uncond_b": b[:, rows:] if "b" in what or "c" in what else None,
                "guidance": self.strength[position],
            }
        before = self.tables.take("before", x, outputs)
        moved = self.scratch.get("moved", 1, rows)
        ops.jacobi_update(
            self.tables.take("noise", z, outputs), a[:, :rows], b[:, :rows], before,
            out=(before, moved), **options,
        )  # fmt: skip
        if not isinstance(outputs, slice):
            self.tables.put(x, outputs, before[0])
        return self.tables.fetch(moved[0])
