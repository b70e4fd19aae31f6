"""Metrics of sample sets against brute force in float64, closed forms and plain algorithms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import pixleap as px
from pixleap import metrics


def sets(n: int, m: int, d: int, shift: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n + 7 * m + 31 * d)
    x = rng.standard_normal((n, d)).astype(np.float32)
    return x, (1.1 * rng.standard_normal((m, d)) + shift).astype(np.float32)


def squared(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    a, b = x.astype(np.float64), y.astype(np.float64)
    return (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T


def mmd2(kernel: Callable[..., np.ndarray], x: np.ndarray, y: np.ndarray, unbiased: bool) -> float:
    total = -2 * kernel(x, y).mean()
    for v in (x, y):
        k = kernel(v, v)
        n = len(v)
        total += (k.sum() - np.trace(k)) / n / (n - 1) if unbiased else k.mean()
    return float(total)


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("parameters", [{}, {"degree": 2, "gamma": 0.1, "coef0": 0.5}])
def test_kernel_distance(unbiased: bool, parameters: dict[str, Any]) -> None:
    x, y = sets(230, 310, 48)
    degree, gamma, coef0 = (
        parameters.get(k, v) for k, v in (("degree", 3), ("gamma", 1 / 48), ("coef0", 1.0))
    )

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (gamma * a.astype(np.float64) @ b.astype(np.float64).T + coef0) ** degree

    value = metrics.kernel_distance(x, y, unbiased=unbiased, **parameters)
    assert value == pytest.approx(mmd2(kernel, x, y, unbiased), rel=1e-5, abs=1e-7)


def test_kernel_distance_over_subsets() -> None:
    """The draws of torch-fidelity: one legacy generator, x then y."""
    x, y = sets(150, 120, 20)
    random = np.random.RandomState(2020)
    values = []
    for _ in range(4):
        a, b = (v[random.choice(len(v), 60, replace=False)].astype(np.float64) for v in (x, y))
        values.append(mmd2(lambda s, t: (s @ t.T / 20 + 1) ** 3, a, b, True))
    mean, std = metrics.kernel_distance(x, y, subsets=4, subset_size=60, seed=2020)  # type: ignore[misc]
    assert mean == pytest.approx(np.mean(values), rel=1e-5)
    assert std == pytest.approx(np.std(values), rel=1e-4)


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("sigma", [10.0, 0.5])
def test_cmmd(unbiased: bool, sigma: float) -> None:
    """Of embeddings of unit norm, where nearly all of the official kernel is 1."""
    x, y = sets(300, 300, 768, 0.02)
    x, y = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, y))
    expected = 1000 * mmd2(lambda a, b: np.exp(-squared(a, b) / 2 / sigma**2), x, y, unbiased)
    value = metrics.cmmd(x, y, sigma, unbiased=unbiased)
    assert value == pytest.approx(expected, rel=2e-5, abs=3e-7 if sigma == 10 else 1e-4)


def differences(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.stack([((y.astype(np.float64) - row) ** 2).sum(1) for row in x.astype(np.float64)])


def brute_prdc(x: np.ndarray, y: np.ndarray, k: int) -> tuple[float, ...]:
    xx, yy, xy = differences(x, x), differences(y, y), differences(x, y)
    rx, ry = (np.sort(d, axis=1)[:, k] for d in (xx, yy))  # [:, 0] is the sample itself
    in_x = xy < rx[:, None]
    return (
        in_x.any(0).mean(),
        (xy < ry).any(1).mean(),
        in_x.sum(0).mean() / k,
        (xy.min(1) < rx).mean(),
    )


@pytest.mark.parametrize("k", [1, 5])
def test_prdc(k: int) -> None:
    x, y = sets(2000, 2000, 64, 0.15)
    assert metrics.prdc(x, y, k) == pytest.approx(brute_prdc(x, y, k), abs=1e-12)


def test_prdc_of_few_distinct_values() -> None:
    """Most distances tie with a radius, and many rows occur twice."""
    rng = np.random.default_rng(3)
    x = rng.integers(0, 3, (400, 6)).astype(np.float32)
    y = rng.integers(0, 3, (300, 6)).astype(np.float32)
    assert metrics.prdc(x, y, 3) == pytest.approx(brute_prdc(x, y, 3), abs=1e-12)


def test_prdc_far_from_zero() -> None:
    """A common offset of 1,000 standard deviations, and scales whose squares no float32 holds."""
    x, y = sets(200, 180, 16)
    expected = metrics.prdc(x + 1000, y + 1000)
    assert expected == pytest.approx(brute_prdc(x + 1000, y + 1000, 5), abs=1e-12)
    for scale in (1e-28, 1e28):
        a, b = (v * np.float32(scale) for v in (x, y))
        assert metrics.prdc(a, b) == pytest.approx(brute_prdc(a, b, 5), abs=1e-12)


def test_cmmd_of_large_and_small_features() -> None:
    """Whose squares no float32 holds."""
    x, y = sets(60, 70, 16)
    expected = metrics.cmmd(x, y, 5.0)
    for scale in (2.0**-90, 2.0**90):
        a, b = (v * np.float32(scale) for v in (x, y))
        assert metrics.cmmd(a, b, 5.0 * scale) == expected


def test_prdc_of_collapsed_samples() -> None:
    x, _ = sets(100, 1, 8)
    collapsed = np.repeat(x[:1], 60, axis=0)
    assert metrics.prdc(collapsed, collapsed) == (0.0, 0.0, 0.0, 0.0)
    assert metrics.prdc(x, collapsed).recall == 0.0
    assert metrics.prdc(x, collapsed).precision == 1.0


def test_duplicates_have_distance_zero() -> None:
    x, _ = sets(40, 1, 700, 5.0)
    distances, indices = px.ops.pairwise_topk(x, np.concatenate([x[::-1], x[:3]]), k=1)
    assert (distances == 0).all()
    np.testing.assert_array_equal(indices[:, 0], np.arange(40)[::-1])
    doubled = np.concatenate([x, x])
    assert (px.ops.pairwise_topk(doubled, k=1)[0] == 0).all()


def test_more_equal_distances_than_candidates() -> None:
    """A cluster whose distances float32 cannot tell apart: the row is searched in float64."""
    rng = np.random.default_rng(0)
    x = np.zeros((300, 4), np.float32)
    x[0, 0] = 1.0
    x[1:, 1:] = 1e-5 * rng.standard_normal((299, 3))
    distances, indices = px.ops.pairwise_topk(x, k=3)
    expected = px.reference.pairwise_topk(x, k=3)
    np.testing.assert_array_equal(indices[0], expected[1][0])
    np.testing.assert_allclose(distances, expected[0], rtol=1e-14)


def test_inception_score() -> None:
    classes = 7
    one_hot = np.tile(np.eye(classes), (4, 1))
    assert metrics.inception_score(one_hot, splits=4) == pytest.approx((classes, 0))
    assert metrics.inception_score(np.full((9, 4), 0.25), 3) == pytest.approx((1, 0))
    logits = np.random.default_rng(0).standard_normal((103, 10)) * 3
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    scores = [
        np.exp(np.mean([(r * np.log(r / part.mean(0))).sum() for r in part]))
        for part in np.split(p, [20, 41, 61, 82])
    ]
    expected = (np.mean(scores), np.std(scores))
    assert metrics.inception_score(p, 5) == pytest.approx(expected, rel=1e-12)
    assert metrics.inception_score(logits + 5, 5, logits=True) == pytest.approx(expected)
    assert metrics.inception_score(p, 5, seed=1) != pytest.approx(expected, rel=1e-6)


def test_fd_infinity_is_less_biased() -> None:
    rng = np.random.default_rng(5)
    d = 24
    scale = np.linspace(0.5, 2, d)
    reference = np.zeros(d), np.diag(scale**2)
    x = scale * rng.standard_normal((1500, d)) + 0.1
    truth = 0.01 * d
    plain = metrics.frechet_distance(x.mean(0), np.cov(x.T), *reference)
    extrapolated = metrics.fd_infinity(x, reference)
    assert abs(extrapolated - truth) < 0.4 * (plain - truth)
    y = (scale * rng.standard_normal((900, d))).astype(np.float32)
    statistics = y.astype(np.float64).mean(0), np.cov(y.astype(np.float64).T)
    assert metrics.fd_infinity(x, y) == pytest.approx(metrics.fd_infinity(x, statistics), rel=1e-9)


def lines(x: np.ndarray, y: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Squared W_2 per direction of sets of one size."""
    a, b = (np.sort(v.astype(np.float64) @ directions.T.astype(np.float64), 0) for v in (x, y))
    return ((a - b) ** 2).mean(0)


