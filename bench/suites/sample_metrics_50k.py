"""KID and PRDC over 50,000 samples each: minutes per metric, so without peers."""

from __future__ import annotations

from suites import sample_metrics


def table(threads: int) -> list[str]:
    return sample_metrics.table(
        threads, ("kernel_distance", "prdc"), n=50_000, rounds=1, peers=False
    )
