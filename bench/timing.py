"""Seconds per call, interleaved, and the limits of the machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

ROUNDS = 15
MIN_SECONDS = 2e-3  # per timed stretch


def seconds(f: Callable[[], Any], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        f()
    return (time.perf_counter() - start) / repeats


def stretch(f: Callable[[], Any], repeats: int) -> float:
    """Seconds per call after a pause and an untimed call: threads of the library before may still
    spin for milliseconds on cores that this one needs."""
    time.sleep(0.01)
    f()
    return seconds(f, repeats)


def calibrate(f: Callable[[], Any]) -> int:
    f()
    return max(1, min(100_000, int(MIN_SECONDS / max(seconds(f, 3), 1e-7))))


def interleaved(*functions: Callable[[], Any], rounds: int = ROUNDS) -> list[list[float]]:
    """Seconds per call of each function, one entry per round."""
    repeats = [calibrate(f) for f in functions]
    times = [
        [stretch(f, n) for f, n in zip(functions, repeats, strict=True)] for _ in range(rounds)
    ]
    return [list(column) for column in zip(*times, strict=True)]


def limits() -> tuple[float, float]:
    """Copy bandwidth in bytes/s (read plus write) and float32 GEMM rate in flop/s, measured now."""
    a, b = torch.empty(1 << 24), torch.ones(1 << 24)
    copy = statistics.median(seconds(lambda: a.copy_(b), 1) for _ in range(9))
    m = torch.randn(1024, 1024)
    gemm = statistics.median(seconds(lambda: m @ m, 2) for _ in range(7))
    return 2 * 4 * a.numel() / copy, 2 * 1024**3 / gemm
