"""Times the sample-set metrics against the usual ways to compute them, in one run.

    python bench/sample_metrics.py [metric ...] [--n 6000] [--d 2048] [--threads 2] [--save]

Per metric: seconds of both (medians of interleaved rounds), their ratio, the two values, and the
share of the float32 GEMM rate of the same run that our time is, counting only needed flops. The
peers are the algorithms of torch-fidelity (KID on one subset of everything, MIND) and of the `prdc`
package (scikit-learn's distances, where it is installed, else torch.cdist).
"""

from __future__ import annotations

import argparse
import datetime
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from run import ROOT, cpu_name, timing_lock

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("metrics", nargs="*", default=list(ENTRIES))
    parser.add_argument("--n", type=int, default=6000)
    parser.add_argument("--d", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-peer", action="store_true", help="time ours only")
    parser.add_argument(
        "--save", action="store_true", help="write bench/results/sample_metrics[_N].md"
    )
    options = parser.parse_args()
    global LINES
    LINES = orthogonal_lines(options.d)
    px.set_num_threads(options.threads)
    torch.set_num_threads(options.threads)
    rng = np.random.default_rng(0)
    n, d = options.n, options.d
    # Like Inception's features: not negative, of a common mean.
    x, y = (
        np.maximum(scale * rng.standard_normal((n, d), dtype=np.float32) + 0.3, 0).astype("f4")
        for scale in (0.4, 0.42)
    )
    rows = [
        f"`python bench/sample_metrics.py {shlex.join(sys.argv[1:])}`",
        "",
        f"{datetime.date.today()}, {cpu_name()}, ISA {px.isa()}, {options.threads} threads, torch "
        f"{torch.__version__}. N = M = {n}, d = {d}.",
        "",
        "| metric | pixleap | peer | ratio | share of GEMM | memory beside features "
        "| value | peer's value |",
        "|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(rows), flush=True)
    with timing_lock():
        for name in options.metrics:
            entry = ENTRIES[name]
            ours, peers, shares = [], [], []
            before = reset_peak()
            value = peer_value = None
            memory = 0.0
            for i in range(options.rounds):
                rate = gemm_rate() if i else 0.0
                t, value = timed(lambda e=entry: e.ours(x, y))  # type: ignore[misc]
                ours.append(t)
                if i == 0:
                    memory = (status("VmHWM") - before) / 1024
                    rate = gemm_rate()
                shares.append(entry.flops(n, d) / t / rate)
                if not options.no_peer:
                    t, peer_value = timed(lambda e=entry: e.peer(x, y))  # type: ignore[misc]
                    peers.append(t)
            peer_text = f"{statistics.median(peers):.2f} s" if peers else "-"
            ratio = (
                statistics.median(b / a for a, b in zip(ours, peers, strict=True)) if peers else 0
            )

            def text(v: Any) -> str:
                return (
                    ", ".join(f"{part:.6g}" for part in np.atleast_1d(v)) if v is not None else "-"
                )

            rows.append(
                f"| {name} | {statistics.median(ours):.2f} s | {peer_text} | {ratio:.2f}x "
                f"| {100 * statistics.median(shares):.0f} % | {memory:.0f} MiB "
                f"| {text(value)} | {text(peer_value)} |"
            )
            print(rows[-1], flush=True)
    if options.save:
        size = "" if n == 6000 else f"_{n}"
        path = ROOT / "bench" / "results" / f"sample_metrics{size}.md"
        path.write_text("\n".join([*rows, ""]))


if __name__ == "__main__":
    main()
