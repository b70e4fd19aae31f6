"""Masks, special values and errors of attention beyond the generated tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import pixleap as px

RNG = np.random.default_rng(5)


@pytest.fixture(params=px.available_isas(), autouse=True)
def isa(request: Any) -> Any:
    before = px.isa()
    px.set_isa(request.param)
    yield
    px.set_isa(before)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("length", [1, 3, 6, 41, 70])
def test_hidden_keys_and_values_are_not_read(length: int) -> None:
    """A cache behind its length is uninitialised memory: NaN there must not come through."""
    q, k, v = normal(2, 1, length, 20), normal(2, 1, 110, 20), normal(2, 1, 110, 20)
    seen = np.array([37, 105])
    for b in range(2):
        k[b, :, seen[b] :] = v[b, :, seen[b] :] = np.nan
    mask = px.masks.key_lengths(seen)
    out = px.ops.attention(q, k, v, mask=mask)
    clean = px.reference.attention(q, np.nan_to_num(k), np.nan_to_num(v), mask=mask)
    np.testing.assert_allclose(out, clean, atol=2e-6)
    np.testing.assert_array_equal(
        px.ops.attention(q, k, v, mask=px.masks.key_lengths(seen.tolist())), out
    )
    # The last value is for the last query alone.
    v = np.nan_to_num(v)
    v[:, :, -1] = np.nan
    out = px.ops.attention(q, np.nan_to_num(k), v, mask=px.masks.causal())
    assert np.isnan(out[:, :, -1]).all() and np.isfinite(out[:, :, :-1]).all()


@pytest.mark.parametrize("length", [2, 20])
def test_nan_reaches_its_rows_only(length: int) -> None:
    q, k, v = normal(1, 1, length, 8), normal(1, 1, 200, 8), normal(1, 1, 200, 8)
    q[0, 0, 1] = np.nan
    out, lse = px.ops.attention(q, k, v, return_lse=True)
    bad = np.arange(length) == 1
    np.testing.assert_array_equal(np.isnan(out).all(-1)[0, 0], bad)
    np.testing.assert_array_equal(np.isnan(out).any(-1)[0, 0], bad)
    np.testing.assert_array_equal(np.isnan(lse)[0, 0], bad)
    k[0, 0, 150] = np.nan
    assert np.isnan(px.ops.attention(q, k, v)).all()


@pytest.mark.parametrize("length", [2, 20])
def test_large_scores_and_an_infinite_mask(length: int) -> None:
    q, k, v = normal(1, 2, length, 8) * 1e4, normal(1, 2, 120, 8) * 1e4, normal(1, 2, 120, 8)
    np.testing.assert_allclose(
        px.ops.attention(q, k, v), px.reference.attention(q, k, v), atol=1e-5
    )
    mask = np.zeros((length, 120), np.float32)
    mask[0] = mask[1, :119] = -np.inf
    out, lse = px.ops.attention(q, k, v, mask=mask, return_lse=True)
    assert (out[:, :, 0] == 0).all() and (lse[:, :, 0] == -np.inf).all()
    np.testing.assert_allclose(out[:, :, 1], v[:, :, 119], rtol=1e-6)


def test_mask_dtypes_and_strides() -> None:
    q, k, v = (torch.from_numpy(normal(2, 3, 7, 16)).bfloat16() for _ in range(3))
    mask = torch.from_numpy(normal(3, 7, 7))
    want = px.reference.attention(*(x.double().numpy() for x in (q, k, v)), mask=mask.numpy())
    for view in (
        mask,
        mask.expand(2, 3, 7, 7),
        mask.transpose(1, 2).contiguous().transpose(1, 2),
        mask[None].repeat_interleave(2, -1)[..., ::2],
    ):
        got = px.ops.attention(q, k, v, mask=view)
        np.testing.assert_allclose(got.double().numpy(), want, atol=2e-2)
        np.testing.assert_array_equal(
            got.view(torch.int16), px.ops.attention(q, k, v, mask=mask).view(torch.int16)
        )


def test_a_sample_alone_gives_the_same_bits() -> None:
    q, k, v = normal(5, 2, 70, 24), normal(5, 2, 101, 24), normal(5, 2, 101, 24)
    together = px.ops.attention(q, k, v)
    for b in range(5):
        alone = px.ops.attention(*(x[b : b + 1] for x in (q, k, v)))
        np.testing.assert_array_equal(alone, together[b : b + 1])


@pytest.mark.parametrize("stride", [128, 1024])
def test_values_are_the_same_in_place_and_copied(stride: int) -> None:
    """Rows 512 or 4096 bytes apart share few cache sets and are copied where queries are many."""
    q, k, v = (normal(1, 40, n, 64) for n in (60, 110, 110))  # heads enough for whole tasks
    wide = np.full((1, 40, 110, stride), np.nan, np.float32)
    wide[..., 32:96] = v
    mask = px.masks.key_lengths([103])
    np.testing.assert_array_equal(
        px.ops.attention(q, k, wide[..., 32:96], mask=mask), px.ops.attention(q, k, v, mask=mask)
    )


@pytest.mark.parametrize("keys, causal", [(1, False), (101, False), (301, True)])
def test_bits_do_not_depend_on_how_queries_are_cut_into_tasks(keys: int, causal: bool) -> None:
    """With more threads a task takes fewer queries, and the last one may be left with few; causal
    ones share with their neighbours what all of them see."""
    q = normal(1, 4, 73, 64) if causal else normal(1, 1, 197, 64)
    k, v = normal(1, q.shape[1], keys, 64), normal(1, q.shape[1], keys, 64)
    mask = px.masks.causal() if causal else None
    before, results = px.num_threads(), []
    for threads in (1, 2, 3, 16):
        px.set_num_threads(threads)
        results.append(px.ops.attention(q, k, v, mask=mask))
    px.set_num_threads(before)
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)


@pytest.mark.parametrize("length", [1, 64])
def test_the_error_of_a_sum_does_not_grow_with_the_keys(length: int) -> None:
    """float32 errors of what float32 sums in blocks: torch's are 3.7e-7 at any number of keys."""
    for keys in (256, 4096):
        q, k, v = normal(1, 2, length, 64), normal(1, 2, keys, 64), normal(1, 2, keys, 64)
        exact = px.reference.attention(*(x.astype(np.float64) for x in (q, k, v)))
        error = px.ops.attention(q, k, v) - exact
        assert np.sqrt((error**2).mean() / (exact**2).mean()) < 4.5e-7


