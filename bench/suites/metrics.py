"""The Frechet distance against the ways that people compute it today.

Peers: `scipy.linalg.sqrtm` of the product (pytorch-fid, clean-fid), the general eigenvalues of the
product (torchmetrics), Cholesky factor and symmetric eigenvalues in torch (the best it offers). The
slow ones are timed once, the others in interleaved rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy import linalg
from timing import interleaved

import pixleap as px

D = 2048
Trace = Callable[[], float]


def features(n: int, seed: int) -> np.ndarray:
    """Rectified, correlated features with a spectrum over three decades, as a network's."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(0).standard_normal((256, D)) * np.logspace(0, -1.5, 256)[:, None]
    x = rng.standard_normal((n, 256)) @ mixing / 4 + 0.3 * rng.standard_normal((n, D))
    return np.maximum(x, 0).astype(np.float32)


def by_sqrtm(c1: np.ndarray, c2: np.ndarray) -> float:
    return float(np.trace(np.real(linalg.sqrtm(c1 @ c2))))


def by_eigenvalues(c1: np.ndarray, c2: np.ndarray) -> float:
    values = torch.linalg.eigvals(torch.from_numpy(c1) @ torch.from_numpy(c2))
    return float(values.sqrt().real.sum())


def by_cholesky(c1: np.ndarray, c2: np.ndarray) -> float:
    factor = torch.linalg.cholesky(torch.from_numpy(c1))
    values = torch.linalg.eigvalsh(factor.mT @ torch.from_numpy(c2) @ factor)
    return float(values.clamp(min=0).sqrt().sum())


Timed = tuple[float, float]  # seconds, value


def once(f: Trace) -> Timed:
    start = time.perf_counter()
    value = f()
    return time.perf_counter() - start, value


def compare(name: str, ours: Trace, slow: dict[str, Timed], fast: dict[str, Trace]) -> list[str]:
    """One row per peer: our median time and the peer's, their ratio, the values' difference."""
    exact = ours()
    rounds = interleaved(ours, *fast.values(), rounds=7)
    mine = statistics.median(rounds[0])
    rows = [(peer, seconds, seconds / mine, value) for peer, (seconds, value) in slow.items()]
    for (peer, f), times in zip(fast.items(), rounds[1:], strict=True):
        ratio = statistics.median(t / o for o, t in zip(rounds[0], times, strict=True))
        rows.append((peer, statistics.median(times), ratio, f()))
    lines = [
        f"| {name} | {mine * 1e3:.1f} ms | {peer} | {theirs * 1e3:.1f} ms | {ratio:.1f}x "
        f"| {abs(value - exact) / abs(exact):.0e} |"
        for peer, theirs, ratio, value in rows
    ]
    print("\n".join(lines), flush=True)
    return lines


def by_autograd(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """As torchmetrics' FrechetInceptionDistance computes it, in float64."""
    mu1, mu2 = x.mean(dim=0), y.mean(dim=0)
    c1, c2 = torch.cov(x.T), torch.cov(y.T)
    trace = torch.linalg.eigvals(c1 @ c2).sqrt().real.sum()
    return (mu1 - mu2).square().sum() + c1.trace() + c2.trace() - 2 * trace


def gradient_rows(n: int, d: int = 1024) -> list[str]:
    """Distance and gradient with respect to n features of size d."""
    x, y = (torch.from_numpy(features(n, seed)[:, :d]).double() for seed in (5, 6))
    gradients = {}

    def run(name: str, distance: Callable[..., torch.Tensor]) -> float:
        leaf = x.clone().requires_grad_()
        value = distance(leaf, y)
        value.backward()
        gradients[name] = leaf.grad
        return value.item()

    def ours() -> float:
        return run(
            "ours",
            lambda a, b: px.metrics.frechet_distance_from_features(a, b, differentiable=True),
        )

    name = f"distance and gradient, {n} x {d}"
    lines = compare(
        name, ours, {"torch autograd of eigvals": once(lambda: run("peer", by_autograd))}, {}
    )
    apart = (gradients["ours"] - gradients["peer"]).norm() / gradients["ours"].norm()
    print(f"{name}: gradients differ by {float(apart):.0e}", flush=True)
    return lines


def update_rows(n: int) -> list[str]:
    """One update of streaming moments; the value that is compared is a Frechet distance."""
    x = torch.from_numpy(features(n, 7))
    moments = px.metrics.FeatureMoments(D)
    moments.update(features(D + 1, 8))
    totals = [torch.zeros(D, dtype=torch.float64), torch.zeros(D, D, dtype=torch.float64)]

    def ours() -> float:
        moments.update(x)
        return 1.0

    def peer() -> float:  # torchmetrics' FrechetInceptionDistance.update
        y = x.double()
        totals[0] += y.sum(dim=0)
        totals[1] += y.T @ y
        return 1.0

    return compare(f"update, {n} x {D} float32", ours, {}, {"torchmetrics' update": peer})


def table(threads: int) -> list[str]:
    lines = [
        f"### metrics, float64, {threads} thread{'s' if threads > 1 else ''}",
        "",
        "| case | pixleap | peer | time | ratio | relative difference |",
        "|---|---|---|---|---|---|",
    ]

    def trace(c1: np.ndarray, c2: np.ndarray) -> Trace:
        return lambda: float(px.ops.trace_sqrt_product(c1, c2))

    def slow_peers(c1: np.ndarray, c2: np.ndarray) -> dict[str, Timed]:
        return {
            "scipy sqrtm": once(lambda: by_sqrtm(c1, c2)),
            "torch eigvals (torchmetrics)": once(lambda: by_eigenvalues(c1, c2)),
        }

    full = np.cov(features(10_000, 1).T), np.cov(features(10_000, 2).T)
    best = {"torch cholesky + eigvalsh": lambda: by_cholesky(*full)}
    lines += compare(f"d={D}, full rank", trace(*full), slow_peers(*full), best)
    x, y = features(500, 3), features(500, 4)
    low = np.cov(x.T), np.cov(y.T)
    slow = slow_peers(*low)
    lines += compare(f"rank 499 of {D}, statistics", trace(*low), slow, {})
    rest = np.sum((x.mean(axis=0) - y.mean(axis=0)) ** 2) + np.trace(low[0]) + np.trace(low[1])

    def from_features() -> float:
        return float(rest - px.metrics.frechet_distance_from_features(x, y)) / 2

    lines += compare(f"rank 499 of {D}, features", from_features, slow, {})
    for n in (3000, 500):
        lines += gradient_rows(n)
    for n in (256, 2048):
        lines += update_rows(n)
    return [*lines, ""]
