"""Sample-set metrics against the usual ways to compute them.

Per metric: seconds of both (medians of interleaved rounds), their ratio, the two values, and the
share of the float32 GEMM rate of the same run that our time is, counting only needed flops. The
peers are the algorithms of torch-fidelity (KID on one subset of everything, MIND) and of the `prdc`
package (scikit-learn's distances, where it is installed, else torch.cdist).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import pixleap as px
from pixleap import metrics


class Entry(NamedTuple):
    ours: Callable[[np.ndarray, np.ndarray], Any]
    peer: Callable[[np.ndarray, np.ndarray], Any]
    flops: Callable[[int, int], float]


def kid_peer(x: np.ndarray, y: np.ndarray) -> float:
    """The three float32 kernel matrices, whole."""
    n, d = x.shape
    xx, yy, xy = ((a @ b.T / d + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    off_diagonal = (xx.sum() - np.trace(xx)) + (yy.sum() - np.trace(yy))
    return float(off_diagonal / (n * (n - 1)) - 2 * xy.mean())


def cmmd_peer(x: np.ndarray, y: np.ndarray) -> float:
    a, b = torch.from_numpy(x), torch.from_numpy(y)

    def mean(s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        squares = (s * s).sum(1)[:, None] + (t * t).sum(1) - 2 * s @ t.T
        return torch.exp(-squares / 200).mean()

    return 1000 * float(mean(a, a) + mean(b, b) - 2 * mean(a, b))


def distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    try:
        from sklearn.metrics import pairwise_distances
    except ImportError:
        return torch.cdist(torch.from_numpy(x), torch.from_numpy(y)).numpy()
    return pairwise_distances(x, y, metric="euclidean", n_jobs=px.num_threads())


def prdc_peer(x: np.ndarray, y: np.ndarray) -> tuple[float, ...]:
    """Three whole distance matrices, argpartition for the radii."""
    k = 5
    rx, ry = (np.partition(distances(v, v), k, axis=1)[:, k] for v in (x, y))
    xy = distances(x, y)
    in_x = xy < rx[:, None]
    return (
        float(in_x.any(0).mean()),
        float((xy < ry).any(1).mean()),
        float(in_x.sum(0).mean() / k),
        float((xy.min(1) < rx).mean()),
    )


LINES = np.empty((0, 0), np.float32)  # (1000, d) directions, those of metrics.mind itself


def orthogonal_lines(d: int) -> np.ndarray:
    """The directions of metrics.mind(seed=0), as a matrix."""
    size = 1 << (d - 1).bit_length()
    flips = (px.ops.random_normal((3, size), seed=0) < 0).astype(np.uint8)
    return px.ops.hadamard_projection(np.eye(d, dtype=np.float32), flips, count=min(1000, size))


def mind_peer(x: np.ndarray, y: np.ndarray) -> float:
    """Projections as columns, sorted along the samples."""
    directions = torch.from_numpy(LINES).T
    a, b = (torch.sort(torch.from_numpy(v) @ directions, dim=0).values for v in (x, y))
    return 3.0 * x.shape[1] * float((a - b).square().mean(0).mean())


ENTRIES = {
    "kernel_distance": Entry(metrics.kernel_distance, kid_peer, lambda n, d: 4.0 * n * n * d),
    "cmmd": Entry(metrics.cmmd, cmmd_peer, lambda n, d: 4.0 * n * n * d),
    "prdc": Entry(metrics.prdc, prdc_peer, lambda n, d: 4.0 * n * n * d),
    "mind": Entry(
        lambda x, y: metrics.mind(x, y, directions=LINES),
        mind_peer,
        lambda n, d: 4.0 * n * d * len(LINES),
    ),
    # Counts the product that it does without, too: its share can exceed 1.
    "mind orthogonal": Entry(metrics.mind, mind_peer, lambda n, d: 4.0 * n * d * len(LINES)),
}


def status(field: str) -> int:
    """KiB, of /proc/self/status."""
    text = Path("/proc/self/status").read_text()
    return int(text.split(f"{field}:")[1].split()[0])


def reset_peak() -> int:
    """Resets the mark of the largest memory use; the use now, in KiB."""
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def gemm_rate() -> float:
    best = 0.0
    for n in (1024, 2048, 4096):
        a, b = torch.randn(n, n), torch.randn(n, n)
        a @ b
        start = time.perf_counter()
        a @ b
        best = max(best, 2 * n**3 / (time.perf_counter() - start))
    return best


def timed(f: Callable[[], Any]) -> tuple[float, Any]:
    time.sleep(0.02)
    start = time.perf_counter()
    value = f()
    return time.perf_counter() - start, value


def text(value: Any) -> str:
    return "-" if value is None else ", ".join(f"{part:.6g}" for part in np.atleast_1d(value))


def table(
    threads: int,
    names: tuple[str, ...] = tuple(ENTRIES),
    n: int = 6000,
    d: int = 2048,
    rounds: int = 3,
    peers: bool = True,
) -> list[str]:
    global LINES
    LINES = orthogonal_lines(d)
    rng = np.random.default_rng(0)
    # Like Inception's features: not negative, of a common mean.
    x, y = (
        np.maximum(scale * rng.standard_normal((n, d), dtype=np.float32) + 0.3, 0).astype("f4")
        for scale in (0.4, 0.42)
    )
    rows = [
        f"### N = M = {n}, d = {d}, {threads} thread{'s' if threads > 1 else ''}",
        "",
        "| metric | pixleap | peer | ratio | share of GEMM | memory beside features "
        "| value | peer's value |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in names:
        rows.append(row(name, x, y, rounds, peers))
        print(rows[-1], flush=True)
    return [*rows, ""]


def row(name: str, x: np.ndarray, y: np.ndarray, rounds: int, peers: bool) -> str:
    entry = ENTRIES[name]
    ours, theirs, shares = [], [], []
    before = reset_peak()
    value = peer_value = None
    memory = 0.0
    for i in range(rounds):
        seconds, value = timed(lambda: entry.ours(x, y))
        if i == 0:
            memory = (status("VmHWM") - before) / 1024
        ours.append(seconds)
        shares.append(entry.flops(*x.shape) / seconds / gemm_rate())
        if peers:
            seconds, peer_value = timed(lambda: entry.peer(x, y))
            theirs.append(seconds)
    peer = f"{statistics.median(theirs):.2f} s" if peers else "-"
    ratio = f"{statistics.median(map(np.divide, theirs, ours)):.2f}x" if peers else "-"
    return (
        f"| {name} | {statistics.median(ours):.2f} s | {peer} | {ratio} "
        f"| {100 * statistics.median(shares):.0f} % | {memory:.0f} MiB "
        f"| {text(value)} | {text(peer_value)} |"
    )
