from __future__ import annotations

import math
from itertools import accumulate
from typing import Any

import numpy as np
import torch

import pixleap as px

from harness import Case

VAR_SCALES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)  # side lengths of VAR's token maps
DIGIT_SCALES = (1, 2, 3, 4, 7)  # of the digit model


def peer(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: Any = None,
    scale: float | None = None,
    return_lse: bool = False,
) -> Any:
    """torch's fused attention; a causal mask over a prefix has to be an array there."""
    length, keys = q.shape[2], k.shape[2]
    options: dict[str, Any] = {"scale": scale, "enable_gqa": q.shape[1] != k.shape[1]}
    if isinstance(mask, px.masks.causal):
        if length == keys:
            options["is_causal"] = True
        elif length > 1:
            seen = torch.ones(length, keys, dtype=torch.bool).tril(keys - length)
            options["attn_mask"] = seen
    elif isinstance(mask, px.masks.block_causal):
        ends = torch.tensor(mask.lengths).cumsum(0).repeat_interleave(torch.tensor(mask.lengths))
        options["attn_mask"] = torch.arange(keys) < ends[:, None] + keys - length
    elif mask is not None:
        options["attn_mask"] = mask
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, **options)


def make(
    batch: int,
    heads: int,
    length: int,
    keys: int,
    dim: int,
    kv_heads: int | None = None,
    mask: Any = None,
    mask_shape: tuple[int, ...] | None = None,
    **kwargs: Any,
) -> Any:
    def build(rng: np.random.Generator) -> Any:
        shared = kv_heads or heads
        shapes = (batch, heads, length, dim), (batch, shared, keys, dim), (batch, shared, keys, dim)
        added = mask
        if mask_shape is not None:
            added = rng.standard_normal(mask_shape).astype(np.float32)
            added[added > 1.5] = -np.inf
        arrays = tuple(rng.standard_normal(s).astype(np.float32) for s in shapes)
        return arrays, {"mask": added, **kwargs}

    return build


def int8(batch: int, heads: int, length: int, keys: int, dim: int, kv_heads: int, **kw: Any) -> Any:
    """Keys and values as integers; their scales stay float32 in every dtype."""

    def build(rng: np.random.Generator) -> Any:
        q = rng.standard_normal((batch, heads, length, dim)).astype(np.float32)
        size = (batch, kv_heads, keys, dim)
        k, v = (rng.integers(-127, 128, size).astype(np.int8) for _ in range(2))
        scales = (torch.from_numpy(rng.random(size[:3], np.float32) / 60) for _ in range(2))
        names = ("k_scale", "v_scale")
        return (q, k, v), {**dict(zip(names, scales, strict=True)), **kw}

    return build


