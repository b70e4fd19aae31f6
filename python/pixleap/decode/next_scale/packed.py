"""A VAR model packed for native calls, and its one primitive: a pass over consecutive scales."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ... import ops
from ...kv_cache import KVCache
from ...masks import block_causal
from ..graphs import Graphs
from ..layers import Norm, PackedLinear, Ragged, Scratch, check_labels, float_tensor

if TYPE_CHECKING:
    from ...models.var import VAR
    from ...models.var_layers import AdaLNSelfAttn


# Views of tokens and of the work space for them as a batch (b, n, C), and the batch's own vectors
# (b, C), as a layer's modulation gives them.
Part = tuple[Tensor, Tensor, Sequence[Tensor]]


class Block:
    """One transformer block with packed weights."""

    def __init__(self, block: AdaLNSelfAttn, dtype: str) -> None:
        attn = block.attn
        self.heads, self.head_dim = attn.num_heads, attn.head_dim
        bias = torch.cat((attn.q_bias, torch.zeros_like(attn.q_bias), attn.v_bias))
        self.qkv = PackedLinear(attn.mat_qkv.weight, bias, dtype)
        self.proj = PackedLinear.of(attn.proj, dtype)
        self.fc1 = PackedLinear.of(block.ffn.fc1, dtype)
        self.fc2 = PackedLinear.of(block.ffn.fc2, dtype)
        self.norm = Norm(block.ln_wo_grad)
        # Its own projection of the class to six vectors, or an offset to the shared one's.
        ada: Any = None if block.shared_aln else block.ada_lin
        self.modulate: Any = None if ada is None else PackedLinear.of(ada[1], dtype)
        self.ada_gss: Any = None if ada is not None else float_tensor(block.ada_gss).flatten(0, 2)
        self.scale = attn.scale
        self.q_scale = None
        if attn.l2_norm:
            self.q_scale = float_tensor(attn.scale_mul_1H11.clamp_max(attn.max_scale_mul).exp())
            self.q_scale = self.q_scale.view(-1)

    def __call__(
        self,
        x: Tensor,
        six: Sequence[Tensor],
        attend: Callable[[Tensor, Tensor], None],
        scratch: Scratch,
        parts: Sequence[Part] = (),
    ) -> None:
        """x (B, l, C) is updated in place. six: (B, C), of `PackedVAR.modulation`. attend: from the
        projection (B, l, 3C) to the mixed values (B, l, C), by `Block.attend` with whoever's
        caches. parts: batches that x consists of, whose vectors then scale and shift it, with the
        scratch "hidden" as their work space; of `six` the first two, the gains, are still used."""
        batch, length, width = x.shape
        gain1, gain2 = six[:2]
        hidden = scratch.get("hidden", batch, length, width)
        parts = parts or [(x, hidden, six)]
        for tokens, out, vectors in parts:
            self.norm(tokens, out, scale=vectors[2], shift=vectors[4])
        qkv = self.qkv(hidden, out=scratch.get("qkv", batch, length, 3 * width))
        attend(qkv, hidden)
        self.proj(hidden, gate=gain1, residual=x, out=x)
        for tokens, out, vectors in parts:
            self.norm(tokens, out, scale=vectors[3], shift=vectors[5])
        wide = scratch.get("wide", batch, length, self.fc1.out_features)
        self.fc1(hidden, activation="gelu_tanh", out=wide)
        self.fc2(wide, gate=gain2, residual=x, out=x)

    def attend(
        self,
        qkv: Tensor,
        cache: KVCache,
        out: Tensor,
        lengths: Sequence[int],
        scratch: Scratch,
        same_bits: bool = True,
    ) -> None:
        """qkv (B, l, 3C), the tokens of scales with these lengths, joins the cache; out (B, l, C)
        is written."""
        batch, length = qkv.shape[:2]
        qkv = qkv.view(batch, length, 3, self.heads, self.head_dim)
        if len(lengths) == 1 or not same_bits:
            mask = block_causal(lengths) if len(lengths) > 1 else None
            cache.step(qkv, self.q_scale, mask=mask, scale=self.scale, out=out)
            return
        q = cache.append(
            qkv, self.q_scale, scratch.get("q", batch, self.heads, length, self.head_dim)
        )
        out = out.view(batch, length, self.heads, self.head_dim).transpose(1, 2)
        attend_scales(q, cache, out, lengths, self.scale)

    def attend_ragged(
        self, qkv: Tensor, cache: KVCache, out: Tensor, ragged: Ragged, scratch: Scratch
    ) -> None:
        """As `attend` of each sequence alone, with the same bits: qkv (R, 3C) joins the slots of
        the cache, out (R, C) is written."""
        rows = len(qkv)
        keys, values = cache.buffers
        q, _, _ = ops.kv_append_varlen(
            qkv.view(rows, 3, self.heads, self.head_dim), keys, values, ragged.offsets,
            ragged.positions, slots=ragged.slots, q_scale=self.q_scale,
            out=scratch.get("q", rows, self.heads, self.head_dim),
        )  # fmt: skip
        ops.attention_varlen(
            q, keys, values, ragged.offsets, ragged.lengths, slots=ragged.slots, causal=False,
            scale=self.scale, out=out.view(rows, self.heads, self.head_dim),
        )  # fmt: skip


def attend_scales(
    q: Tensor, cache: KVCache, out: Tensor, lengths: Sequence[int], scale: float
) -> None:
    """Block-causal attention of the cache's last sum(lengths) tokens, q and out (B, H, L, D), one
    call per scale rather than one masked call, which is faster. Attention adds up in an order that
    depends on the number of queries, and so each scale gets the bits that it has in a pass of its
    own."""
    keys, values = cache.keys, cache.values
    begin, seen = 0, keys.shape[2] - sum(lengths)
    for length in lengths:
        rows = slice(begin, begin + length)
        begin, seen = begin + length, seen + length
        ops.attention(
            q[:, :, rows], keys[:, :, :seen], values[:, :, :seen], scale=scale, out=out[:, :, rows]
        )


class Passes:
    """What one model knows of a batch: its modulation, and keys and values of the scales so far.

    Made by `PackedVAR.start`; `PackedVAR.run` adds scales, `rollback` forgets the last ones.

    kept: they are used for one batch after the other (`restart`) by captured CUDA graphs, and so
        are the work buffers of a pass, which then are its own.
    """

    def __init__(
        self,
        model: PackedVAR,
        labels: Tensor,
        guided: bool,
        scales: int | None,
        kept: bool = False,
    ) -> None:
        self._model, self.guided, self.kept = model, guided, kept
        given = self._classes(labels)
        self.batch = len(labels)
        self.condition = model.class_emb(given)
        self._vectors = model.modulation(self.condition)
        rows, width = self.condition.shape
        *sixes, pair = self._vectors
        self.sixes = [six.view(rows, 6, width).unbind(1) for six in sixes]
        self.head_pair = pair.view(rows, 2, width).unbind(1)
        self.scales = 0  # in the caches
        room = model.ends[len(model.patch_nums) if scales is None else scales]
        self.caches = [
            KVCache(len(given), block.heads, block.head_dim, room, like=model.positions)
            for block in (model.blocks if room else ())
        ]

    def _classes(self, labels: Tensor) -> Tensor:
        """The rows' classes (B,) or (2B,) on the model's device."""
        model = self._model
        model.check_labels(labels)
        given = torch.where(labels < 0, model.num_classes, labels)
        if self.guided:
            given = torch.cat((given, torch.full_like(given, model.num_classes)))
        return given.to(model.device)

    def restart(self, labels: Tensor, steps: Graphs) -> None:
        """Begins another batch of this size in the same memory."""

        def modulate(given: Tensor) -> None:
            torch.index_select(self._model.class_emb.weight, 0, given, out=self.condition)
            self._model.modulation(self.condition, self._vectors)

        steps(("modulation", id(self)), modulate, self._classes(labels))
        self.advance_to(0)

    def advance_to(self, scales: int) -> None:
        """Counts `scales` scales as held, by whomever they were written."""
        self.scales = scales
        for cache in self.caches:
            cache.advance_to(self._model.ends[scales])

    def rollback(self, scales: int) -> None:
        """Forgets all but the first `scales` scales."""
        self.scales = min(self.scales, scales)
        for cache in self.caches:
            cache.rollback(self._model.ends[self.scales])


class PackedVAR:
    """A VAR model packed once for native calls.

    Args:
        model: a `pixleap.models.VAR`, on the device that will decode.
        weights: "float32"; "bfloat16" for half the weight traffic at bfloat16 precision; "int8" for
            a quarter, rounded per output feature (`ops.linear_pack`). Embeddings stay float32.

    Raises:
        ValueError: other weights.
    """

    def __init__(self, model: VAR, weights: str = "float32") -> None:
        self.config = dict(model.config)
        self.class_emb, self.pos_start = model.class_emb, model.pos_start.detach()
        self.patch_nums, self.num_classes = model.patch_nums, model.num_classes
        self.width, self.vocabulary = model.C, model.V
        self.lengths = tuple(side * side for side in model.patch_nums)
        self.ends = (0, *accumulate(self.lengths))  # tokens before each scale, and in all
        blocks: Any = model.blocks
        self.blocks = [Block(block, weights) for block in blocks]
        self.head = PackedLinear.of(model.head, weights)
        self.head_norm = Norm(model.head_nm.ln_wo_grad)
        head: Any = model.head_nm.ada_lin
        shared: Any = model.shared_ada_lin
        self.head_modulate = PackedLinear.of(head[1], weights)
        self.shared_modulate: PackedLinear | None = None
        if not isinstance(shared, torch.nn.Identity):
            self.shared_modulate = PackedLinear.of(shared[1], weights)
        self.word_embed = PackedLinear.of(model.word_embed)
        positions = model.lvl_embed(model.lvl_1L) + model.pos_1LC
        self.positions = float_tensor(positions[0])
        self.device = self.positions.device
        self.scratch = Scratch(self.positions)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the packed weights and of the embeddings, which are used unpacked."""
        packed = [self.head, self.word_embed, self.head_modulate]
        packed += [] if self.shared_modulate is None else [self.shared_modulate]
        for block in self.blocks:
            packed += [block.qkv, block.proj, block.fc1, block.fc2]
            packed += [] if block.modulate is None else [block.modulate]
        loose = [self.class_emb.weight, self.positions]
        return sum(t.numel() * t.element_size() for t in loose) + sum(
            linear.weight_bytes for linear in packed
        )

    def cache_bytes(self, batch: int, scales: int, guided: bool = True) -> int:
        """Bytes of the keys and values of `scales` scales of `batch` images."""
        rows = batch * (2 if guided else 1)
        return sum(
            2 * rows * block.heads * block.head_dim * self.ends[scales] * 4 for block in self.blocks
        )

    def modulation(self, condition: Tensor, out: Sequence[Tensor] = ()) -> list[Tensor]:
        """Once per image: per block six vectors, gains, scales and shifts of its two branches, as
        (B, 1, 6 C), and the head's scale and shift, (B, 1, 2 C). Native calls, so that no thread of
        torch spins on a core they need."""
        x = torch.nn.functional.silu(condition)[:, None]
        outs: list[Tensor | None] = [None] * (len(self.blocks) + 1)
        outs[: len(out)] = out
        if self.shared_modulate is None:
            vectors = [b.modulate(x, out=o) for b, o in zip(self.blocks, outs, strict=False)]
        else:
            shared = self.shared_modulate(x)
            vectors = [
                torch.add(shared, b.ada_gss.view(1, 1, -1), out=o)
                for b, o in zip(self.blocks, outs, strict=False)
            ]
        return [*vectors, self.head_modulate(x, out=outs[-1])]

    def start(
        self,
        labels: Tensor,
        *,
        guided: bool = True,
        scales: int | None = None,
        kept: bool = False,
    ) -> Passes:
        """Begins a batch. labels (B,) int64, negative for none; guided: with the half without
        labels; scales: how many the caches must hold (default: all; 0 where they are elsewhere);
        kept: for several batches and captured graphs.

        Raises:
            ValueError: labels that are no integers (B,) or too large.
        """
        return Passes(self, labels, guided, scales, kept)

    def check_labels(self, labels: Tensor) -> None:
        """Labels are integers (B,) up to num_classes.

        Raises:
            ValueError: they are not.
        """
        check_labels("next_scale", labels, labels.numel(), self.num_classes)

    def embed(self, passes: Passes, maps: Sequence[Tensor], stop: int, out: Tensor) -> None:
        """Input (rows, l, C) of the scales that the caches lack, up to `stop`."""
        ends, first, batch = self.ends, passes.scales, passes.batch
        for scale in range(first, stop):
            part = out[:, ends[scale] - ends[first] : ends[scale + 1] - ends[first]]
            position = self.positions[ends[scale] : ends[scale + 1]]
            if scale == 0:
                torch.add(passes.condition[:, None] + self.pos_start, position, out=part)
                continue
            position = position.expand(batch, -1, -1)
            for half in part.split(batch) if batch else ():
                self.word_embed(maps[scale], residual=position, out=half)

    def logits(
        self,
        x: Tensor,
        pair: Sequence[Tensor],
        parts: Sequence[Part] = (),
        scratch: Scratch | None = None,
    ) -> Tensor:
        """Last hidden states (B, l, C), scale and shift (B, C) -> logits (B, l, V), a buffer that
        the next call overwrites. parts: as for a `Block`, each with its own pair."""
        scratch = scratch or self.scratch
        hidden = scratch.get("hidden", *x.shape)
        for tokens, out, (scale, shift) in parts or [(x, hidden, pair)]:
            self.head_norm(tokens, out, scale=scale, shift=shift)
        return self.head(hidden, out=scratch.get("logits", *x.shape[:2], self.vocabulary))

    def run(
        self,
        passes: Passes,
        maps: Sequence[Tensor],
        stop: int,
        *,
        logits_from: int | None = None,
        same_bits: bool = True,
    ) -> list[Tensor]:
        """One block-causal pass over the scales from the first uncached one to before `stop`.

        maps: maps[k] (B, n_k, Cv) is the input of scale k, read where k > 0. logits_from: first
        scale whose logits are wanted (default: all of the pass; `stop` for none). same_bits: every
        scale has the bits that it has in a pass of its own; without, attention is one masked call.

        Returns:
            Per scale the logits (B, n_k, V), or (2B, n_k, V) with those without label below:
            views of one buffer that the next pass overwrites.
        """
        first, ends = passes.scales, self.ends
        lengths = self.lengths[first:stop]
        # A captured graph's work space is its own, out of the memory that graphs share: the common
        # one moves when it grows.
        scratch = Scratch(self.positions) if passes.kept else self.scratch
        x = scratch.get("x", len(passes.condition), ends[stop] - ends[first], self.width)
        self.embed(passes, maps, stop, x)
        for block, six, cache in zip(self.blocks, passes.sixes, passes.caches, strict=True):

            def attend(
                qkv: Tensor, out: Tensor, block: Block = block, cache: KVCache = cache
            ) -> None:
                block.attend(qkv, cache, out, lengths, scratch, same_bits)

            block(x, six, attend, scratch)
        passes.scales = stop
        begin = first if logits_from is None else logits_from
        if begin >= stop:
            return []
        logits = self.logits(x[:, ends[begin] - ends[first] :], passes.head_pair, scratch=scratch)
        return list(logits.split(self.lengths[begin:stop], dim=1))
