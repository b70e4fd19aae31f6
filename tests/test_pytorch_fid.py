"""The drop-in for pytorch-fid and clean-fid: their published expectations, under any scipy."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import pixleap as px
from pixleap.integrations import pytorch_fid as drop_in

scipy_linalg = pytest.importorskip("scipy.linalg")
SQRTM = scipy_linalg.sqrtm
NAMES = ["pytorch_fid.fid_score.calculate_frechet_distance", "cleanfid.fid.frechet_distance"]


def their_distance(mu1: Any, sigma1: Any, mu2: Any, sigma2: Any, eps: float = 1e-6) -> float:
    """The formula as both packages compute it, with the call that scipy 1.18 refuses."""
    product, _ = scipy_linalg.sqrtm(sigma1 @ sigma2, disp=False)
    return float(
        ((mu1 - mu2) ** 2).sum() + np.trace(sigma1) + np.trace(sigma2) - 2 * np.trace(product).real
    )


def old_sqrtm(a: np.ndarray, disp: bool = True, blocksize: int = 64) -> Any:
    """scipy's sqrtm up to 1.17."""
    root = SQRTM(a)
    return root if disp else (root, float(np.linalg.norm(root @ root - a)))


def new_sqrtm(a: np.ndarray) -> np.ndarray:
    """scipy's sqrtm from 1.18 on: no `disp`, no `blocksize`."""
    return SQRTM(a)


def gaussian(d: int, seed: int, samples: int = 400) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((samples, d)) @ rng.standard_normal((d, d)) / d**0.5 + rng.random(d)
    return x.mean(axis=0), np.cov(x, rowvar=False)


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, types.ModuleType]]:
    """Stand-ins for both packages, shaped like them."""
    modules = {}
    for name in NAMES:
        path, _, function = name.rpartition(".")
        package = types.ModuleType(path.partition(".")[0])
        package.__path__ = []
        package.__spec__ = importlib.machinery.ModuleSpec(package.__name__, None, is_package=True)
        module = types.ModuleType(path)
        setattr(module, function, their_distance)
        monkeypatch.setitem(sys.modules, package.__name__, package)
        monkeypatch.setitem(sys.modules, path, module)
        modules[name] = module
    yield modules
    drop_in.unpatch()


def call(modules: dict[str, types.ModuleType], name: str) -> Callable[..., float]:
    return getattr(modules[name], name.rpartition(".")[2])


# ---- what pytorch-fid's own tests expect (tests/test_fid_score.py)


@pytest.mark.parametrize("d", [1, 2, 64, 300])
def test_equal_covariances_leave_the_distance_of_the_means(d: int) -> None:
    """With sigma = I, mu1 = 0, mu2 = 1 they expect sum((mu1 - mu2)^2) to the bit."""
    zeros, ones, eye = np.zeros(d), np.ones(d), np.eye(d)
    assert drop_in.calculate_frechet_distance(zeros, eye, ones, eye) == pytest.approx(d, rel=1e-13)


def test_statistics_of_black_grey_and_white_images() -> None:
    """Their folder of three images has mean 0.5 and covariance 0.25 everywhere: rank 1."""
    features = np.array([[0.0], [127 / 255], [1.0]]).repeat(3, axis=1)
    mu, sigma = features.mean(axis=0), np.cov(features, rowvar=False)
    np.testing.assert_allclose(mu, 0.5, atol=1e-3)
    np.testing.assert_allclose(sigma, 0.25, atol=1e-5)
    assert drop_in.calculate_frechet_distance(mu, sigma, mu, sigma) == pytest.approx(0, abs=1e-12)
    assert drop_in.calculate_frechet_distance(mu, sigma, mu + 1, 4 * sigma) == pytest.approx(
        3 + np.trace(sigma), rel=1e-12
    )


# ---- agreement with scipy's square root


@pytest.mark.parametrize("sqrtm", [old_sqrtm, new_sqrtm])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_agrees_with_the_square_root(
    sqrtm: Callable[..., Any], dtype: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = gaussian(24, 1), gaussian(24, 2)
    monkeypatch.setattr(scipy_linalg, "sqrtm", old_sqrtm)
    expected = their_distance(*a, *b)
    monkeypatch.setattr(scipy_linalg, "sqrtm", sqrtm)
    statistics = [x.astype(dtype) for x in (*a, *b)]
    value = drop_in.calculate_frechet_distance(*statistics)
    assert value == pytest.approx(expected, rel=1e-10 if dtype is np.float64 else 1e-5)


def test_rounding_of_float32_statistics_is_not_an_error() -> None:
    mu, sigma = (x.astype(np.float32) for x in gaussian(16, 3))
    tilted = sigma + 3e-7 * np.triu(np.ones((16, 16), np.float32)) * sigma.max()
    value = drop_in.calculate_frechet_distance(mu, tilted, mu, sigma)
    assert abs(value) < 1e-3 * np.trace(sigma)
    with pytest.raises(ValueError, match=r"sigma1.*symmetric"):
        drop_in.calculate_frechet_distance(mu, np.triu(sigma), mu, sigma)


def test_bad_shapes() -> None:
    mu, sigma = gaussian(4, 0)
    with pytest.raises(ValueError, match="frechet_distance"):
        drop_in.calculate_frechet_distance(mu, sigma, mu[:3], sigma)
    with pytest.raises(ValueError, match="sigma2"):
        drop_in.calculate_frechet_distance(mu, sigma, mu, sigma[:, :3])


# ---- patch


def test_patch_repairs_both_under_a_scipy_without_disp(
    packages: dict[str, types.ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = gaussian(12, 4), gaussian(12, 5)
    monkeypatch.setattr(scipy_linalg, "sqrtm", old_sqrtm)
    expected = their_distance(*a, *b)
    monkeypatch.setattr(scipy_linalg, "sqrtm", new_sqrtm)
    for name in NAMES:
        with pytest.raises(TypeError, match="disp"):
            call(packages, name)(*a, *b)
    assert px.integrations.pytorch_fid.patch() == NAMES
    for name in NAMES:
        assert call(packages, name)(*a, *b) == pytest.approx(expected, rel=1e-10)
        assert call(packages, name)(*a, *b, eps=1e-3) == pytest.approx(expected, rel=1e-10)


def test_patch_is_idempotent_and_unpatch_restores(packages: dict[str, types.ModuleType]) -> None:
    assert drop_in.patch() == drop_in.patch() == NAMES
    assert call(packages, NAMES[0]) is not their_distance
    assert drop_in.unpatch() == NAMES
    assert all(call(packages, name) is their_distance for name in NAMES)
    assert drop_in.unpatch() == []


def test_patch_without_either_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert drop_in.patch() == []


def test_patch_tells_of_a_package_that_does_not_import(
    packages: dict[str, types.ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_fid.fid_score", None)
    with pytest.raises(ImportError, match="fid_score"):
        drop_in.patch()


@pytest.mark.parametrize("name", NAMES)
def test_the_real_package(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = pytest.importorskip(name.rpartition(".")[0])
    a, b = gaussian(24, 6), gaussian(24, 7)

    def distance() -> float:
        return getattr(module, name.rpartition(".")[2])(*a, *b)

    monkeypatch.setattr(scipy_linalg, "sqrtm", old_sqrtm)
    expected = distance()
    monkeypatch.setattr(scipy_linalg, "sqrtm", new_sqrtm)
    with pytest.raises(TypeError, match="disp"):
        distance()
    try:
        assert name in drop_in.patch()
        assert distance() == pytest.approx(expected, rel=1e-10)
    finally:
        drop_in.unpatch()
