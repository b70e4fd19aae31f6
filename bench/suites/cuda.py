"""Whole tasks on a GPU beside the limits of that GPU: a solver step on arrays of 64 MB against the
bandwidth of a copy, the trace of a covariance product's root against eigenvalues, one query on a
long cache against torch."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from suites import attention_steps
from timing import interleaved

import pixleap as px
from pixleap.metrics.polar import polar_trace

Limits = tuple[float, float]  # bytes/s of a copy, flop/s of a GEMM


def times(device: str, *functions: Callable[[], Any], rounds: int = 9) -> list[float]:
    return [statistics.median(t) for t in interleaved(*functions, rounds=rounds, device=device)]


def line(name: str, mine: float, theirs: float, share: str, check: str) -> str:
    return (
        f"| {name} | {mine * 1e6:.1f} us | {theirs * 1e6:.1f} us | {theirs / mine:.2f}x "
        f"| {share} | {check} |"
    )


def solver_step(device: str, limits: Limits, dtype: torch.dtype, size: int = 1 << 26) -> str:
    """Three inputs of `size` bytes to one output; the peer is the three operations of torch."""
    n = size // dtype.itemsize
    x, y, z = (torch.randn(n, device=device).to(dtype) for _ in range(3))
    out = [torch.empty_like(x)]
    numbers = [0.5, -0.25, 2.0]

    def peer() -> torch.Tensor:
        return (x * numbers[0]).add_(y, alpha=numbers[1]).add_(z, alpha=numbers[2])

    px.ops.lincomb([x, y, z], numbers, out=out)
    apart = float((out[0] - peer()).abs().max())
    assert apart < (1e-5 if dtype == torch.float32 else 0.2), apart
    mine, theirs = times(device, lambda: px.ops.lincomb([x, y, z], numbers, out=out), peer)
    rate = 4 * n * dtype.itemsize / mine
    share = f"{rate / 1e9:.0f} GB/s, {100 * rate / limits[0]:.0f} % of a copy"
    name = f"lincomb, 3 to 1 of {size / 2**20:.0f} MB, {str(dtype)[6:]}"
    return line(name, mine, theirs, share, f"apart {apart:.1e}")


def trace_of_root(device: str, limits: Limits, d: int = 2048) -> str:
    """tr (C1 C2)^(1/2) of float64 covariances of 5 d samples."""
    c1, c2 = (
        torch.cov(torch.randn(d, 5 * d, device=device, dtype=torch.float64)) for _ in range(2)
    )

    def peer() -> torch.Tensor:
        root = torch.linalg.cholesky(c1)
        return torch.linalg.eigvalsh(root.mT @ c2 @ root).clamp(min=0).sqrt().sum()

    apart = float(abs(polar_trace(c1, c2) / peer() - 1))
    assert apart < 1e-6, apart
    mine, theirs = times(device, lambda: polar_trace(c1, c2), peer, rounds=3)  # seconds there
    share = f"{mine * limits[1] / (2 * d**3):.0f} times a product"
    return line(f"trace of the root, d={d}, against eigvalsh", mine, theirs, share, f"{apart:.1e}")


def long_cache(device: str, limits: Limits, dtype: torch.dtype, keys: int, queries: int = 1) -> str:
    """One sample of 16 heads, whose keys few queries share."""
    heads, dim = attention_steps.HEADS, attention_steps.DIM
    q = torch.randn(1, heads, queries, dim, device=device).to(dtype)
    k, v = (torch.randn(1, heads, keys, dim, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(q)
    px.ops.attention(q, k, v, out=out)
    theirs = attention_steps.sdpa(q, k, v)
    apart = float((out - theirs).abs().max())
    assert apart < (1e-5 if dtype == torch.float32 else 2e-2), apart
    mine, peer = times(
        device,
        lambda: px.ops.attention(q, k, v, out=out),
        lambda: attention_steps.sdpa(q, k, v),
    )
    rate = 2 * k.numel() * dtype.itemsize / mine
    share = f"{rate / 1e9:.0f} GB/s, {100 * rate / limits[0]:.0f} % of a copy"
    name = f"{queries} quer{'y' if queries == 1 else 'ies'}, {keys} keys, {str(dtype)[6:]}"
    return line(name, mine, peer, share, f"apart {apart:.1e}")


def table(limits: Limits, device: str = "cuda") -> list[str]:
    torch.manual_seed(0)
    lines = [
        "### Whole tasks, CUDA",
        "",
        "| case | pixleap | torch | ratio | rate | check |",
        "|---|---|---|---|---|---|",
    ]
    both = torch.float32, torch.bfloat16
    makers: list[Callable[[], str]] = [
        *(lambda t=t: solver_step(device, limits, t) for t in both),  # type: ignore[misc]
        *(
            lambda t=t, n=n, q=q: long_cache(device, limits, t, n, q)  # type: ignore[misc]
            for t in both
            for n, q in ((1024, 1), (16384, 1), (16384, 8))
        ),
        lambda: trace_of_root(device, limits),
    ]
    for make in makers:
        try:
            lines.append(make())
        except (RuntimeError, AssertionError) as error:  # one task does not end the others
            lines.append(f"left out: {type(error).__name__}: {str(error).splitlines()[:1]}")
        print(lines[-1], flush=True)
    return [*lines, ""]
