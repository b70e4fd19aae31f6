"""Weights of forecasts, the feature ring and the schedules; no model."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from pixleap.caching import (
    DeltaCache,
    FeatureRing,
    FirstBlockCache,
    Forecast,
    lagrange_weights,
    taylor_weights,
)

UNEVEN = [0.0, 0.7, 1.1, 2.6, 3.0]


@pytest.mark.parametrize("order", range(5))
@pytest.mark.parametrize("at", [3.9, -0.4, 1.1])
def test_lagrange_is_exact_on_polynomials(order: int, at: float) -> None:
    times = np.array(UNEVEN[: order + 1])
    weights = lagrange_weights(times, at)
    assert weights.dtype == np.float64 and weights.shape == (order + 1,)
    for degree in range(order + 1):
        polynomial = np.polynomial.Polynomial(np.arange(1.0, degree + 2))
        expected = polynomial(at)
        np.testing.assert_allclose(weights @ polynomial(times), expected, rtol=1e-12, atol=1e-12)


def test_lagrange_at_a_node_takes_that_feature() -> None:
    np.testing.assert_array_equal(lagrange_weights(UNEVEN, 2.6), [0, 0, 0, 1, 0])


def official_taylorseer(times: list[float], features: list[float], at: float) -> float:
    """The repository's update and prediction, on numbers."""
    factors: dict[int, float] = {}
    for n, feature in enumerate(features):
        updated = {0: feature}
        for i in range(len(factors)):
            updated[i + 1] = (updated[i] - factors[i]) / (times[n] - times[n - 1])
        factors = updated
    factorial, output = 1.0, 0.0
    for i, factor in factors.items():
        factorial *= max(i, 1)
        output += factor / factorial * (at - times[-1]) ** i
    return output


def test_taylor_by_hand() -> None:
    # Features f0, f1, f2 at steps 0, 2, 5, carried to 7: factor 1 is (f2 - f1) / 3, factor 2 is
    # ((f2 - f1) / 3 - (f1 - f0) / 2) / 3; the forecast f2 + 2 factor 1 + 2^2 / 2 factor 2.
    by_hand = [2 / 6, -2 / 3 - 2 / 9 - 2 / 6, 1 + 2 / 3 + 2 / 9]
    np.testing.assert_allclose(taylor_weights([0, 2, 5], 7), by_hand, rtol=1e-14)
    # Even steps of 3, carried by 2: f1 + (f1 - f0) / 3 * 2, and half of the second difference / 9.
    np.testing.assert_allclose(taylor_weights([0, 3], 5), [-2 / 3, 5 / 3], rtol=1e-14)
    second = 2 / 9
    np.testing.assert_allclose(
        taylor_weights([0, 3, 6], 8), [second, -2 / 3 - 2 * second, 5 / 3 + second], rtol=1e-14
    )
    # Step numbers that count down, as in the DiT code, give the same.
    np.testing.assert_allclose(taylor_weights([49, 47, 44], 42), by_hand, rtol=1e-14)


@pytest.mark.parametrize("order", range(5))
def test_taylor_is_the_official_formula(order: int) -> None:
    rng = np.random.default_rng(order)
    times, features = UNEVEN[: order + 1], rng.standard_normal(order + 1)
    expected = official_taylorseer(times, list(features), 4.2)
    np.testing.assert_allclose(taylor_weights(times, 4.2) @ features, expected, rtol=1e-12)


def test_taylor_of_the_paper_equals_it_on_even_times() -> None:
    even = [0.0, 4.0, 8.0, 12.0, 16.0]
    paper = taylor_weights(even, 19, formula="paper")
    np.testing.assert_allclose(paper, taylor_weights(even, 19), rtol=1e-13)
    apart = taylor_weights(UNEVEN, 4, formula="paper") - taylor_weights(UNEVEN, 4)
    assert np.abs(apart).max() > 0.1
    # Differences of order 2 over N^2 with N = 0.5: f2 + x d1 / N + x^2 / 2 d2 / N^2, x = 1.
    weights = taylor_weights([0, 1, 1.5], 2.5, formula="paper")
    np.testing.assert_allclose(weights, [2, -2 - 4, 1 + 2 + 2], rtol=1e-14)


