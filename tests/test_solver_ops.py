"""What the cases of dynamic_threshold, systematic_resample and moments cannot say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pixleap as px

ISAS = px.available_isas()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_threshold_against_diffusers_steps(dtype: torch.dtype, isa: str) -> None:
    px.set_isa(isa)
    x = (3 * torch.randn(3, 4, 40, 41, generator=torch.Generator().manual_seed(1))).to(dtype)
    flat = x.float().flatten(1)
    s = torch.quantile(flat.double().abs(), 0.995, dim=1).float().clamp(1, 5)[:, None]
    want = (torch.clamp(flat, -s, s) / s).reshape(x.shape).to(dtype)
    got, scale = px.ops.dynamic_threshold(x, max_value=5.0, return_scale=True)
    torch.testing.assert_close(scale, s[:, 0], rtol=2e-7, atol=0)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("isa", ISAS)
def test_quantiles_are_exact(isa: str) -> None:
    """Whatever way was taken: values that are whole numbers, so that nothing rounds."""
    px.set_isa(isa)
    rng = np.random.default_rng(5)
    for n in (1, 2, 511, 4096, 4097, 32768, 33000, 150001):
        values = rng.permutation(n).astype(np.float32) + 1
        x = (values * rng.choice([-1, 1], n)).astype(np.float32)[None]
        for ratio in (0.0, 0.25, 0.5, 0.995, 1.0):
            _, scale = px.ops.dynamic_threshold(
                x, ratio=ratio, min_value=0.5, max_value=1e9, return_scale=True
            )
            np.testing.assert_allclose(scale[0], ratio * (n - 1) + 1, rtol=1e-7)


def test_a_sample_alone_and_in_place() -> None:
    x = 2 * torch.randn(3, 5, 9001, generator=torch.Generator().manual_seed(2))
    whole = px.ops.dynamic_threshold(x, max_value=4.0)
    for b in range(3):
        assert torch.equal(px.ops.dynamic_threshold(x[b : b + 1], max_value=4.0)[0], whole[b])
    apart = torch.zeros(3, 2, 5, 9001)
    px.ops.dynamic_threshold(x, max_value=4.0, out=apart[:, 1])
    assert torch.equal(apart[:, 1], whole) and not apart[:, 0].any()
    assert px.ops.dynamic_threshold(x, max_value=4.0, out=x) is x
    assert torch.equal(x, whole)


def test_threshold_beyond_the_limit_of_torch() -> None:
    n = 2**24 + 5
    x = torch.arange(n, dtype=torch.float32).remainder_(1000.0)[None] / 100
    with pytest.raises(RuntimeError):
        torch.quantile(x.abs(), 0.5, dim=1)
    _, scale = px.ops.dynamic_threshold(x, ratio=0.5, max_value=100.0, out=x, return_scale=True)
    assert abs(scale.item() - 4.99) < 0.011


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"ratio": 1.5}, r"'ratio' expected a number in \[0, 1\], got 1.5"),
        ({"ratio": float("nan")}, r"'ratio' expected a number in \[0, 1\]"),
        ({"min_value": 0.0}, "'min_value' expected a finite float32 > 0, got 0"),
        ({"max_value": 0.5}, "'max_value' expected at least min_value, got 0.5"),
        ({"ratio": "high"}, "'ratio' expected a number, got str"),
    ],
)
def test_threshold_messages(kwargs: dict[str, float], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"dynamic_threshold: argument {message}"):
        px.ops.dynamic_threshold(np.ones((2, 3), np.float32), **kwargs)
    with pytest.raises(ValueError, match="'x' expected samples with elements"):
        px.ops.dynamic_threshold(np.ones((2, 0), np.float32))


def test_resampling_counts() -> None:
    """Every index comes up floor(K w) or ceil(K w) times, and K w times on average."""
    rng = np.random.default_rng(0)
    x = np.broadcast_to(rng.standard_normal(37), (4000, 37)).copy()
    w = np.exp(x[0]) / np.exp(x[0]).sum() * 37
    indices = px.ops.systematic_resample(x, seed=4)
    assert (np.diff(indices, axis=1) >= 0).all()
    counts = np.stack([(indices == i).sum(axis=1) for i in range(37)], axis=1)
    assert (counts >= np.floor(w)).all() and (counts <= np.ceil(w)).all()
    np.testing.assert_allclose(counts.mean(axis=0), w, atol=5 * 0.5 / np.sqrt(4000))


def test_resampling_a_part_of_a_batch() -> None:
    x = np.random.default_rng(1).standard_normal((40, 12)).astype(np.float32)
    whole = px.ops.systematic_resample(x, seed=2, offset=9)
    for a, b in ((0, 1), (7, 20), (39, 40)):
        part = px.ops.systematic_resample(x[a:b], seed=2, offset=9, first_row=a)
        np.testing.assert_array_equal(part, whole[a:b])


@pytest.mark.parametrize("row", [[np.nan, 0.0], [-np.inf, -np.inf], [np.inf, 0.0]])
def test_resampling_refuses_a_row_without_weights(row: list[float]) -> None:
    x = np.zeros((3000, 2))
    x[1234] = x[2345] = row
    message = "systematic_resample: argument 'log_weights' expected rows .*got row 1234 "
    with pytest.raises(ValueError, match=message):
        px.ops.systematic_resample(x, seed=0)
    with pytest.raises(ValueError, match="systematic_resample"):
        px.reference.systematic_resample(x, seed=0)
    with pytest.raises(ValueError, match="'first_row' expected a number >= 0, got -1"):
        px.ops.systematic_resample(np.zeros((2, 2)), seed=0, first_row=-1)


@pytest.mark.parametrize("isa", ISAS)
def test_moments_of_a_sample_alone(isa: str) -> None:
    px.set_isa(isa)
    for dtype in (torch.float32, torch.float64):
        a = torch.randn(3, 70001, dtype=dtype, generator=torch.Generator().manual_seed(3))
        b = a.flip(1)
        whole = px.ops.moments(a, b)
        for i in range(3):
            assert torch.equal(px.ops.moments(a[i : i + 1], b[i : i + 1])[0], whole[i])
        a[1, 69999] = torch.nan
        assert px.ops.moments(a, b)[1].isnan().sum() == 4  # all but sum b and sum b*b
        assert torch.equal(px.ops.moments(a, b)[[0, 2]], whole[[0, 2]])
