from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import pixleap as px

RNG = np.random.default_rng(3)


def tokens(length: int) -> np.ndarray:
    return RNG.standard_normal((2, length, 3, 4, 8)).astype(np.float32)


def test_appends_and_rolls_back() -> None:
    cache = px.KVCache(2, 4, 8, 10)
    assert isinstance(cache.keys, np.ndarray) and cache.keys.shape == (2, 4, 0, 8)
    first, second = tokens(3), tokens(4)
    q = cache.append(first)
    np.testing.assert_array_equal(q, first[:, :, 0].transpose(0, 2, 1, 3))
    cache.append(second)
    both = np.concatenate([first, second], axis=1)
    assert (cache.length, cache.max_length) == (7, 10)
    np.testing.assert_array_equal(cache.keys, both[:, :, 1].transpose(0, 2, 1, 3))
    np.testing.assert_array_equal(cache.values, both[:, :, 2].transpose(0, 2, 1, 3))
    cache.rollback(2)
    cache.append(second)
    assert cache.length == 6
    np.testing.assert_array_equal(cache.keys[:, :, 2:], second[:, :, 1].transpose(0, 2, 1, 3))
    cache.reset()
    assert cache.length == 0 and cache.values.shape == (2, 4, 0, 8)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_large_buffers_hold_what_small_ones_do(dtype: str) -> None:
    """From 4 MiB on, torch's buffers are of other memory."""
    qkv = torch.from_numpy(tokens(9))
    qkv = qkv.bfloat16() if dtype == "bfloat16" else qkv
    small, large = (px.KVCache(2, 4, 8, room, dtype, like=qkv) for room in (9, 70_000))
    a, b = (cache.attend(cache.append(qkv)) for cache in (small, large))
    assert torch.equal(a, b) and torch.equal(small.keys, large.keys)
    for buffer in large.buffers:
        assert buffer.dtype == small.buffers[0].dtype and buffer.shape == (2, 4, 70_000, 8)
        assert buffer.data_ptr() % 64 == 0
        buffer.fill_(1)  # memory of its own, writable to the end


def test_errors_change_nothing() -> None:
    cache = px.KVCache(2, 4, 8, 5)
    cache.append(tokens(3))
    keys = cache.keys.copy()
    with pytest.raises(ValueError, match=r"kv_append: argument 'position' expected 0 to 2"):
        cache.append(tokens(3))
    with pytest.raises(ValueError, match="kv_append"):
        cache.append(tokens(1)[:1])
    for length in (-1, 4):
        with pytest.raises(ValueError, match=f"'length' expected 0 to 3, got {length}"):
            cache.rollback(length)
    assert cache.length == 3
    np.testing.assert_array_equal(cache.keys, keys)
    with pytest.raises(ValueError, match="'max_length' expected a size >= 0, got -1"):
        px.KVCache(1, 1, 1, -1)


def test_token_by_token_equals_causal_attention() -> None:
    """In torch and bfloat16, with normalised queries; a step writes into a buffer of the caller."""
    qkv, scale = torch.from_numpy(tokens(9)).bfloat16(), torch.tensor([1.0, 2.0, 4.0, 8.0])
    whole, steps = (px.KVCache(2, 4, 8, 9, "bfloat16", like=qkv) for _ in range(2))
    q = whole.append(qkv, scale)
    expected = px.ops.attention(q, whole.keys, whole.values, mask=px.masks.causal())
    buffer = torch.empty(2, 4, 1, 8, dtype=torch.bfloat16)
    for i in range(9):
        q = steps.append(qkv[:, i : i + 1], q_scale=scale, out=buffer)
        assert q is buffer
        got = px.ops.attention(q, steps.keys, steps.values)
        torch.testing.assert_close(got, expected[:, :, i : i + 1])
    assert torch.equal(steps.keys, whole.keys)


HEADS, WIDTH = 4, 8
OPTIONS: dict[str, Any] = {"norm": "rms", "rope": px.rope.tables(40, WIDTH)}


def batch_of(samples: int, length: int, kind: str = "numpy") -> Any:
    x = RNG.standard_normal((samples, length, 3, HEADS, WIDTH)).astype(np.float32)
    return x if kind == "numpy" else torch.from_numpy(x)