@pytest.mark.parametrize("scale", [0.0, -0.5, 1.3, 40.0])
@pytest.mark.parametrize("masked", [False, True])
def test_any_scale(scale: float, masked: bool) -> None:
    q, k, v = normal(1, 2, 21, 24), normal(1, 2, 130, 24), normal(1, 2, 130, 24)
    mask = normal(1, 2, 21, 130) if masked else None
    wide = [None if x is None else x.astype(np.float64) for x in (q, k, v, mask)]
    np.testing.assert_allclose(
        px.ops.attention(q, k, v, mask=mask, scale=scale),
        px.reference.attention(*wide[:3], mask=wide[3], scale=scale),
        atol=2e-5 * max(1.0, scale),
    )


def test_a_window_equals_roll_and_partition() -> None:
    q, k, v = (normal(2, 3, 48, 16) for _ in range(3))
    mask = px.masks.window(6, 8, (3, 4), (1, 3))
    order = np.roll(np.arange(48).reshape(6, 8), (-1, -3), (0, 1))
    out = px.ops.attention(q, k, v, mask=mask)
    for rows in np.split(order, 2):
        for tokens in (half.ravel() for half in np.split(rows, 2, axis=1)):
            alone = px.ops.attention(*(x[:, :, tokens] for x in (q, k, v)))
            np.testing.assert_array_equal(out[:, :, tokens], alone)
    q[:, :, order[0, 0]] = k[:, :, order[0, 0]] = v[:, :, order[0, 0]] = np.nan
    bad = np.isnan(px.ops.attention(q, k, v, mask=mask)).any((0, 1, 3))
    np.testing.assert_array_equal(np.flatnonzero(bad), np.sort(order[:3, :4].ravel()))


def test_identity_gives_the_values() -> None:
    q, k, v = (normal(2, 3, 9, 20) for _ in range(3))
    np.testing.assert_allclose(px.ops.attention(q, k, v, mask=px.masks.identity()), v, rtol=1e-6)


def test_output_in_the_place_of_the_queries() -> None:
    q, k, v = normal(2, 2, 130, 24), normal(2, 2, 30, 24), normal(2, 2, 30, 24)
    want = px.ops.attention(q, k, v)
    assert px.ops.attention(q, k, v, out=q) is q
    np.testing.assert_array_equal(q, want)


