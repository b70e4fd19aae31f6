"""A small class-conditional autoregressive transformer over the tokens of an image in raster order.

`RasterAR` is the torch module that is trained; `NativeRasterAR` runs it on native ops with a
KV cache, as `pixleap.decode.raster` calls its models. Pre-norm blocks (layer norm, causal
attention, GELU perceptron) with learnt positions, as in GPT-2 (Radford et al. 2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import masks
from ..decode.layers import Norm, PackedLinear, Scratch, check_labels, float_tensor
from ..kv_cache import KVCache
from .checkpoint import check_state_dict, load_checkpoint


class RasterBlock(nn.Module):
    """Residual causal attention and a residual perceptron, (B, L, C) -> (B, L, C)."""

    def __init__(self, width: int, heads: int, expansion: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = (
            nn.Linear(width, expansion * width),
            nn.Linear(expansion * width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(y.transpose(1, 2).flatten(2))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class RasterAR(nn.Module):
    """p(x_0, ..., x_{length-1} | label), each token one of `vocabulary`.

    Row i of the input holds token i - 1 (row 0 none) and the class, its output the logits of
    token i. Labels < 0 mean no class.
    """

    blocks: Sequence[RasterBlock]  # a ModuleList, said to mypy as what it holds

    def __init__(
        self, vocabulary: int, length: int, width: int, depth: int, heads: int, num_classes: int = 0
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"RasterAR: width={width} is not a multiple of heads={heads}")
        self.config: dict[str, Any] = {
            "vocabulary": vocabulary,
            "length": length,
            "width": width,
            "depth": depth,
            "heads": heads,
            "num_classes": num_classes,
        }
        self.vocabulary, self.length, self.num_classes = vocabulary, length, num_classes
        self.token_embed = nn.Parameter(0.02 * torch.randn(vocabulary + 1, width))  # last: begin
        self.pos_embed = nn.Parameter(0.02 * torch.randn(length, width))
        self.class_embed = nn.Parameter(0.02 * torch.randn(num_classes + 1, width))  # last: none
        blocks = [RasterBlock(width, heads) for _ in range(depth)]
        self.blocks = cast(Sequence[RasterBlock], nn.ModuleList(blocks))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary)

    def classes(self, labels: Tensor) -> Tensor:
        """(B,) labels -> (B, C)."""
        return self.class_embed[torch.where(labels < 0, self.num_classes, labels)]

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Teacher forcing: tokens (B, n) int64 with n < length, labels (B,) int64 -> logits
        (B, n + 1, vocabulary) of the positions 0 .. n."""
        rows = F.pad(tokens, (1, 0), value=self.vocabulary)
        x = self.token_embed[rows] + self.pos_embed[: rows.shape[1]]
        x = x + self.classes(labels)[:, None]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def load_raster_ar(path: str | Path) -> RasterAR:
    """A `RasterAR` in eval mode with the weights of a .npz of `save_checkpoint`.

    Raises ValueError with every missing, unexpected or misshapen entry."""
    config, state = load_checkpoint(path)
    model = RasterAR(**config)
    check_state_dict(model, state)
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)


# The attention op sums in another order for few queries than for many; with at least as many as
# this, padded where there are fewer, the bits of a row do not depend on how many are asked for.
_QUERIES = 8


class _Layer:
    def __init__(self, block: RasterBlock, dtype: str) -> None:
        self.heads = block.heads
        self.norm1, self.norm2 = Norm(block.norm1), Norm(block.norm2)
        self.qkv, self.proj = PackedLinear.of(block.qkv, dtype), PackedLinear.of(block.proj, dtype)
        self.fc1, self.fc2 = PackedLinear.of(block.fc1, dtype), PackedLinear.of(block.fc2, dtype)

    def __call__(self, x: Tensor, cache: KVCache, scratch: Scratch) -> None:
        """x (B, n, C) in place; cache holds the rows before them and takes theirs."""
        batch, count, width = x.shape
        rows = max(count, _QUERIES)
        padded = scratch.get("padded", batch, rows, width)
        qkv = scratch.get("qkv", batch, rows, 3 * width)
        hidden, end = padded[:, :count], cache.length + count
        self.norm1(x, hidden)
        self.qkv(hidden, out=qkv[:, :count])
        qkv[:, count:] = 0
        qkv = qkv.view(batch, rows, 3, self.heads, -1)
        cache.step(qkv, mask=masks.causal(), out=padded)
        cache.rollback(end)
        self.proj(hidden, residual=x, out=x)
        self.norm2(x, hidden)
        wide = scratch.get("wide", batch, count, self.fc1.out_features)
        self.fc1(hidden, activation="gelu", out=wide)
        self.fc2(wide, residual=x, out=x)