def new_cache(samples: int, room: int, like: Any = None, dtype: str = "float32") -> px.KVCache:
    return px.KVCache(samples, HEADS, WIDTH, room, dtype, like=like)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_step_is_append_then_attend(kind: str) -> None:
    first, second = batch_of(2, 5, kind), batch_of(2, 3, kind)
    one, two = (new_cache(2, 9, first) for _ in range(2))
    for qkv, mask in ((first, px.masks.block_causal((1, 4))), (second, px.masks.causal())):
        q = one.append(qkv, **OPTIONS)
        want = px.ops.attention(q, one.keys, one.values, mask=mask, scale=0.3)
        same = one.attend(q, mask, 0.3)
        out = qkv[:, :, 0].reshape(2, qkv.shape[1], -1) * 0
        assert two.step(qkv, mask=mask, scale=0.3, out=out, **OPTIONS) is out
        np.testing.assert_array_equal(want, same)
        got = out.reshape(2, qkv.shape[1], HEADS, WIDTH).swapaxes(1, 2)
        np.testing.assert_array_equal(got, want)
    assert two.length == 8 and np.array_equal(two.keys, one.keys)
    fresh = new_cache(2, 9, first).step(first, np.ones(HEADS, np.float32))
    assert fresh.shape == (2, 5, HEADS * WIDTH) and type(fresh) is type(first)


def test_step_writes_into_a_part_of_a_larger_array() -> None:
    qkv, wide = batch_of(2, 3), np.full((2, 6, 50), 7, np.float32)
    out = wide[:, 1:4, 5:37]
    want = new_cache(2, 3).step(qkv)
    assert new_cache(2, 3).step(qkv, out=out) is out
    np.testing.assert_array_equal(out, want)
    out[...] = 7
    assert (wide == 7).all()


def alone(rows: list[np.ndarray], mask: Any) -> np.ndarray:
    """The last call's output for one sample that takes these tokens (L, 3, H, D) call by call."""
    cache = new_cache(1, 40)
    for qkv in rows[:-1]:
        cache.append(qkv[None], **OPTIONS)
    return cache.step(rows[-1][None], mask=mask, **OPTIONS)[0]


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("mask", [None, px.masks.causal()])
def test_samples_of_different_lengths_are_as_each_alone(mask: Any, kind: str) -> None:
    first, second, third = (batch_of(3, n, kind) for n in (6, 3, 1))
    cache = new_cache(3, 12, first)
    cache.append(first, **OPTIONS)
    cache.rollback(np.array([2, 6, 0]))
    assert cache.length == 6 and cache.lengths.tolist() == [2, 6, 0]
    got = cache.step(second, mask=mask, **OPTIONS)
    assert cache.lengths.tolist() == [5, 9, 3] and cache.length == 9
    for i, held in enumerate((2, 6, 0)):
        rows = [np.asarray(x) for x in (first[i, :held], second[i])]
        np.testing.assert_array_equal(got[i], alone(rows, mask))
    cache.rollback([4, 9, 3] if kind == "numpy" else torch.tensor([4, 9, 3]))
    got = cache.step(third, mask=mask, out=got[:, :1] * 0, **OPTIONS)
    for i, (held, more) in enumerate(((2, 2), (6, 3), (0, 3))):
        rows = [np.asarray(x) for x in (first[i, :held], second[i, :more], third[i])]
        np.testing.assert_allclose(got[i], alone(rows, mask), rtol=1e-5, atol=1e-6)
    cache.rollback(np.array([1, 1, 1]))  # one length again: any mask
    blocks = px.masks.block_causal((1, 2))
    got = cache.step(second, mask=blocks, **OPTIONS)
    assert cache.length == 4 and cache.lengths.tolist() == [4, 4, 4]
    rows = [np.asarray(x) for x in (first[0, :1], second[0])]
    np.testing.assert_array_equal(got[0], alone(rows, blocks))


def test_options_of_samples_reach_samples_of_different_lengths() -> None:
    """Tables and positions per token, and buffers of the caller, strided."""
    first, second = batch_of(2, 4), batch_of(2, 3)
    cos, sin = px.rope.tables(40, WIDTH)
    at = np.array([[7, 1, 30], [2, 2, 9]])
    for rope, want in (
        ({"rope": (cos, sin), "rope_positions": at}, at),
        ({"rope": (cos, sin), "rope_positions": at[0]}, at[[0, 0]]),
        ({"rope": (cos[at], sin[at])}, at),
        ({"rope": (cos[at[1]][None], sin[at[1]][None])}, at[[1, 1]]),
    ):
        cache = new_cache(2, 9)
        cache.append(first)
        cache.rollback(np.array([1, 4]))
        out = np.full((HEADS, 2, 3, WIDTH), 9, np.float32).swapaxes(0, 1)
        assert cache.append(second, np.ones(HEADS, np.float32), out, **rope) is out
        for i, held in enumerate((1, 4)):
            one = new_cache(1, 9)
            q = one.append(
                second[i, None], np.ones(HEADS, np.float32), rope=(cos, sin), rope_positions=want[i]
            )
            np.testing.assert_array_equal(out[i], q[0])
            np.testing.assert_array_equal(cache.keys[i, :, held : held + 3], one.keys[0])
        attended = np.full((2, HEADS, 3, WIDTH), 9, np.float32)
        assert cache.attend(out, out=attended) is attended
        np.testing.assert_array_equal(attended, cache.attend(out))