def test_compiled() -> None:
    def f(x: torch.Tensor) -> Any:
        a = px.ops.attention(x, x, x, mask=px.masks.causal())
        b, lse = px.ops.attention(a, x, x, mask=px.masks.block_causal((1, 4)), return_lse=True)
        c = px.ops.attention(b, x, x, mask=px.masks.key_lengths(x[:, 0, 0, 0].to(torch.int64)))
        return c * lse[..., None]

    x = torch.from_numpy(normal(2, 2, 5, 8)).abs() + 1
    torch._dynamo.reset()
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), f(x))


A = np.zeros((2, 4, 5, 8), np.float32)
BYTES = A.astype(np.int8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": A[0]}, r"'q' expected 4 dimensions"),
        ({"q": A[..., :0], "k": A[..., :0]}, r"'q' expected a head dimension of 1 to 256, got 0"),
        ({"k": A[:, :3], "v": A[:, :3]}, r"'k' expected a number of heads that divides 4, got 3"),
        ({"v": A[:, :, :3]}, r"'v' expected shape \(2, 4, 5, 8\) as 'k'"),
        ({"k": A[:, :, :4], "v": A[:, :, :4], "mask": px.masks.causal()}, r"'k' expected at least"),
        ({"mask": px.masks.block_causal([1, 3])}, r"'mask' expected blocks that sum to .*got 4"),
        ({"mask": px.masks.key_lengths([1, 2, 3])}, r"'visible' expected a shape broadcastable"),
        ({"mask": A[:, :, :4]}, r"'mask' expected a shape broadcastable to \(2, 4, 5, 5\)"),
        ({"mask": A[:, :, :, :5].astype("f8")}, r"'mask' expected dtype float32"),
        ({"mask": px.masks.window(2, 2, 2)}, r"'mask' expected a grid of .*\(5, 5\), got 4"),
        ({"mask": px.masks.window(1, 5, (1, 2))}, r"'mask' expected windows whose width divides 5"),
        ({"mask": px.masks.window(5, 1, (0, 1))}, r"'mask' expected windows whose height .*got 0"),
        ({"mask": px.masks.window(-1, -5, 1)}, r"'mask' expected a grid of as many tokens"),
        ({"mask": px.masks.neighbourhood(5, 1, (2, 1))}, r"'mask' expected .* odd height up to 5"),
        ({"mask": px.masks.neighbourhood(5, 1, 3)}, r"'mask' expected .* odd width up to 1, got 3"),
        ({"mask": px.masks.neighbourhood(5, 1, (3, 0))}, r"'mask' expected two numbers for a"),
        ({"mask": px.masks.window(1 << 32, 5, 1)}, r"'mask' expected numbers below 2\^31"),
        (
            {"k": A[:, :, :4], "v": A[:, :, :4], "mask": px.masks.identity()},
            r"'mask' expected a grid of .*\(5, 4\)",
        ),
        ({"k": BYTES}, r"'v' expected dtype int8 as 'k', got float32"),
        ({"k": BYTES, "v": BYTES}, r"'k_scale' expected an array beside int8"),
        ({"k_scale": A[..., 0]}, r"'k_scale' expected None beside keys of q's dtype, got an array"),
        (
            {
                "k": A.astype("i1"),
                "v": A.astype("i1"),
                "k_scale": A[..., 0],
                "v_scale": A[0, ..., 0],
            },
            r"'v_scale' expected shape \(2, 4, 5\), got \(4, 5\)",
        ),
        ({"mask": "causal"}, r"'mask' expected an array"),
        ({"out": A}, r"'out' expected memory apart from 'k'"),
        ({"out": A[:1].copy()}, r"'out' expected shape \(2, 4, 5, 8\), got"),
    ],
)
def test_errors(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"q": A, "k": A, "v": A}
    with pytest.raises((ValueError, TypeError), match="attention: argument " + message):
        px.ops.attention(**{**arguments, **change})


def test_block_causal_pass_over_a_prefix_is_the_tail_of_the_whole() -> None:
    q, k, v = (normal(2, 3, 30, 16) for _ in range(3))
    whole = px.ops.attention(q, k, v, mask=px.masks.block_causal((1, 4, 9, 16)))
    tail = px.ops.attention(q[:, :, 5:], k, v, mask=px.masks.block_causal((9, 16)))
    np.testing.assert_allclose(tail, whole[:, :, 5:], atol=1e-6)
    with pytest.raises(ValueError, match=r"'mask' expected blocks .*\(25, 24\), got 25"):
        px.ops.attention(
            q[:, :, 5:], k[:, :, :24], v[:, :, :24], mask=px.masks.block_causal((9, 16))
        )
