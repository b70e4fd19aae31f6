"""The Frechet distance over a zoo of covariances, against references in 50 digits or by factors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
import torch

import pixleap as px
from pixleap.metrics import frechet_distance, frechet_distance_from_features

D = 20
RNG = np.random.default_rng(3)


def rotation(d: int = D) -> np.ndarray:
    return np.linalg.qr(RNG.standard_normal((d, d)))[0]


def spectrum(values: np.ndarray, basis: np.ndarray | None = None) -> np.ndarray:
    """Symmetric matrix with these eigenvalues, rounded to float64 symmetrically."""
    q = rotation(len(values)) if basis is None else basis
    c = (q * values) @ q.T
    return (c + c.T) / 2


def sampled(n: int, d: int = D) -> np.ndarray:
    return np.cov(RNG.standard_normal((d, n)))


def scaled(scale: np.ndarray) -> np.ndarray:
    c = sampled(3 * D) * scale[:, None] * scale
    return (c + c.T) / 2


def log(decades: float) -> np.ndarray:
    return np.logspace(0, -decades, D)


BASIS = rotation()
STEP = np.where(np.arange(D) < D // 2, 1.0, 1e-9)
SAME = sampled(50)

# Positive definite pairs, whose exact value is computed in 50 digits.
DEFINITE: dict[str, tuple[np.ndarray, np.ndarray]] = {
    "well conditioned": (sampled(60), sampled(80)),
    "equal": (SAME, SAME.copy()),
    "nearly equal": (SAME, SAME + 1e-9 * np.eye(D)),
    "diagonal": (np.diag(log(3)), np.diag(log(2)[::-1].copy())),
    "identity": (np.eye(D), sampled(60)),
    "commuting": (spectrum(log(4), BASIS), spectrum(log(4)[::-1], BASIS)),
    "condition 1e4": (spectrum(log(4)), spectrum(log(4))),
    "condition 1e8": (spectrum(log(8)), spectrum(log(8))),
    "condition 1e10": (spectrum(log(10)), spectrum(log(10))),
    "condition 1e12": (spectrum(log(12)), spectrum(log(12))),
    "condition 1e12 against 1": (spectrum(log(12)), sampled(60)),
    "1 against condition 1e12": (sampled(60), spectrum(log(12))),
    "one small eigenvalue": (spectrum(np.r_[np.ones(D - 1), 1e-12]), sampled(60)),
    "one large eigenvalue": (spectrum(np.r_[1e12, np.ones(D - 1)]), sampled(60)),
    "two clusters": (spectrum(STEP), spectrum(STEP)),
    "two clusters, opposed": (spectrum(STEP, BASIS), spectrum(STEP[::-1], BASIS)),
    "scaled rows": (scaled(log(4)), scaled(log(4))),
    "scaled rows upwards": (scaled(log(4)[::-1]), scaled(log(4)[::-1])),
    "scaled rows opposed": (scaled(log(4)), scaled(log(4)[::-1])),
    "tiny": (1e-30 * sampled(60), 1e-30 * sampled(60)),
    "huge": (1e30 * sampled(60), 1e30 * sampled(60)),
    "tiny against huge": (1e-20 * sampled(60), 1e20 * sampled(60)),
    "one dimension": (np.array([[2.5]]), np.array([[1e-7]])),
    "two dimensions": (np.array([[2.0, 1.0], [1.0, 1.0]]), np.array([[1.0, -0.9], [-0.9, 1.0]])),
}


def exact_trace_sqrt(c1: np.ndarray, c2: np.ndarray) -> float:
    with mpmath.workdps(50):
        a, b = mpmath.matrix(c1.tolist()), mpmath.matrix(c2.tolist())
        factor = mpmath.cholesky(a)
        values = mpmath.eigsy(factor.T * b * factor, eigvals_only=True)
        return float(mpmath.fsum(mpmath.sqrt(v) for v in values))


def trace_sqrt(c1: np.ndarray, c2: np.ndarray, method: str = "auto") -> dict[str, Any]:
    zero = np.zeros(len(c1))
    distance, info = frechet_distance(zero, c1, zero, c2, method=method, return_info=True)
    assert isinstance(distance, float) and np.isfinite(distance)
    return info


@pytest.mark.parametrize("method", ["auto", "pivoted"])
@pytest.mark.parametrize("name", DEFINITE)
def test_definite_pairs_against_50_digits(name: str, method: str) -> None:
    c1, c2 = DEFINITE[name]
    exact = exact_trace_sqrt(c1, c2)
    info = trace_sqrt(c1, c2, method)
    # Of the distance, which cancels where both are nearly equal.
    traces = np.trace(c1) + np.trace(c2)
    assert 2 * abs(info["trace_sqrt"] - exact) <= 1e-10 * (traces - 2 * exact) + 1e-14 * traces


@pytest.mark.parametrize("method", ["cholesky", "pivoted", "eigh"])
@pytest.mark.parametrize("name", DEFINITE)
def test_the_estimate_bounds_the_error(name: str, method: str) -> None:
    c1, c2 = DEFINITE[name]
    info = trace_sqrt(c1, c2, method)
    error = 2 * abs(info["trace_sqrt"] - exact_trace_sqrt(c1, c2))
    assert error <= 4 * info["error"] + 1e-14 * info["trace_sqrt"]


def duplicates(n: int) -> np.ndarray:
    few = RNG.standard_normal((n, D))
    return np.concatenate([few] * 7)


# Samples whose covariances are singular: the exact value comes from the rows themselves.
DEFICIENT: dict[str, tuple[np.ndarray, np.ndarray]] = {
    "fewer rows than features": (RNG.standard_normal((8, D)), RNG.standard_normal((11, D))),
    "two rows": (RNG.standard_normal((2, D)), RNG.standard_normal((2, D))),
    "few against many": (RNG.standard_normal((5, D)), RNG.standard_normal((70, D))),
    "many against few": (RNG.standard_normal((70, D)), RNG.standard_normal((5, D))),
    "d rows": (RNG.standard_normal((D, D)), RNG.standard_normal((D, D))),
    "d + 1 rows": (RNG.standard_normal((D + 1, D)), RNG.standard_normal((D + 1, D))),
    "duplicated rows": (duplicates(6), duplicates(9)),
    "collapsed": (np.ones((30, D)), RNG.standard_normal((70, D))),
    "both collapsed": (np.ones((30, D)), np.zeros((30, D))),
    "a constant feature": (
        np.c_[RNG.standard_normal((70, D - 1)), np.ones(70)],
        RNG.standard_normal((70, D)),
    ),
    "a repeated feature": (
        np.repeat(RNG.standard_normal((70, D // 2)), 2, axis=1),
        RNG.standard_normal((70, D)),
    ),
    "orthogonal supports": (
        np.c_[RNG.standard_normal((70, D // 2)), np.zeros((70, D // 2))],
        np.c_[np.zeros((70, D // 2)), RNG.standard_normal((70, D // 2))],
    ),
    "large mean": (1e4 + RNG.standard_normal((70, D)), 1e4 + RNG.standard_normal((70, D))),
    "long tails": (RNG.standard_cauchy((70, D)), RNG.standard_cauchy((70, D))),
}


def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return x.mean(axis=0), np.cov(x.T)


def by_factors(x: np.ndarray, y: np.ndarray) -> float:
    """Singular values of the triangular factors of the centred rows."""
    mu1, mu2 = x.mean(axis=0), y.mean(axis=0)
    r1 = np.linalg.qr(x - mu1, mode="r") / np.sqrt(len(x) - 1)
    r2 = np.linalg.qr(y - mu2, mode="r") / np.sqrt(len(y) - 1)
    trace = np.linalg.svd(r1 @ r2.T, compute_uv=False).sum()
    return float(np.sum((mu1 - mu2) ** 2) + np.sum(r1**2) + np.sum(r2**2) - 2 * trace)


@pytest.mark.parametrize("name", DEFICIENT)
def test_singular_covariances(name: str) -> None:
    x, y = DEFICIENT[name]
    exact = by_factors(x, y)
    scale = np.trace(moments(x)[1]) + np.trace(moments(y)[1]) + abs(exact) + 1e-300
    from_statistics = frechet_distance(*moments(x), *moments(y))
    assert abs(from_statistics - exact) <= 1e-10 * scale
    assert abs(frechet_distance_from_features(x, y) - exact) <= 1e-12 * scale
    # NumPy's covariance leaves the rank visible
    info = frechet_distance(*moments(x), *moments(y), return_info=True)[1]
    assert info["rank1"] == np.linalg.matrix_rank(x - x.mean(axis=0), tol=1e-6)


def test_scipy_gives_the_same_where_it_works() -> None:
    c1, c2 = DEFINITE["well conditioned"]
    mu1, mu2 = RNG.standard_normal((2, D))
    compat = frechet_distance(mu1, c1, mu2, c2, method="compat")
    for method in ("auto", "cholesky", "pivoted", "eigh"):
        assert frechet_distance(mu1, c1, mu2, c2, method=method) == pytest.approx(compat, rel=1e-12)
    polar = frechet_distance(mu1, c1, mu2, c2, method="polar")
    assert polar == pytest.approx(compat, rel=1e-7)
    assert compat == pytest.approx(
        frechet_distance(*(torch.from_numpy(a) for a in (mu1, c1, mu2, c2))), rel=1e-12
    )


def test_compat_adds_to_the_diagonal_as_pytorch_fid_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where scipy finds no root of the product; and it refuses clearly complex roots."""
    from scipy import linalg

    given: list[np.ndarray] = []
    sqrtm = linalg.sqrtm

    def failing_once(product: np.ndarray) -> np.ndarray:
        given.append(product)
        return sqrtm(product) if len(given) > 1 else np.full_like(product, np.nan)

    monkeypatch.setattr(linalg, "sqrtm", failing_once)
    mu, c = np.zeros(2), np.diag([4.0, 0.0])
    compat = frechet_distance(mu, c, mu, np.eye(2), method="compat")
    np.testing.assert_allclose(given[1], np.diag([4.0, 1e-6]), rtol=1e-5)
    assert compat == pytest.approx(6 - 2 * (2 + 1e-3), rel=1e-5)
    monkeypatch.setattr(linalg, "sqrtm", lambda product: product + 1j)
    with pytest.raises(ValueError, match="imaginary component 1"):
        frechet_distance(mu, c, mu, np.eye(2), method="compat")