def test_rollback_of_samples_changes_nothing_on_errors() -> None:
    cache = new_cache(3, 8)
    cache.append(batch_of(3, 5))
    for length, error, message in (
        (6, ValueError, "expected 0 to 5, got 6"),
        (-1, ValueError, "expected 0 to 5, got -1"),
        ([5, 6, 5], ValueError, "expected 0 to 5, got 6 for sample 1"),
        ([5, 5, -1], ValueError, "expected 0 to 5, got -1 for sample 2"),
        ([5, 5], ValueError, r"expected one or 3 integers, got shape \(2,\)"),
        ([[5, 5, 5]], ValueError, r"expected one or 3 integers, got shape \(1, 3\)"),
        (2.0, TypeError, "expected integers, got float64"),
        ([True, False, True], TypeError, "expected integers, got bool"),
    ):
        with pytest.raises(error, match="KVCache.rollback: argument 'length' " + message):
            cache.rollback(length)
        assert cache.lengths.tolist() == [5, 5, 5]
    cache.rollback([5, 2, 4])
    with pytest.raises(ValueError, match="expected 0 to 2, got 3 for sample 1"):
        cache.rollback(3)
    cache.rollback(2)
    assert cache.length == 2 and cache.lengths.tolist() == [2, 2, 2]


def test_overflow_of_one_sample_changes_nothing() -> None:
    cache = new_cache(3, 8)
    cache.append(batch_of(3, 7))
    cache.rollback([1, 7, 3])
    before = [x.copy() for x in cache.buffers]
    for call in (cache.append, cache.step):
        with pytest.raises(ValueError, match=r"'positions' expected 0 to 6.*got 7 for sequence 1"):
            call(batch_of(3, 2))
    with pytest.raises(ValueError, match="'qkv' expected 3 samples, as are held, got 2"):
        cache.append(batch_of(2, 1))
    with pytest.raises(ValueError, match="'q' expected 3 samples, as are held, got 2"):
        cache.attend(np.zeros((2, HEADS, 1, WIDTH), np.float32))
    with pytest.raises(ValueError, match=r"'mask' expected None or causal\(\).*got block_causal"):
        cache.step(batch_of(3, 1), mask=px.masks.block_causal((1,)))
    with pytest.raises(
        ValueError, match=r"KVCache.step: argument 'out' expected shape \(3, 1, 32\)"
    ):
        cache.step(batch_of(3, 1), out=np.zeros((3, 1, 31), np.float32))
    assert cache.lengths.tolist() == [1, 7, 3]
    for sample, held in enumerate((1, 7, 3)):
        for a, b in zip(cache.buffers, before, strict=True):
            np.testing.assert_array_equal(a[sample, :, :held], b[sample, :, :held])


def test_a_step_that_cannot_attend_takes_nothing() -> None:
    cache = new_cache(2, 8)
    cache.append(batch_of(2, 3))
    with pytest.raises(ValueError, match="attention: argument 'mask'"):
        cache.step(batch_of(2, 2), mask=px.masks.block_causal((1, 2)))
    assert cache.length == 3 and cache.keys.shape[2] == 3


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_compact_moves_a_survivor_once(dtype: str, ragged: bool) -> None:
    cache = new_cache(6, 7, dtype=dtype)
    cache.append(batch_of(6, 5))
    if ragged:
        cache.rollback([1, 5, 2, 3, 0, 4])
    arrays = [*cache.buffers, *cache.scales.values()]
    before, lengths = [x.copy() for x in arrays], cache.lengths
    order = cache.compact(np.array([False, True, False, True, False, True]))
    assert order.dtype == np.int64 and order.tolist() == [3, 1, 5] and cache.batch == 3
    assert cache.lengths.tolist() == lengths[order].tolist()
    assert cache.keys.shape == (3, HEADS, lengths[order].max(), WIDTH)
    for now, old in zip(arrays, before, strict=True):
        for new, sample in enumerate(order):
            held = slice(lengths[sample])
            np.testing.assert_array_equal(now[new, :, held], old[sample, :, held])
        np.testing.assert_array_equal(now[1], old[1])  # stayed, not even rewritten beyond
        np.testing.assert_array_equal(now[3:], old[3:])
    assert cache.compact([2, 1]).tolist() == [2, 1] and cache.batch == 2
    assert cache.lengths.tolist() == [lengths[5], lengths[1]]
    assert cache.compact([]).tolist() == [] and cache.batch == 0 and cache.length == 0
    cache.reset()
    assert cache.batch == 6 and cache.length == 0