def test_taylor_equals_diffusers_state() -> None:
    hooks = pytest.importorskip("diffusers.hooks.taylorseer_cache")
    state = hooks.TaylorSeerState(taylor_factors_dtype=torch.float64, max_order=3)
    ring = FeatureRing(3, formula="taylor")
    generator = torch.Generator().manual_seed(0)
    for step in (0, 1, 4, 6, 9):
        x = torch.randn(5, dtype=torch.float64, generator=generator)
        state.current_step = step
        state.update((x,))
        ring.push(step, x)
        state.current_step = step + 2
        torch.testing.assert_close(ring.forecast(step + 2), state.predict()[0])


def slope(formula: str, order: int) -> tuple[float, float]:
    """Order of convergence of a forecast of one interval ahead, and its error at the finest."""
    frequency, phase = np.linspace(0.5, 1.5, 64), np.linspace(0, 6, 64)

    def feature(t: float) -> np.ndarray:
        return np.sin(frequency * t + phase)

    errors = []
    for h in (0.1, 0.05, 0.025):
        ring = FeatureRing(order, formula=formula)
        for k in range(-order, 1):
            ring.push(k * h, feature(k * h))
        errors.append(np.abs(ring.forecast(h) - feature(h)).max())
    return float(np.log2(errors[0] / errors[2]) / 2), float(errors[2])


def test_lagrange_converges_with_its_order_and_taylor_does_not() -> None:
    for order in range(5):
        rate, _ = slope("lagrange", order)
        assert abs(rate - (order + 1)) < 0.2, (order, rate)
    for order in range(1, 5):
        rate, _ = slope("taylor", order)
        assert abs(rate - 2) < 0.2, (order, rate)
    assert slope("lagrange", 3)[1] < slope("taylor", 3)[1] / 100


def features(count: int, dtype: Any = np.float32) -> list[np.ndarray]:
    rng = np.random.default_rng(7)
    return [rng.standard_normal((2, 3, 17)).astype(dtype) for _ in range(count)]


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize("kind", ["numpy", "torch", "bfloat16"])
def test_ring_ramps_up_and_then_rolls(copy: bool, kind: str) -> None:
    xs: list[Any] = features(5)
    tolerance = 1e-5
    if kind != "numpy":
        xs = [torch.from_numpy(x) for x in xs]
    if kind == "bfloat16":
        xs, tolerance = [x.bfloat16() for x in xs], 3e-2
    ring = FeatureRing(2, copy=copy)
    times = [0.0, 1.0, 2.5, 3.0, 5.0]
    for n, (time, x) in enumerate(zip(times, xs, strict=True)):
        ring.push(time, x)
        held = slice(max(n - 2, 0), n + 1)
        assert len(ring) == min(n + 1, 3) and list(ring.times) == times[held]
        np.testing.assert_allclose(ring.weights(5.5), lagrange_weights(times[held], 5.5))
        values = np.stack([np.asarray(torch.as_tensor(v).double()) for v in xs[held]])
        expected = np.tensordot(lagrange_weights(times[held], 5.5), values, axes=1)
        got = ring.forecast(5.5)
        assert type(got) is type(x) and got.dtype == x.dtype
        scale = np.abs(expected).max()
        np.testing.assert_allclose(
            np.asarray(torch.as_tensor(got).double()) / scale, expected / scale, atol=tolerance
        )
        if not copy:
            assert ring.features[-1] is x