SHAPES = [(30, 41, 6), (9, 41, 12), (9, 11, 12), (41, 9, 12), (12, 12, 12), (14, 14, 12)]


@pytest.mark.parametrize(("n1", "n2", "d"), SHAPES)
def test_gradient_equals_finite_differences(n1: int, n2: int, d: int) -> None:
    rng = np.random.default_rng(n1 + n2 + d)
    x, y = rng.standard_normal((n1, d)), 0.5 + rng.standard_normal((n2, d)) * np.linspace(0.5, 2, d)
    tx, ty = (torch.from_numpy(v).requires_grad_() for v in (x, y))
    value = frechet_distance_from_features(tx, ty, differentiable=True)
    assert value.item() == pytest.approx(frechet_distance_from_features(x, y), rel=1e-12)
    (3 * value).backward()
    h = 1e-5
    for features, gradient, f in (
        (x, tx.grad, lambda v: frechet_distance_from_features(v, y)),
        (y, ty.grad, lambda v: frechet_distance_from_features(x, v)),
    ):
        for _ in range(4):
            direction = rng.standard_normal(features.shape)
            slope = (f(features + h * direction) - f(features - h * direction)) / (2 * h)
            assert float((gradient.numpy() * direction).sum()) == pytest.approx(
                3 * slope, rel=1e-6, abs=1e-8
            )


