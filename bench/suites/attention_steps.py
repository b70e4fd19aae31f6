"""Attention as its users run it, against torch: sums over VAR's scales, whole VAR steps, one query
on a long cache, and the error of both against float64.

The peer of a step is the official VAR's: normalise, concatenate the cache, fused attention, and the
copy into (B, L, H * D). Of int8 keys and values the peer is torch in the dtype of the queries.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from timing import interleaved
from torch import Tensor

import pixleap as px

from cases.attention import VAR_SCALES

HEADS, DIM = 16, 64  # VAR-d16
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2}
LENGTHS = [side * side for side in VAR_SCALES]
sdpa = torch.nn.functional.scaled_dot_product_attention


def error(x: Tensor, exact: np.ndarray) -> float:
    """Root mean square against float64, relative to that of the exact values."""
    return float(np.sqrt(np.mean((host(x) - exact) ** 2) / np.mean(exact**2)))


def host(x: Tensor) -> np.ndarray:
    return x.double().cpu().numpy()


def row(
    name: str, ours: Callable[[], Any], peer: Callable[[], Any], flops: float, note: str
) -> str:
    a, b = interleaved(ours, peer, rounds=9, device=torch.get_default_device().type)
    ratio = statistics.median(t / o for o, t in zip(a, b, strict=True))
    mine = statistics.median(a)
    return (
        f"| {name} | {mine * 1e3:.3f} ms | {statistics.median(b) * 1e3:.3f} ms | {ratio:.2f}x "
        f"| {flops / mine / 1e9:.0f} | {note} |"
    )


def scales(batch: int, dtype: torch.dtype, lengths: list[int]) -> str:
    """Attention alone: every scale over all tokens up to its end."""
    total = sum(LENGTHS)
    q, k, v = (torch.randn(batch, HEADS, total, DIM).to(dtype) for _ in range(3))
    parts, start = [], 0
    for n in LENGTHS:
        end = start + n
        if n in lengths:
            part = q[:, :, start:end].contiguous()
            # The official cache is concatenated, so contiguous.
            parts.append((part, k[:, :, :end].contiguous(), v[:, :, :end].contiguous()))
        start = end
    outs = [torch.empty_like(x) for x, _, _ in parts]

    def ours() -> None:
        for part, out in zip(parts, outs, strict=True):
            px.ops.attention(*part, out=out)

    def peer() -> None:
        for part in parts:
            sdpa(*part)

    ours()
    exact = [px.reference.attention(*(host(x) for x in part)) for part in parts[-2:]]
    mine = max(error(out, e) for out, e in zip(outs[-2:], exact, strict=True))
    theirs = max(error(sdpa(*part), e) for part, e in zip(parts[-2:], exact, strict=True))
    assert mine < TOLERANCE[dtype]
    flops = sum(4.0 * batch * HEADS * x.shape[2] * y.shape[2] * DIM for x, y, _ in parts)
    name = "ten scales" if len(parts) == len(LENGTHS) else f"scales of {lengths} tokens"
    return row(f"{name}, B={batch}", ours, peer, flops, f"error {mine:.1e}, torch {theirs:.1e}")


def steps(batch: int, dtype: torch.dtype) -> str:
    """From the projection to the input of the next: norm, cache, attention, layout."""
    heads = torch.rand(HEADS) * 8 + 1
    qkvs = [torch.randn(batch, n, 3, HEADS, DIM).to(dtype) for n in LENGTHS]
    cache = px.KVCache(batch, HEADS, DIM, sum(LENGTHS), str(dtype)[6:], like=qkvs[0])
    outs = [torch.empty(batch, n, HEADS * DIM, dtype=dtype) for n in LENGTHS]
    q_scale = heads.to(dtype)[:, None, None]

    def ours() -> None:
        cache.reset()
        for qkv, out in zip(qkvs, outs, strict=True):
            cache.step(qkv, heads, scale=1.0, out=out)

    def peer() -> list[Tensor]:
        k, v, results = None, None, []
        for qkv in qkvs:
            q, new_k, new_v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
            q = torch.nn.functional.normalize(q, dim=-1) * q_scale
            new_k = torch.nn.functional.normalize(new_k, dim=-1)
            k = new_k if k is None else torch.cat((k, new_k), dim=2)
            v = new_v if v is None else torch.cat((v, new_v), dim=2)
            out = sdpa(q, k, v, scale=1.0)
            results.append(out.transpose(1, 2).reshape(batch, q.shape[2], HEADS * DIM))
        return results

    ours()
    apart = max(float((a - b).abs().max()) for a, b in zip(outs, peer(), strict=True))
    assert apart < (1e-4 if dtype == torch.float32 else 0.1), apart
    ends = np.cumsum(LENGTHS)
    flops = sum(4.0 * batch * HEADS * n * end * DIM for n, end in zip(LENGTHS, ends, strict=True))
    return row(f"ten whole steps, B={batch}", ours, peer, flops, f"apart {apart:.1e}")


def one_query(dtype: torch.dtype, int8: bool) -> str:
    q = torch.randn(8, HEADS, 1, DIM).to(dtype)
    k, v = (torch.randn(8, HEADS, 1024, DIM).to(dtype) for _ in range(2))
    out, keys, values, options = torch.empty_like(q), k, v, {}
    if int8:
        scale = [x.float().abs().amax(-1) / 127 for x in (k, v)]
        keys, values = (
            (x.float() / s[..., None]).round().to(torch.int8)
            for x, s in zip((k, v), scale, strict=True)
        )
        options = {"k_scale": scale[0], "v_scale": scale[1]}

    def ours() -> None:
        px.ops.attention(q, keys, values, out=out, **options)

    ours()
    exact = px.reference.attention(*(host(x) for x in (q, k, v)))
    mine, theirs = error(out, exact), error(sdpa(q, k, v), exact)
    assert mine < (2e-2 if int8 else TOLERANCE[dtype])
    name = f"one query, 1024 keys{' in int8' if int8 else ''}, B=8"
    flops = 4.0 * 8 * HEADS * 1024 * DIM
    return row(name, ours, lambda: sdpa(q, k, v), flops, f"error {mine:.1e}, torch {theirs:.1e}")


def table(threads: int, device: str = "cpu") -> list[str]:
    with torch.device(device):
        return _table(
            "CUDA" if device == "cuda" else f"{threads} thread{'s' if threads > 1 else ''}"
        )


def _table(where: str) -> list[str]:
    torch.manual_seed(0)
    lines = []
    for dtype in (torch.float32, torch.bfloat16):
        lines += [
            f"### VAR-d16, D=64, {str(dtype)[6:]}, {where}",
            "",
            "| case | pixleap | torch | ratio | GFLOP/s | check |",
            "|---|---|---|---|---|---|",
        ]
        for make in (
            lambda d: scales(2, d, LENGTHS),
            lambda d: scales(16, d, LENGTHS),
            lambda d: scales(2, d, [4, 9, 16, 25, 36, 64]),
            lambda d: scales(2, d, [1, 4, 9, 16, 25, 36]),
            lambda d: steps(2, d),
            lambda d: steps(16, d),
            lambda d: one_query(d, False),
            lambda d: one_query(d, True),
        ):
            lines.append(make(dtype))
            print(lines[-1], flush=True)
        lines.append("")
    return lines