def test_ring_copy_does_not_see_later_writes_and_allocates_no_more() -> None:
    ring, x = FeatureRing(1, copy=True), np.ones((2, 5), np.float32)
    ring.push(0, x)
    x[:] = 3
    ring.push(1, x)
    x[:] = 7
    np.testing.assert_array_equal(ring.features[0], np.ones((2, 5)))
    buffers = {id(f) for f in ring.features}
    ring.push(2, x)
    assert {id(f) for f in ring.features} == buffers
    np.testing.assert_array_equal([f[0, 0] for f in ring.features], [3, 7])


def test_ring_never_writes_into_what_it_was_given() -> None:
    ring, xs = FeatureRing(0), features(2)
    ring.push(0, xs[0])
    buffer = ring.reserve(xs[0])
    assert buffer is not xs[0]
    buffer[...] = 5
    ring.push(1, buffer)
    assert ring.features[0] is buffer and ring.reserve(xs[0]) is buffer


def test_ring_of_tuples_out_and_base() -> None:
    xs, ys = features(3), [x[:, :2, :5].copy() for x in features(3)]
    ring = FeatureRing(2)
    for n, pair in enumerate(zip(xs, ys, strict=True)):
        ring.push(n, pair)
    out = (np.empty_like(xs[0]), np.empty_like(ys[0]))
    got = ring.forecast(3, out, base=(xs[0], ys[0]))
    assert got[0] is out[0] and got[1] is out[1]
    for result, series in zip(got, (xs, ys), strict=True):
        expected = series[0] + series[0] - 3 * series[1] + 3 * series[2]
        np.testing.assert_allclose(result, expected, atol=1e-5)


def test_ring_limits_amplification() -> None:
    x = np.zeros(3, np.float32)
    ring, free = FeatureRing(2, max_amplification=32), FeatureRing(2)
    for step in (0, 1, 2):
        ring.push(step, x)
        free.push(step, x)
    np.testing.assert_allclose(free.weights(6), [10, -24, 15])
    np.testing.assert_allclose(ring.weights(5), [6, -15, 10])  # 31
    np.testing.assert_allclose(ring.weights(6), [0, -4, 5])
    np.testing.assert_allclose(ring.weights(100), [0, 0, 1])
    even = FeatureRing(4, max_amplification=32)
    for step in range(5):
        even.push(step, x)
    assert np.abs(even.weights(5)).sum() == pytest.approx(31)


X = np.zeros((2, 3), np.float32)


def test_ring_errors() -> None:
    for order in (-1, 5, 1.0, True):
        with pytest.raises(ValueError, match=r"FeatureRing: argument 'order' expected .*0 to 4"):
            FeatureRing(order)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"argument 'formula' expected .*lagrange.*got 'newton'"):
        FeatureRing(1, formula="newton")
    with pytest.raises(ValueError, match=r"argument 'max_amplification' expected .*got 0.5"):
        FeatureRing(1, max_amplification=0.5)
    ring = FeatureRing(1)
    with pytest.raises(RuntimeError, match=r"FeatureRing.forecast: expected a push before"):
        ring.forecast(0)
    ring.push(0, X)
    with pytest.raises(
        ValueError, match=r"FeatureRing.push: argument 'time' expected a time other"
    ):
        ring.push(0, X)
    for bad in (X[:1], X.astype(np.float64), (X,), torch.zeros(2, 3)):
        with pytest.raises(
            ValueError, match=r"argument 'feature' expected float32 \(2, 3\).* as bef"
        ):
            ring.push(1, bad)
    with pytest.raises(TypeError, match=r"argument 'feature' expected an array"):
        ring.push(1, "x")
    with pytest.raises(ValueError, match=r"argument 'time' expected a finite number, got nan"):
        ring.push(float("nan"), X)
    with pytest.raises(TypeError, match=r"argument 'time' expected a real number, got str"):
        ring.forecast("now")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"argument 'out' expected an array, as was pushed, got 2"):
        ring.forecast(1, (X, X))
    with pytest.raises(ValueError, match=r"lincomb: argument 'inputs'"):
        ring.forecast(1, base=X[:1])
    assert ring.times == (0.0,)
    ring.clear()
    ring.push(0, X[:1])


