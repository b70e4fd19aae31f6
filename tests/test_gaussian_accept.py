"""gaussian_accept gives the target's law, whatever the draft, and accepts as often as can be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import integrate, stats

import pixleap as px

N = 100_000
# target mean and deviation, draft mean and deviation
PAIRS = {
    "shifted": (0.5, 1.0, 0.0, 1.0),
    "equal": (0.3, 0.7, 0.3, 0.7),
    "near": (1e-3, 1.0, 0.0, 1.0),
    "far apart": (8.0, 1.0, -8.0, 1.0),
    "far apart, other deviation": (8.0, 1.0, -8.0, 0.5),
    "wider target": (0.0, 2.0, 0.5, 1.0),
    "narrower target": (0.2, 0.5, 0.0, 1.0),
    "slightly wider": (0.02, 1.1, 0.0, 1.0),
    "slightly narrower": (0.0, 0.9, 0.05, 1.0),
    "shifted, slightly wider": (0.3, 1.05, 0.0, 1.0),
    "much wider": (0.0, 50.0, 1.0, 1.0),
}


def drawn(pair: tuple[float, float, float, float], seed: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """N drafts of one channel, verified."""
    p_mean, p_std, q_mean, q_std = (np.float32(v) for v in pair)
    shape = (N // 100, 100, 1)
    x = q_mean + q_std * np.random.default_rng(seed).standard_normal(shape)
    full = [np.full(shape, v, np.float32) for v in (p_mean, p_std, q_mean, q_std)]
    out, accepted = px.ops.gaussian_accept(*full, x.astype(np.float32), seed=seed, offset=2)
    return out.reshape(-1), accepted.reshape(-1)


def laws(pair: tuple[float, float, float, float]) -> tuple[Any, Any, float]:
    """p, q and their total variation distance by quadrature."""
    p, q = stats.norm(pair[0], pair[1]), stats.norm(pair[2], pair[3])
    points = [m + k * s for m, s in (pair[:2], pair[2:]) for k in (-8, -4, -2, -1, 0, 1, 2, 4, 8)]
    low, high = min(points), max(points)
    total = integrate.quad(
        lambda y: abs(p.pdf(y) - q.pdf(y)), low, high, points=sorted(set(points)), limit=2000
    )[0]
    return p, q, 0.5 * total


@pytest.mark.parametrize("name", PAIRS)
def test_law_and_acceptance_rate(name: str) -> None:
    out, accepted = drawn(PAIRS[name])
    p, _, distance = laws(PAIRS[name])
    assert stats.kstest(out, p.cdf).pvalue > 0.01
    rate = stats.binomtest(int(accepted.sum()), N, float(np.clip(1 - distance, 0, 1)))
    assert rate.pvalue > 0.01


@pytest.mark.parametrize("name", [n for n in PAIRS if n not in ("equal", "near")])
def test_replacements_follow_the_residual(name: str) -> None:
    """Stricter than the law of all: what replaces a rejected x, by itself."""
    out, accepted = drawn(PAIRS[name], seed=8)
    p, q, _ = laws(PAIRS[name])
    replaced = out[~accepted].astype(np.float64)
    assert len(replaced) > 1000
    spread = max(PAIRS[name][1], PAIRS[name][3])
    grid = np.linspace(replaced.min() - spread, replaced.max() + spread, 100_001)
    sums = np.cumsum(np.maximum(p.pdf(grid) - q.pdf(grid), 0))
    law = lambda y: np.interp(y, grid, sums / sums[-1])  # noqa: E731
    assert stats.kstest(replaced, law).pvalue > 0.01


def many_channels(
    ratio: np.ndarray, shift: np.ndarray, count: int = 40_000, one_std: bool = False
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Drafts of D channels: out, accepted and the float32 parameters of a position."""
    rng = np.random.default_rng(12)
    channels = len(shift)
    q_std = np.full(channels, 0.7) if one_std else np.exp(0.4 * rng.standard_normal(channels))
    q_mean = rng.standard_normal(channels)
    one = [q_mean + shift * q_std, ratio * q_std, q_mean, q_std]
    one = [v.astype(np.float32) for v in one]
    shape = (count // 100, 100, channels)
    x = (one[2] + one[3] * rng.standard_normal(shape)).astype(np.float32)
    full = [np.ascontiguousarray(np.broadcast_to(v, shape)) for v in one]
    if one_std:  # as (B, L, 1)
        full[1], full[3] = full[1][..., :1], full[3][..., :1]
    out, accepted = px.ops.gaussian_accept(*full, x, seed=21)
    return out.reshape(-1, channels), accepted.reshape(-1), one


CHANNELS = {
    "equal": (np.ones(16), np.full(16, 0.2)),
    "wider": (np.full(16, 1.2), np.full(16, 0.1)),
    "narrower": (np.full(16, 0.8), np.full(16, 0.1)),
    "mixed": (np.exp(0.1 * np.sin(np.arange(16))), np.full(16, 0.05)),
}


@pytest.mark.parametrize("name", CHANNELS)
@pytest.mark.parametrize("one_std", [False, True])
def test_moments_of_sixteen_channels(name: str, one_std: bool) -> None:
    ratio, shift = CHANNELS[name]
    if one_std and name == "mixed":
        ratio = np.full(16, 1.07)
    out, accepted, (p_mean, p_std, _, _) = many_channels(ratio, shift, one_std=one_std)
    assert 0.01 < accepted.mean() < 0.99
    z = (out - p_mean.astype(np.float64)) / p_std
    n = len(z)
    assert (np.abs(z.mean(axis=0)) < 4.5 / np.sqrt(n)).all()
    covariance = z.T @ z / n
    bound = 4.5 * np.sqrt((1 + np.eye(16)) / n)
    assert (np.abs(covariance - np.eye(16)) < bound).all()
    assert stats.kstest((z**2).sum(axis=1), stats.chi2(16).cdf).pvalue > 0.01


@pytest.mark.parametrize("name", ["wider", "narrower", "mixed"])
def test_replacements_of_three_channels(name: str) -> None:
    """Against plain rejection from p, channel by channel and in log p / q."""
    ratio, shift = (v[:3] for v in CHANNELS[name])
    out, accepted, one = many_channels(ratio, shift, count=100_000)
    p_mean, p_std, q_mean, q_std = (v.astype(np.float64) for v in one)
    rng = np.random.default_rng(list(CHANNELS).index(name))
    y = p_mean + p_std * rng.standard_normal((200_000, 3))

    def log_ratio(y: np.ndarray) -> np.ndarray:
        return (stats.norm.logpdf(y, p_mean, p_std) - stats.norm.logpdf(y, q_mean, q_std)).sum(-1)

    expected = y[rng.random(len(y)) < -np.expm1(-log_ratio(y))]
    replaced = out[~accepted].astype(np.float64)
    assert min(len(expected), len(replaced)) > 2000
    for i in range(3):
        assert stats.ks_2samp(expected[:, i], replaced[:, i]).pvalue > 0.01
    assert stats.ks_2samp(log_ratio(expected), log_ratio(replaced)).pvalue > 0.01


def small(batch: int = 5, length: int = 6, channels: int = 7) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (batch, length, channels)
    p_mean, q_mean, x = rng.standard_normal((3, *shape)).astype(np.float32)
    p_std, q_std = np.exp(0.2 * rng.standard_normal((2, *shape))).astype(np.float32)
    return [p_mean, p_std, q_mean, q_std, x]


def test_a_sample_alone_equals_the_same_one_in_a_batch() -> None:
    arrays = small()
    whole = px.ops.gaussian_accept(*arrays, seed=4)
    assert 0 < whole[1].sum() < whole[1].size
    for b in range(5):
        part = px.ops.gaussian_accept(*(a[b : b + 1] for a in arrays), seed=4, first_sample=b)
        for got, want in zip(part, whole, strict=True):
            np.testing.assert_array_equal(got, want[b : b + 1])
    other = px.ops.gaussian_accept(*arrays, seed=5)
    assert (other[0] != whole[0]).any()


def test_in_place() -> None:
    *parameters, x = small()
    want, accepted = px.ops.gaussian_accept(*parameters, x, seed=4)
    px.ops.gaussian_accept(*parameters, x, seed=4, out=(x, accepted))
    np.testing.assert_array_equal(x, want)


def test_deviations_without_memory_of_their_own() -> None:
    """(B, L, 1), and views with stride 0."""
    p_mean, p_std, q_mean, q_std, x = small()
    narrow = [p_mean, p_std[..., :1], q_mean, q_std[..., :1], x]
    views = [np.broadcast_to(a, x.shape) for a in narrow]
    full = [np.ascontiguousarray(a) for a in views]
    want = px.ops.gaussian_accept(*full, seed=1)
    for arrays in (narrow, views):
        for got, expected in zip(px.ops.gaussian_accept(*arrays, seed=1), want, strict=True):
            np.testing.assert_array_equal(got, expected)


def test_nearly_equal_deviations_end() -> None:
    """One unit in the last place apart: rejections are rare, and each one is quick."""
    shape = (2000, 100, 1)
    one, next_one = np.ones(shape, np.float32), np.full(shape, np.nextafter(np.float32(1), 2))
    zeros = np.zeros(shape, np.float32)
    far = np.full(shape, 300.0, np.float32)  # p / q > 1 out here, < 1 within
    for p_std, q_std, x in ((next_one, one, zeros), (one, next_one, far)):
        _, accepted = px.ops.gaussian_accept(zeros, p_std, zeros, q_std, x, seed=3)
        assert accepted.mean() > 0.98


@pytest.mark.parametrize(
    ("argument", "value"),
    [(i, v) for i in range(5) for v in (np.nan, np.inf)] + [(1, -0.5), (3, -1e-30)],
)
def test_bad_numbers(argument: int, value: float) -> None:
    name = ("target_mean", "target_std", "draft_mean", "draft_std", "x")[argument]
    arrays = small()
    arrays[argument][3, 2, 6] = arrays[argument][4, 0, 0] = value
    message = f"gaussian_accept: argument '{name}' expected finite .* at sample 3, position 2$"
    with pytest.raises(ValueError, match=message):
        px.ops.gaussian_accept(*arrays, seed=0)
    with pytest.raises(ValueError, match="gaussian_accept"):
        px.reference.gaussian_accept(*arrays, seed=0)
