"""Seconds per call, interleaved, and the limits of the machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

ROUNDS = 15
MIN_SECONDS = 2e-3  # per timed stretch
WARM_SECONDS = 6e-3  # of untimed calls before it: after a pause, cores are slower for 5 ms


def seconds(f: Callable[[], Any], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        f()
    return (time.perf_counter() - start) / repeats


def stretch(f: Callable[[], Any], repeats: int) -> float:
    """Seconds per call after a pause and untimed calls: threads of the library before may still
    spin for milliseconds on cores that this one needs."""
    time.sleep(0.01)
    end = time.perf_counter() + WARM_SECONDS
    f()
    while time.perf_counter() < end:
        f()
    return seconds(f, repeats)


def calibrate(f: Callable[[], Any]) -> int:
    f()
    return max(1, min(100_000, int(MIN_SECONDS / max(seconds(f, 3), 1e-7))))


def interleaved(
    *functions: Callable[[], Any], rounds: int = ROUNDS, device: str = "cpu"
) -> list[list[float]]:
    """Seconds per call of each function, one entry per round; "cuda": by the device's clock."""
    if device == "cuda":
        return device_interleaved(*functions, rounds=rounds)
    repeats = [calibrate(f) for f in functions]
    times = [
        [stretch(f, n) for f, n in zip(functions, repeats, strict=True)] for _ in range(rounds)
    ]
    return [list(column) for column in zip(*times, strict=True)]


def captured(f: Callable[[], Any], repeats: int) -> Callable[[], Any]:
    """`repeats` calls of f on the current CUDA device as one graph, so that what is timed is the
    device and not the launches; the plain calls where f cannot be captured (it waits for the
    device)."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        f()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            for _ in range(repeats):
                f()
    except RuntimeError:
        torch.cuda.synchronize()
        return lambda: [f() for _ in range(repeats)]
    return graph.replay


def device_seconds(f: Callable[[], Any]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    f()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3


def device_interleaved(
    *functions: Callable[[], Any], rounds: int = ROUNDS, least: float = MIN_SECONDS
) -> list[list[float]]:
    """`interleaved` on the current CUDA device, by its own clock: graphs of as many calls as take
    `least` seconds, between events."""
    repeats = []
    for f in functions:
        f()
        repeats.append(max(1, min(200, int(least / max(device_seconds(f), 1e-6)))))
    graphs = [captured(f, n) for f, n in zip(functions, repeats, strict=True)]
    for graph in graphs:
        graph()
    times = [
        [device_seconds(g) / n for g, n in zip(graphs, repeats, strict=True)] for _ in range(rounds)
    ]
    return [list(column) for column in zip(*times, strict=True)]


def device_limits(dtype: torch.dtype) -> tuple[float, float]:
    """`limits` of the current CUDA device; the GEMM in `dtype`, on random numbers."""
    a, b = (torch.empty(1 << 28, device="cuda").normal_() for _ in range(2))
    [copy] = device_interleaved(lambda: a.copy_(b), rounds=9)
    m = torch.randn(8192, 8192, device="cuda", dtype=dtype)
    [gemm] = device_interleaved(lambda: m @ m, rounds=7)
    return 2 * 4 * a.numel() / statistics.median(copy), 2 * 8192**3 / statistics.median(gemm)


def limits() -> tuple[float, float]:
    """Copy bandwidth in bytes/s (read plus write) and float32 GEMM rate in flop/s, measured now."""
    a, b = torch.empty(1 << 24), torch.ones(1 << 24)
    copy = statistics.median(seconds(lambda: a.copy_(b), 1) for _ in range(9))
    m = torch.randn(1024, 1024)
    gemm = statistics.median(seconds(lambda: m @ m, 2) for _ in range(7))
    return 2 * 4 * a.numel() / copy, 2 * 1024**3 / gemm
