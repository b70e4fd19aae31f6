"""Traces of matrix square roots by matrix products: what GPUs take in place of LAPACK."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pixleap as px
from pixleap.metrics.polar import polar_trace, trace_sqrt_product_polar


def covariances(d: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(3)
    pair = []
    for _ in range(2):
        x = rng.standard_normal((d, rank)) * rng.uniform(0.5, 2.0, (d, 1))
        pair.append(torch.from_numpy(x @ x.T / rank))
    return pair[0], pair[1]


@pytest.mark.parametrize(("d", "rank", "tolerance"), [(1, 3, 1e-9), (20, 60, 1e-7), (24, 9, 1e-4)])
def test_equals_lapack(d: int, rank: int, tolerance: float) -> None:
    c1, c2 = covariances(d, rank)
    expected = float(px.ops.trace_sqrt_product(c1, c2))
    trace = polar_trace(c1, c2)
    assert trace.shape == () and trace.dtype == torch.float64
    assert float(trace) == pytest.approx(expected, rel=tolerance)
    assert trace_sqrt_product_polar(c1, c2) == pytest.approx(expected, rel=min(tolerance, 1e-6))


def test_zeros() -> None:
    zero = torch.zeros(4, 4)
    assert float(polar_trace(zero, zero)) == pytest.approx(0.0, abs=1e-12)
    assert trace_sqrt_product_polar(zero, zero) == 0.0


def test_never_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing takes a number from a tensor, which is where a GPU would be waited for."""
    c1, c2 = covariances(6, 4)

    def refuse(*_: object) -> None:
        raise AssertionError("waits for the device")

    for name in ("__bool__", "__int__", "__float__", "item", "tolist", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    trace = polar_trace(c1, c2)
    monkeypatch.undo()
    assert torch.isfinite(trace)


@pytest.mark.cuda
def test_on_a_gpu() -> None:
    c1, c2 = covariances(20, 60)
    expected = float(polar_trace(c1, c2))
    torch.cuda.set_sync_debug_mode("error")
    try:
        trace = polar_trace(c1.cuda(), c2.cuda())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert float(trace) == pytest.approx(expected, rel=1e-9)