def test_decoding_goes_on_after_compact() -> None:
    first, second = batch_of(4, 3), batch_of(4, 2)
    whole, cut = new_cache(4, 5), new_cache(4, 5)
    for cache in (whole, cut):
        cache.append(first, **OPTIONS)
    order = cut.compact([3, 1])
    want = whole.step(second, mask=px.masks.causal(), **OPTIONS)
    got = cut.step(second[order], mask=px.masks.causal(), **OPTIONS)
    np.testing.assert_array_equal(got, want[order])
    with pytest.raises(ValueError, match=r"'k_cache' expected shape \(4, 4, \*, 8\), got \(2, "):
        cut.append(second)


@pytest.mark.parametrize(
    "keep", [[True, False], [0, 3], [-1, 1], [1, 1], [[0, 1]], [0.0, 1.0], 1, np.zeros((0,), bool)]
)
def test_wrong_survivors(keep: Any) -> None:
    cache = new_cache(3, 5)
    cache.append(batch_of(3, 2))
    with pytest.raises(ValueError, match=r"'keep' expected \(3,\) of bool, or different integers"):
        cache.compact(keep)
    assert cache.batch == 3 and cache.length == 2


@pytest.mark.parametrize("isa", px.available_isas())
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("ragged", [False, True])
def test_int8_end_to_end(ragged: bool, dtype: str, isa: str) -> None:
    """Attention over what an int8 cache holds: equal to that over the keys and values which its
    integers and scales stand for, and as close to the unrounded as the stated error lets it be."""
    px.set_isa(isa)
    first, second = (batch_of(3, n, "torch").to(getattr(torch, dtype)) for n in (7, 4))
    exact = new_cache(3, 12, first, dtype)
    rounded = new_cache(3, 12, first, "int8")
    assert rounded.keys.dtype == torch.int8 and rounded.scales["v_scale"].shape == (3, HEADS, 0)
    for cache in (exact, rounded):
        cache.append(first, **OPTIONS)
        if ragged:
            cache.rollback([3, 7, 0])
    before, count = rounded.lengths, second.shape[1]
    q = exact.append(second, **OPTIONS)
    out = rounded.step(second, mask=px.masks.causal(), **OPTIONS)
    got = out.view(3, count, HEADS, WIDTH).transpose(1, 2).double().numpy()
    assert rounded.length == exact.length
    for i, held in enumerate(before):
        end = int(held) + count
        parts = [
            x[i : i + 1, :, :end].double().numpy() * s[i : i + 1, :, :end, None].double().numpy()
            for x, s in zip((rounded.keys, rounded.values), rounded.scales.values(), strict=True)
        ]
        query = q[i : i + 1].double().numpy()
        want = px.reference.attention(query, *parts, mask=px.masks.causal())
        tolerance = {"float32": 2e-6, "bfloat16": 2e-2, "float16": 2e-3}[dtype]
        np.testing.assert_allclose(got[i : i + 1], want, atol=tolerance)
        true = [x[i : i + 1, :, :end].double().numpy() for x in (exact.keys, exact.values)]
        for a, b in zip(parts, true, strict=True):
            most = np.abs(b).max(-1, keepdims=True)
            slack = {"float32": 1e-5, "bfloat16": 2.0**-8, "float16": 2.0**-11}[dtype]
            assert (np.abs(a - b) <= most * (1 / 254 + slack)).all()
        unrounded = px.reference.attention(query, *true, mask=px.masks.causal())
        assert np.abs(got[i : i + 1] - unrounded).max() < 0.05


def test_int8_shows_what_is_not_finite() -> None:
    qkv = batch_of(2, 3)
    qkv[0, 1, 1, 2, 5] = np.inf  # a key
    qkv[1, 2, 2, 0, 3] = np.nan  # a value
    cache = new_cache(2, 3, dtype="int8")
    out = cache.step(qkv, mask=px.masks.causal()).reshape(2, 3, HEADS, WIDTH)
    wrong = np.zeros((2, 3, HEADS), bool)
    wrong[0, 1:, 2] = wrong[1, 2, 0] = True  # whoever sees them
    np.testing.assert_array_equal(np.isnan(out).all(-1), wrong)
    np.testing.assert_array_equal(np.isnan(out).any(-1), wrong)


def test_int8_cache_is_a_quarter() -> None:
    cache = px.KVCache(2, 4, 64, 100, "int8")
    cache.append(np.zeros((2, 100, 3, 4, 64), np.float32))
    held = [*cache.buffers, *cache.scales.values()]
    assert sum(x.nbytes for x in held) == 2 * 2 * 4 * 100 * (64 + 4)