def test_gradient_of_float32_features_keeps_their_dtype() -> None:
    x = torch.randn(30, 5, requires_grad=True)
    frechet_distance_from_features(x, torch.randn(30, 5), differentiable=True).backward()
    assert x.grad is not None and x.grad.dtype == torch.float32


def statistics(**changes: Any) -> list[Any]:
    given = {"mu1": np.zeros(3), "sigma1": np.eye(3), "mu2": np.zeros(3), "sigma2": np.eye(3)}
    return list((given | changes).values())


NAN = np.where(np.eye(3) > 0, np.nan, 0.0)
BAD: list[tuple[list[Any], str]] = [
    (statistics(mu1=np.zeros((3, 1))), "'mu1' expected shape"),
    (statistics(mu2=np.zeros(4)), "'mu2' expected shape"),
    (statistics(mu1=np.array([0, np.inf, 0])), "'mu1' has NaN"),
    (statistics(sigma1=np.eye(4)), "'sigma1' expected shape"),
    (statistics(sigma2=NAN), "'sigma2' expected finite"),
    (statistics(sigma1=np.array([[1.0, 2, 0], [0, 1, 0], [0, 0, 1]])), "'sigma1' expected symm"),
    (statistics(sigma2=np.diag([1.0, -0.1, 1])), "'sigma2' expected positive"),
    (statistics(sigma1=np.diag([1.0, -0.1, 1])), "'sigma1' expected positive"),
    (statistics(sigma1=np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, 1]])), "'sigma1' expected pos"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_statistics(arguments: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        frechet_distance(*arguments)
    assert str(caught.value).startswith("frechet_distance: ")


def test_bad_method() -> None:
    with pytest.raises(ValueError, match="'method' expected one of auto"):
        frechet_distance(*statistics(), method="newton")
    with pytest.raises(ValueError, match="'sigma1' expected positive definite"):
        frechet_distance(*statistics(sigma1=np.diag([1.0, 0, 1])), method="cholesky")


FEATURES: list[tuple[Callable[[], Any], str]] = [
    (lambda: (np.zeros((1, 3)), np.zeros((5, 3))), "'x' expected .* shape"),
    (lambda: (np.zeros((5, 3)), np.zeros(3)), "'y' expected .* shape"),
    (lambda: (np.zeros((5, 3), np.int64), np.zeros((5, 3))), "'x' expected floating"),
    (lambda: (np.zeros((5, 3)), np.zeros((5, 4))), "'y' expected 3 features"),
    (lambda: (np.zeros((5, 3)), np.where(np.eye(5, 3) > 0, np.inf, 0)), "'y' has NaN .* row 0"),
]


@pytest.mark.parametrize(("make", "message"), FEATURES)
def test_bad_features(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        frechet_distance_from_features(*make())


def test_nuclear_norm_of_extreme_values() -> None:
    a, b = RNG.standard_normal((2, 70, 90))
    expected = px.reference.nuclear_norm(a)
    for scale in (1e-200, 1e-140, 1e140, 1e200):
        assert px.ops.nuclear_norm(scale * a) == pytest.approx(scale * expected, rel=1e-12)
    for wrong, where in ((np.nan, "a"), (np.inf, "b")):
        c = b.copy()
        c[3, 4] = wrong
        with pytest.raises(ValueError, match=f"nuclear_norm: argument '{where}' .* NaN or inf"):
            px.ops.nuclear_norm(*((c, b) if where == "a" else (b, c)))
    with pytest.raises(ValueError, match="overflow"):
        px.ops.nuclear_norm(1e200 * a, 1e200 * b)


def test_covariances_whose_product_overflows() -> None:
    c1, c2 = DEFINITE["well conditioned"]
    expected = px.ops.trace_sqrt_product(c1, c2)
    for scale in (1e-180, 1e180):
        trace = px.ops.trace_sqrt_product(scale * c1, scale * c2)
        assert trace == pytest.approx(scale * expected, rel=1e-12)


def test_matrix_sqrt_squares_back() -> None:
    batch = np.stack([sampled(60), spectrum(log(8)), sampled(7)])
    root = px.ops.matrix_sqrt(batch)
    np.testing.assert_array_equal(root, np.swapaxes(root, -1, -2))
    np.testing.assert_allclose(root @ root, batch, atol=1e-13)
    np.testing.assert_array_equal(px.ops.matrix_sqrt(batch[1]), root[1])  # alone as in the batch


def test_matrix_sqrt_in_place_and_refusals() -> None:
    a = sampled(60)
    expected = px.ops.matrix_sqrt(a)
    assert px.ops.matrix_sqrt(a, out=a) is a
    np.testing.assert_array_equal(a, expected)
    bad = np.stack([np.eye(3), np.diag([1.0, -1, 1])])
    with pytest.raises(ValueError, match=r"positive semi-definite .* matrix \(1\)"):
        px.ops.matrix_sqrt(bad)