def test_mind() -> None:
    x, y = sets(170, 170, 40)
    rng = np.random.default_rng(1)
    directions = rng.standard_normal((90, 40)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    expected = 3 * 40 * lines(x, y, directions).mean()
    assert metrics.mind(x, y, directions=directions) == pytest.approx(expected, rel=1e-6)
    drawn = metrics.sliced_wasserstein(x, y, 500, seed=4)
    value = metrics.mind(x, y, 500, seed=4, directions="independent")
    assert value == pytest.approx(3 * 40 * drawn**2, rel=1e-6)
    assert metrics.mind(x, y, 500, seed=5) != metrics.mind(x, y, 500, seed=4)


@pytest.mark.parametrize("d", [64, 40])
def test_orthogonal_directions_estimate_the_same(d: int) -> None:
    """Also of features that live on a few axes, which signs alone would not mix."""
    x, y = sets(150, 150, d, 0.1)
    x[:, 3:], y[:, 3:] = 0, 0
    values = [metrics.mind(x, y, 200, seed=seed) for seed in range(100)]
    independent = [
        metrics.mind(x, y, 4000, seed=seed, directions="independent") for seed in range(40)
    ]
    error = np.sqrt(np.var(values) / 100 + np.var(independent) / 40)
    assert error < 5e-3 * np.mean(values)
    assert abs(np.mean(values) - np.mean(independent)) < 3 * error
    # A sample of as many independent directions is no closer.
    assert np.std(values) < 1.2 * np.std(independent) * np.sqrt(4000 / 200)


def test_orthogonal_directions_are_those_of_a_matrix() -> None:
    x, y = sets(100, 100, 32)
    flips = (px.ops.random_normal((3, 32), seed=9) < 0).astype(np.uint8)
    directions = px.ops.hadamard_projection(np.eye(32, dtype=np.float32), flips, count=20)
    np.testing.assert_allclose(directions @ directions.T, np.eye(20), atol=1e-6)
    expected = metrics.mind(x, y, directions=directions)
    assert metrics.mind(x, y, 20, seed=9) == pytest.approx(expected, rel=1e-6)
    # Beyond 32 directions comes another frame.
    frames = [metrics.mind(x, y, count, seed=9) for count in (32, 64)]
    assert frames[1] != pytest.approx(frames[0], rel=1e-4)


@pytest.mark.parametrize("p", [1, 2, 3.5])
def test_sliced_wasserstein_of_different_sizes(p: float) -> None:
    """Equal to repeating every sample up to a common size."""
    x, y = sets(12, 30, 5)
    repeated = metrics.sliced_wasserstein(np.repeat(x, 5, 0), np.repeat(y, 2, 0), 100, p)
    assert metrics.sliced_wasserstein(x, y, 100, p) == pytest.approx(repeated, rel=1e-6)
    assert metrics.sliced_wasserstein(y, x, 100, p) == pytest.approx(repeated, rel=1e-6)


def test_sliced_wasserstein_of_a_translation() -> None:
    """W_2^2 on a line is the squared shift along it, whose mean is |t|^2 / d: the control variate
    makes the estimate exact."""
    x, _ = sets(200, 1, 9)
    t = np.linspace(-1, 1, 9, dtype=np.float32)
    exact = float(np.sqrt((t @ t) / 9))
    assert metrics.sliced_wasserstein(x, x + t, 20, 2, "lower") == pytest.approx(exact, rel=1e-5)
    assert metrics.sliced_wasserstein(x, x + t, 20, 2) != pytest.approx(exact, rel=1e-3)


def test_control_variates_reduce_the_error() -> None:
    x, y = sets(400, 400, 12, 0.5)
    truth = metrics.sliced_wasserstein(x, y, 20000)

    def error(control: str | None) -> float:
        values = [metrics.sliced_wasserstein(x, y, 50, 2, control, seed) for seed in range(20)]
        return float(np.sqrt(np.mean((np.array(values) - truth) ** 2)))

    plain = error(None)
    for control in ("lower", "upper", "gaussian"):
        assert error(control) < 0.35 * plain


def test_vendi_score() -> None:
    rng = np.random.default_rng(0)
    assert metrics.vendi_score(np.ones((5, 3))) == pytest.approx(1)
    orthogonal = np.linalg.qr(rng.standard_normal((8, 8)))[0] * 3
    for q in (0, 0.5, 1, 2.0, np.inf):
        assert metrics.vendi_score(orthogonal, q) == pytest.approx(8, rel=1e-5)
    x = rng.standard_normal((30, 11)) * np.linspace(0.1, 1, 11)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    values = np.linalg.eigvalsh(unit @ unit.T / 30)[-11:]
    assert metrics.vendi_score(x) == pytest.approx(
        np.exp(-(values * np.log(values)).sum()), rel=1e-6
    )
    assert metrics.vendi_score(x, 2) == pytest.approx(1 / (values**2).sum(), rel=1e-6)
    # More features than samples: the other Gram matrix.
    wide = np.concatenate([unit, np.zeros((30, 40))], axis=1)
    assert metrics.vendi_score(wide) == pytest.approx(metrics.vendi_score(x), rel=1e-6)


def entropic_cost(cost: np.ndarray, reg: float) -> float:
    """Matrix scaling in the log domain until it stands still."""
    f, g = np.zeros(cost.shape[0]), np.zeros(cost.shape[1])
    for _ in range(20000):
        e = (g - cost) / reg
        f = -reg * (np.log(np.exp(e - e.max(1)[:, None]).mean(1)) + e.max(1))
        e = (f[:, None] - cost) / reg
        new = -reg * (np.log(np.exp(e - e.max(0)).mean(0)) + e.max(0))
        if np.abs(new - g).max() < 1e-11 * reg:
            break
        g = new
    return float(f.mean() + g.mean())


@pytest.mark.parametrize("reg", [20.0, 2.0, 0.4])
def test_sinkhorn_divergence(reg: float) -> None:
    x, y = sets(40, 55, 6, 0.6)
    expected = entropic_cost(differences(x, y), reg)
    expected -= 0.5 * (
        entropic_cost(differences(x, x), reg) + entropic_cost(differences(y, y), reg)
    )
    assert metrics.sinkhorn_divergence(x, y, reg) == pytest.approx(expected, rel=1e-6)


def test_sinkhorn_divergence_of_points() -> None:
    x, y = sets(30, 1, 4)
    assert metrics.sinkhorn_divergence(x[:1], y, 0.1) == pytest.approx(squared(x[:1], y)[0, 0])
    assert metrics.sinkhorn_divergence(x, x, 0.5) == pytest.approx(0, abs=1e-9)


def test_newton_steps_replace_thousands_of_scalings() -> None:
    x, y = sets(60, 60, 3)
    with pytest.raises(ValueError, match="'max_iterations' expected enough to converge"):
        metrics.sinkhorn_divergence(x, y, 0.02, warm_up=300, max_iterations=300)
    metrics.sinkhorn_divergence(x, y, 0.02, max_iterations=300)


ALL: dict[str, Callable[[Any, Any], Any]] = {
    "kernel_distance": metrics.kernel_distance,
    "cmmd": metrics.cmmd,
    "prdc": metrics.prdc,
    "fd_infinity": lambda x, y: metrics.fd_infinity(x, y, points=3),
    "sliced_wasserstein": lambda x, y: metrics.sliced_wasserstein(x, y, 70, 2, "gaussian"),
    "mind": lambda x, y: metrics.mind(x, y, 70),
    "sinkhorn_divergence": lambda x, y: metrics.sinkhorn_divergence(x, y, 5.0),
    "vendi_score": lambda x, y: metrics.vendi_score(x),
    "inception_score": lambda x, y: metrics.inception_score(x, 2, logits=True),
}


@pytest.mark.parametrize("name", ALL)
def test_same_value_for_any_threads_and_array(name: str) -> None:
    threads = px.num_threads()
    x, y = sets(90, 70, 33)
    try:
        px.set_num_threads(1)
        expected = ALL[name](x, y)
        px.set_num_threads(3)
        assert ALL[name](x, y) == expected
    finally:
        px.set_num_threads(threads)
    assert ALL[name](torch.from_numpy(x).requires_grad_(), torch.from_numpy(y)) == expected
    for dtype in (torch.float16, torch.bfloat16):
        a, b = (torch.from_numpy(v).to(dtype) for v in (x, y))
        assert ALL[name](a, b) == pytest.approx(ALL[name](a.float(), b.float()), rel=1e-5)
    wide = np.zeros((90, 40))
    wide[:, ::-1][:, :33] = x
    assert ALL[name](wide[:, ::-1][:, :33], y) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_bad_features(name: str) -> None:
    x, y = sets(20, 21, 5)
    for value in (np.nan, np.inf):
        bad = x.copy()
        bad[7, 2] = bad[11, 0] = value
        with pytest.raises(ValueError, match=f"{name}: argument 'x' .* NaN or infinity in row 7$"):
            ALL[name](bad, y)
    with pytest.raises(ValueError, match=rf"{name}: argument 'x' expected features of shape \(N"):
        ALL[name](x[0], y)
    with pytest.raises(ValueError, match=f"{name}: argument 'x' expected at least"):
        ALL[name](x[:0], y)
    with pytest.raises(TypeError, match=f"{name}: argument 'x' expected numbers, got dtype"):
        ALL[name](["a", "b"], y)
    if name not in ("vendi_score", "inception_score"):
        with pytest.raises(ValueError, match=f"{name}: argument 'y' expected 5 features as 'x'"):
            ALL[name](x, y[:, :4])
        with pytest.raises(ValueError, match=f"{name}: argument 'y' .* in row 20$"):
            ALL[name](x, np.where(np.arange(21)[:, None] == 20, np.inf, y))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: metrics.kernel_distance(x[:1], x), "'x' expected at least 2 samples"),
        (lambda x: metrics.kernel_distance(x, x, degree=0), "'degree' expected an integer >= 1"),
        (lambda x: metrics.kernel_distance(x, x, gamma=-1.0), "'gamma' expected a finite"),
        (lambda x: metrics.kernel_distance(x, x, subsets=2), "'subset_size' .* <= 20, got 1000"),
        (lambda x: metrics.kernel_distance(x * 1e18, x), "so large that the kernel overflows"),
        (lambda x: metrics.cmmd(x, x, 0.0), "'sigma' expected a finite number > 0, got 0.0"),
        (lambda x: metrics.prdc(x[:5], x), "'x' expected at least 6 samples"),
        (lambda x: metrics.prdc(x, x, 65), "'nearest_k' expected an integer >= 1 and <= 64"),
        (lambda x: metrics.inception_score(x), "expected probabilities .pass logits=True"),
        (lambda x: metrics.inception_score(x, 21, logits=True), "'x' expected at least 21 samples"),
        (lambda x: metrics.fd_infinity(x, x, points=1), "'points' expected an integer >= 2"),
        (lambda x: metrics.fd_infinity(x, (x[0],)), "'y' expected .mean, covariance., got 1"),
        (lambda x: metrics.sliced_wasserstein(x, x, p=0.5), "'p' expected a finite number >= 1"),
        (lambda x: metrics.sliced_wasserstein(x, x, 0), "'projections' expected an integer >= 1"),
        (
            lambda x: metrics.sliced_wasserstein(x, x, control_variate="mean"),
            "'control_variate' expected None, 'gaussian'",
        ),
        (lambda x: metrics.mind(x, x, directions="random"), "'directions' expected 'orthogonal', "),
        (lambda x: metrics.mind(x, x, directions=x * 9), "'directions' expected rows of norm 1"),
        (lambda x: metrics.mind(x, x, directions=x[0]), r"'directions' expected shape \(proj"),
        (lambda x: metrics.vendi_score(x, -1), "'q' expected a number >= 0, got -1"),
        (lambda x: metrics.vendi_score(x * (x == x[0])), "got norm 0 in row 1"),
        (lambda x: metrics.vendi_score(x * 9, normalize=False), "expected rows of norm 1 without"),
        (lambda x: metrics.sinkhorn_divergence(x, x, 0), "'reg' expected a finite number > 0"),
    ],
)
def test_bad_parameters(call: Callable[[np.ndarray], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(sets(20, 20, 5)[0])
