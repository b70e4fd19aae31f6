from __future__ import annotations

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