def test_weight_errors() -> None:
    for weights in (lagrange_weights, taylor_weights):
        for times in ([], [[1.0]], 3.0):
            with pytest.raises(ValueError, match=r"_weights: argument 'times' expected shape"):
                weights(times, 1)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"expected distinct times"):
            weights([1, 2, 1], 3)
        with pytest.raises(ValueError, match=r"expected finite numbers"):
            weights([1, 2], float("inf"))
        with pytest.raises(TypeError, match=r"expected real numbers"):
            weights(["a"], 3)  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"argument 'formula' expected .*got 'lagrange'"):
        taylor_weights([1, 2], 3, formula="lagrange")


def full(config: Forecast | DeltaCache, steps: int) -> list[int]:
    return [step for step in range(steps) if config.is_full(step)]


def test_schedules() -> None:
    assert full(Forecast(interval=4), 10) == [0, 4, 8]
    assert full(Forecast(interval=4, first=3), 12) == [0, 1, 2, 6, 10]
    assert full(Forecast(interval=5, last=2, steps=9), 9) == [0, 5, 7, 8]
    assert full(Forecast(interval=1), 3) == [0, 1, 2]
    assert full(Forecast(full_steps=[0, 2, 7]), 9) == [0, 2, 7]
    assert full(Forecast(full_steps=lambda step: step % 3 == 0), 7) == [0, 3, 6]
    delta = DeltaCache(blocks=2, boundary=3)
    assert [delta.skipped(s) for s in range(5)] == [None, "rear", None, "front", None]


def test_spans_cross_lists_of_blocks() -> None:
    groups = DeltaCache(blocks=3, boundary=3).groups([2, 4])
    assert groups == {"rear": [(1, 1, 3)], "front": [(0, 0, 1), (1, 0, 0)]}
    assert FirstBlockCache().groups([1, 2]) == {"tail": [(1, 0, 1)]}
    assert FirstBlockCache().groups([3, 1]) == {"tail": [(0, 1, 2), (1, 0, 0)]}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Forecast(interval=0), r"Forecast: argument 'interval' expected an integer >= 1"),
        (lambda: Forecast(first=0), r"Forecast: argument 'first' expected an integer >= 1, got 0"),
        (lambda: Forecast(last=2), r"Forecast: argument 'steps' expected a number of steps"),
        (lambda: Forecast(full_steps=[1]), r"argument 'full_steps' expected step 0 among them"),
        (lambda: Forecast(order=5), r"argument 'order' expected an integer from 0 to 4, got 5"),
        (lambda: Forecast(formula="x"), r"argument 'formula' expected"),
        (lambda: Forecast(target="x"), r"Forecast: argument 'target' expected 'residual' or"),
        (lambda: DeltaCache(blocks=0, boundary=1), r"DeltaCache: argument 'blocks' expected"),
        (lambda: DeltaCache(blocks=1, boundary=-1), r"DeltaCache: argument 'boundary' expected"),
        (lambda: DeltaCache(blocks=5, boundary=1).groups([2, 2]), r"at most the 4 blocks"),
        (lambda: FirstBlockCache(threshold=-1), r"FirstBlockCache: argument 'threshold' expected"),
        (lambda: FirstBlockCache(norm="max"), r"argument 'norm' expected 'l1' or 'l2'"),
        (lambda: FirstBlockCache().groups([1]), r"expected a module of at least 2 blocks, got 1"),
    ],
)
def test_config_errors(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_rings_and_weights_need_no_torch() -> None:
    code = (
        "import sys, numpy as np, pixleap as px\n"
        "ring = px.caching.FeatureRing(1)\n"
        "ring.push(0, np.zeros(3, np.float32)); ring.push(1, np.ones(3, np.float32))\n"
        "assert (ring.forecast(3) == 3).all()\n"
        "assert px.caching.Forecast().order == 2 and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