class NativeRasterAR:
    """A `RasterAR` packed for native sampling; `conditioned` makes of it what
    `pixleap.decode.raster` calls.

    Args:
        model: trained weights, on the CPU.
        weights: "float32" or "bfloat16".
    """

    def __init__(self, model: RasterAR, weights: str = "float32") -> None:
        self.model = model
        self.layers = [_Layer(block, weights) for block in model.blocks]
        self.norm, self.head = Norm(model.norm), PackedLinear.of(model.head)
        self.tokens = float_tensor(model.token_embed)
        self.positions = float_tensor(model.pos_embed)
        self.scratch = Scratch(self.positions)

    def conditioned(self, labels: Tensor, guided: bool = False) -> ConditionedRaster:
        """A `pixleap.decode.RasterModel` for labels (B,) int64, -1 for none. guided: each pass also
        gives the logits without label, as `guidance_scale` wants them.

        Raises ValueError for labels of another shape or too large."""
        check_labels("NativeRasterAR", labels, labels.shape[0], self.model.num_classes - 1)
        return ConditionedRaster(self, labels, guided)


class ConditionedRaster:
    """The model with its class embeddings and KV caches. A row of logits has the same bits for any
    number of rows in the call, so that Jacobi decoding gives the loop's tokens, bit for bit."""

    def __init__(self, packed: NativeRasterAR, labels: Tensor, guided: bool) -> None:
        self.packed, self.batch, self.guided = packed, len(labels), guided
        ways = [labels, torch.full_like(labels, -1)][: 1 + guided]
        self.classes = float_tensor(packed.model.classes(torch.cat(ways)))[:, None]
        heads, (length, width) = packed.layers[0].heads, packed.positions.shape
        size = (len(self.classes), heads, width // heads, length + _QUERIES)
        self.caches = [KVCache(*size, like=packed.positions) for _ in packed.layers]

    @torch.no_grad()
    def __call__(self, tokens: Tensor, start: int) -> Tensor | tuple[Tensor, Tensor]:
        """Tokens (B, n) int64 and a first position to (B, n + 1 - start, V) float32 logits, with
        guidance a pair; see `pixleap.decode.RasterModel`.

        Raises ValueError for another batch than the labels', more positions than the model has, and
        a start whose rows before it were never asked for."""
        packed, count = self.packed, tokens.shape[1] + 1 - start
        length = len(packed.positions)
        if len(tokens) != self.batch or tokens.shape[1] >= length:
            raise ValueError(
                f"ConditionedRaster: argument 'tokens' expected shape ({self.batch}, up to "
                f"{length - 1}), got {tuple(tokens.shape)}"
            )
        if not 0 <= start <= min(tokens.shape[1], self.caches[0].length):
            raise ValueError(
                f"ConditionedRaster: argument 'start' expected 0 to "
                f"{min(tokens.shape[1], self.caches[0].length)}, got {start}"
            )
        before = tokens[:, max(start - 1, 0) :]
        if start == 0:
            begin = torch.full((self.batch, 1), packed.model.vocabulary)
            before = torch.cat((begin, before), 1)
        embedded = packed.tokens[before] + packed.positions[start : start + count]
        x = embedded.repeat(1 + self.guided, 1, 1) + self.classes
        for layer, cache in zip(packed.layers, self.caches, strict=True):
            cache.rollback(start)
            layer(x, cache, packed.scratch)
        packed.norm(x, x)
        logits = packed.head(x)
        return (logits[: self.batch], logits[self.batch :]) if self.guided else logits
