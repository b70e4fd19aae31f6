"""What tests/cases do not reach of CUDA kernels, run by the emulation of CUDA's threads: the bits
of the CPU, large maps and points, ties, what nothing waits to report."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import pixleap as px
from pixleap import _native

from cases.feature_moments import state
from harness import to_reference

pytestmark = pytest.mark.cuda_emulated
ORDERS = (("forward", 0), ("reverse", 0), ("shuffle", 11))


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    x = np.random.default_rng(seed).standard_normal(shape)
    return torch.from_numpy(x).to(dtype)


def totals(d: int, *chunks: torch.Tensor) -> list[torch.Tensor]:
    second, first = (torch.from_numpy(v) for v in state(d))
    for chunk in chunks:
        px.ops.feature_moments(chunk, second, first)
    return [second, first]


@pytest.mark.parametrize(
    ("n", "d", "dtype", "mean"),
    [
        (300, 70, torch.float32, 0.0),
        (4100, 9, torch.float32, 3.3),
        (130, 130, torch.bfloat16, -2.0),
        (129, 65, torch.float64, 1e3),
        (77, 33, torch.float16, 0.5),
        (100, 40, torch.float32, 1e6),
    ],
)
def test_moments_have_the_bits_of_the_cpu(n: int, d: int, dtype: torch.dtype, mean: float) -> None:
    if px.available_isas()[-1] == "scalar":
        pytest.skip("the scalar kernels have no FMA")
    x = (normal(n, n, d, dtype=torch.float64) + mean).to(dtype)
    chunks = x, x[: n // 2]
    expected = totals(d, *chunks)
    covariance = px.ops.feature_covariance(*expected, n + n // 2)
    for order in ORDERS:
        _native.emulate_cuda(*order)
        got = totals(d, *chunks)
        got += px.ops.feature_covariance(*got, n + n // 2)
        for a, b in zip(got, [*expected, *covariance], strict=True):
            assert torch.equal(a, b), f"other bits in order {order}"


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e9])
def test_moments_of_bad_features_are_nan(value: float) -> None:
    bad = normal(1, 40, 6)
    bad[3, 2] = value
    _native.emulate_cuda("forward")
    spoiled = totals(6, normal(2, 30, 6), bad, normal(3, 20, 6))
    results = [*px.ops.feature_covariance(*spoiled, 50)]
    _native.emulate_cuda("off")
    results += px.ops.feature_covariance(*spoiled, 50)
    px.ops.feature_moments(normal(4, 9, 6), *spoiled)  # the CPU goes on with them
    results += px.ops.feature_covariance(*spoiled, 59)
    for result in results:
        assert result.isnan().all()


@pytest.mark.parametrize("depth", [4100, 9000])
def test_long_points(depth: int) -> None:
    """One per block, then in scratch."""
    size = 1 << (depth - 1).bit_length()
    x = normal(5, 3, depth)
    flips = torch.from_numpy(np.random.default_rng(6).integers(0, 2, (3, size)).astype(np.uint8))
    expected = px.ops.hadamard_projection(x, flips, count=70)
    for order in ORDERS:
        _native.emulate_cuda(*order)
        assert torch.equal(px.ops.hadamard_projection(x, flips, count=70), expected)


def update(height: int, n: int, m: int, channels: int = 2) -> Any:
    rng = np.random.default_rng(7)
    tokens = torch.from_numpy(rng.integers(0, 11, (2, n * n)))
    weight = normal(8, channels, channels, 3, 3)
    f_hat = normal(11, 2, channels, height, height)
    return tokens, normal(9, 11, channels), weight, normal(10, channels), f_hat, m


@pytest.mark.parametrize(("height", "n", "m"), [(51, 3, 7), (50, 50, 0), (48, 48, 5), (32, 20, 32)])
def test_large_maps(height: int, n: int, m: int) -> None:
    args = update(height, n, m)
    expected = px.reference.next_scale_update(*to_reference(args[:-1]), m)
    for order in ORDERS:
        _native.emulate_cuda(*order)
        for a, b in zip(px.ops.next_scale_update(*args), expected, strict=True):
            np.testing.assert_allclose(a.numpy(), b, rtol=0, atol=2e-5)


@pytest.mark.parametrize("two", [False, True])
def test_neighbours_that_tie(two: bool) -> None:
    """Few distinct values: float32 leaves doubt everywhere, float64 and the index decide."""
    rng = np.random.default_rng(12)
    x = torch.from_numpy(rng.integers(0, 2, (150, 4)).astype(np.float32))
    y = torch.from_numpy(rng.integers(0, 2, (200, 4)).astype(np.float32)) if two else None
    expected = px.reference.pairwise_topk(
        *to_reference((x,)), None if y is None else y.numpy(), k=9
    )
    first = None
    for order in ORDERS:
        _native.emulate_cuda(*order)
        distances, indices = px.ops.pairwise_topk(x, y, k=9)
        np.testing.assert_array_equal(distances.numpy(), expected[0])
        assert first is None or torch.equal(first, indices)
        first = indices


def test_neighbours_that_float32_cannot_tell() -> None:
    """Two clusters far apart: inside them candidates are chance, and rows are searched again."""
    x = 0.05 * normal(15, 140, 3) + 1e4 * (torch.arange(140) % 2 * 2 - 1)[:, None]
    expected = px.reference.pairwise_topk(*to_reference((x,)), k=2)
    for order in ORDERS:
        _native.emulate_cuda(*order)
        distances, indices = px.ops.pairwise_topk(x, k=2)
        np.testing.assert_array_equal(distances.numpy(), expected[0])
        np.testing.assert_array_equal(indices.numpy(), expected[1])


def test_points_on_the_boundary() -> None:
    """Distances that equal radii: every pair is decided in float64, and none of them is inside."""
    rng = np.random.default_rng(16)
    x, y = (torch.from_numpy(rng.integers(0, 3, (n, 4)).astype(np.float32)) for n in (70, 140))
    radii = [torch.from_numpy(rng.integers(0, 7, len(v)).astype(np.float64)) for v in (x, y)]
    expected = px.reference.pairwise_count(*to_reference((x, y, *radii)))
    for order in ORDERS:
        _native.emulate_cuda(*order)
        for a, b in zip(px.ops.pairwise_count(x, y, *radii), expected, strict=True):
            np.testing.assert_array_equal(a.numpy(), b)


def test_sums_of_many_parts() -> None:
    """The parts of a set with itself: on the diagonal, below it, and the last one cut short."""
    x = 0.2 * normal(13, 300, 5)
    for kernel in ("gaussian", "polynomial"):
        expected = px.reference.pairwise_kernel_sum(
            x.numpy().astype(float), kernel=kernel, gamma=0.7
        )
        for order in ORDERS:
            _native.emulate_cuda(*order)
            got = px.ops.pairwise_kernel_sum(x, kernel=kernel, gamma=0.7)
            np.testing.assert_allclose(got.numpy(), expected, rtol=2e-6)


def test_scratch_is_checked() -> None:
    _native.emulate_cuda("forward")
    x, out = normal(14, 4, 3), torch.empty(4, dtype=torch.float64)
    rest = (x, None, "gaussian", 1.0, 1.0, 3)
    with pytest.raises(ValueError, match="'scratch' expected at least 8 numbers, got 2"):
        _native.pairwise_kernel_sum(out, [torch.empty(2, dtype=torch.float64)], *rest)
    with pytest.raises(ValueError, match="'scratch' expected one array, got 0"):
        _native.pairwise_kernel_sum(out, [], *rest)