def windowed_peer(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any) -> Any:
    """Roll, partition, fused attention, and back."""
    batch, heads, _, dim = q.shape
    rows = mask.size
    grid = (mask.height // rows, rows, mask.width // rows, rows)

    def split(x: torch.Tensor) -> torch.Tensor:
        x = x.view(batch, heads, mask.height, mask.width, dim)
        x = x.roll((-mask.shift, -mask.shift), (2, 3)).view(batch, heads, *grid, dim)
        return x.permute(0, 2, 4, 1, 3, 5, 6).reshape(-1, heads, rows * rows, dim)

    out = torch.nn.functional.scaled_dot_product_attention(split(q), split(k), split(v))
    out = out.view(batch, grid[0], grid[2], heads, rows, rows, dim).permute(0, 3, 1, 4, 2, 5, 6)
    out = out.reshape(batch, heads, mask.height, mask.width, dim)
    return out.roll((mask.shift, mask.shift), (2, 3)).reshape(q.shape)


def windowed(batch: int, heads: int, side: int, size: int, shift: int, dim: int) -> Case:
    tokens, mask = side * side, px.masks.window(side, side, size, shift)
    return Case(
        f"{batch} x {heads} x {side}x{side} windows of {size} shifted by {shift} D={dim}",
        make(batch, heads, tokens, tokens, dim, mask=mask),
        flops=4.0 * batch * heads * tokens * size * size * dim,
        bytes=16.0 * batch * heads * tokens * dim,
        peer=windowed_peer,
    )


def timed(name: str, batch: int, heads: int, length: int, keys: int, dim: int, **kw: Any) -> Case:
    seen = float(length * keys)
    if isinstance(kw.get("mask"), px.masks.causal):
        seen -= length * (length - 1) / 2
    if isinstance(kw.get("mask"), px.masks.block_causal):
        blocks = kw["mask"].lengths
        ends = accumulate(blocks, initial=keys - length)
        seen = float(sum(n * (start + n) for n, start in zip(blocks, ends, strict=False)))
    return Case(
        f"{name} L={length} S={keys}",
        make(batch, heads, length, keys, dim, **kw),
        flops=4.0 * batch * heads * seen * dim,
        bytes=8.0 * batch * heads * (length + keys) * dim,
        peer=peer,
        # Sums of thousands of values that cancel.
        tolerance={"float32": 4e-6} if keys > 2000 else {},
    )


def scales(name: str, sides: tuple[int, ...], batch: int, heads: int, dim: int) -> list[Case]:
    lengths = [s * s for s in sides]
    ends = accumulate(lengths)
    return [timed(name, batch, heads, n, end, dim) for n, end in zip(lengths, ends, strict=True)]


CAUSAL = px.masks.causal()
WINDOW = px.masks.window(6, 15, (3, 5), (-2, 4))
LENGTHS = px.masks.key_lengths(np.array([7, 0, 3, 25]))

CASES = [
    Case("one", make(1, 1, 1, 1, 1)),
    Case("empty batch", make(0, 2, 3, 4, 8)),
    Case("no queries", make(2, 2, 0, 4, 8)),
    Case("no keys", make(2, 2, 3, 0, 8, return_lse=True)),
    Case("tail 5", make(2, 3, 3, 7, 5)),
    Case("tail 40", make(1, 2, 11, 101, 40, return_lse=True)),
    Case("tail 72", make(2, 1, 70, 131, 72, scale=0.3)),
    Case("wide 250", make(1, 2, 35, 77, 250)),
    Case("wide 256, few queries", make(1, 2, 3, 77, 256)),
    Case("grouped heads", make(2, 6, 9, 20, 16, kv_heads=2)),
    Case("causal", make(2, 2, 133, 133, 24, mask=CAUSAL, return_lse=True)),
    Case("causal over a prefix", make(2, 2, 5, 104, 32, mask=CAUSAL)),
    Case("block causal", make(2, 2, 105, 105, 24, mask=px.masks.block_causal((1, 4, 0, 100)))),
    Case("block causal over a prefix", make(2, 2, 14, 44, 24, mask=px.masks.block_causal((9, 5)))),
    Case("key lengths", make(4, 2, 7, 19, 16, mask=LENGTHS, return_lse=True)),
    Case("mask", make(2, 3, 10, 103, 16, mask_shape=(2, 3, 10, 103), return_lse=True)),
    Case("mask of keys", make(2, 3, 3, 103, 16, mask_shape=(103,))),
    Case("mask of heads", make(2, 3, 10, 9, 16, mask_shape=(3, 10, 1))),
    Case("windows", make(2, 2, 90, 90, 12, kv_heads=1, mask=WINDOW, return_lse=True)),
    Case("large windows", make(1, 1, 264, 264, 16, mask=px.masks.window(12, 22, (12, 11), 5))),
    Case("windows of two", make(1, 2, 12, 12, 16, mask=px.masks.window(3, 4, (1, 2), (0, 1)))),
    Case("near", make(2, 2, 72, 72, 12, mask=px.masks.neighbourhood(9, 8, 3), return_lse=True)),
    Case("near, edges", make(1, 2, 330, 330, 16, mask=px.masks.neighbourhood(22, 15, (7, 5)))),
    Case("near, whole grid", make(1, 1, 15, 15, 16, mask=px.masks.neighbourhood(3, 5, (3, 5)))),
    Case("identity", make(2, 2, 7, 7, 16, mask=px.masks.identity(), return_lse=True)),
    Case("more than a task", make(1, 1, 197, 130, 64, mask_shape=(197, 130))),
    Case("int8", int8(2, 4, 50, 99, 24, kv_heads=2, return_lse=True)),
    Case("near, int8", int8(1, 4, 72, 72, 20, kv_heads=2, mask=px.masks.neighbourhood(9, 8, 5))),
    Case("int8, one query", int8(3, 2, 1, 103, 32, kv_heads=2)),
    Case("int8, few queries", int8(1, 2, 4, 103, 20, kv_heads=2, mask=px.masks.causal())),
    *scales("VAR-d16", VAR_SCALES, 2, 16, 64),
    *scales("digits, 2 heads", DIGIT_SCALES, 200, 2, 32),
    *scales("digits, 4 heads", DIGIT_SCALES, 200, 4, 32),
    timed("TarFlow D=32", 100, 2, 1, 49, 32, mask=CAUSAL),
    timed("TarFlow D=64", 100, 1, 1, 25, 64, mask=CAUSAL),
    timed("TarFlow D=32", 100, 2, 8, 49, 32, mask=CAUSAL),
    timed("TarFlow D=64", 100, 1, 8, 49, 64, mask=CAUSAL),
    timed("TarFlow D=64", 100, 1, 49, 49, 64, mask=CAUSAL),
    timed("dense", 1, 4, 1024, 1024, 64),
    timed("TarFlow", 1, 8, 1024, 1024, 64, mask=CAUSAL),
    timed("cached", 8, 16, 1, 1024, 64),
    timed("DiT-XL D=72", 2, 16, 256, 256, 72),
    timed("D=40", 1, 1, 4096, 4096, 40),
    timed("D=128", 1, 4, 1024, 1024, 128),
    timed("cross attention", 1, 8, 1024, 77, 64),
    windowed(1, 8, 64, 16, 8, 64),
    windowed(2, 10, 32, 8, 4, 64),
    timed(
        "VAR-d16 training mask",
        1,
        4,
        680,
        680,
        64,
        mask=px.masks.block_causal([s * s for s in VAR_SCALES]),
    ),
]
assert math.isclose(sum(s * s for s in VAR_SCALES), 680)
