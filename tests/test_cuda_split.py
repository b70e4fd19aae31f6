"""Few queries against many keys on CUDA: 256 keys at a time are summed apart, by one block or by a
block each, to the same bits. In a build that emulates CUDA."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import pixleap as px
from pixleap import _native

pytestmark = pytest.mark.cuda_emulated
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
DTYPES = list(TOLERANCE)


@pytest.fixture(autouse=True)
def emulated() -> Iterator[None]:
    _native.emulate_cuda("shuffle", 5)
    yield


def normal(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    numbers = np.random.default_rng(sum(shape)).standard_normal(shape)
    return torch.from_numpy(numbers.astype(np.float32)).to(dtype)


def cache(dtype: torch.dtype, integers: bool, *shape: int) -> tuple[list[torch.Tensor], Any]:
    """Keys and values, and the scales of integers."""
    if not integers:
        return [normal(dtype, *shape), normal(dtype, *shape[:-1], shape[-1] + 1)[..., :-1]], {}
    rng = np.random.default_rng(3)
    arrays = [torch.from_numpy(rng.integers(-127, 128, shape, np.int8)) for _ in range(2)]
    scales = [torch.from_numpy(rng.random(shape[:-1], np.float32) / 60) for _ in range(2)]
    return arrays, dict(zip(("k_scale", "v_scale"), scales, strict=True))


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def in_one_block(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any, scales: Any) -> Any:
    """The op without the scratch that lets it split keys."""
    out = torch.empty_like(q), torch.empty(q.shape[:3])
    visible = px.masks.visible_keys(mask, q, k) if isinstance(mask, px.masks.key_lengths) else None
    added = mask if isinstance(mask, torch.Tensor) else None
    causal = isinstance(mask, px.masks.causal)
    scale = 1 / math.sqrt(q.shape[3])
    _native.attention(
        out, [], q, k, v, scales.get("k_scale"), scales.get("v_scale"), added, visible, (), causal,
        scale,
    )  # fmt: skip
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("integers", [False, True], ids=["floats", "int8"])
@pytest.mark.parametrize("dim", [5, 64, 72, 250])
@pytest.mark.parametrize("masked", ["", "causal", "lengths", "array"])
def test_split_keys_give_the_bits_of_one_block(
    masked: str, dim: int, integers: bool, dtype: torch.dtype
) -> None:
    batch, heads, length, keys = 2, 2, 2, 600
    q = normal(dtype, batch, heads, length, dim)
    (k, v), scales = cache(dtype, integers, batch, 1, keys, dim)
    mask: Any = None
    if masked == "causal":
        mask = px.masks.causal()
    elif masked == "lengths":
        mask = px.masks.key_lengths(np.array([0, 511]))
        if not integers:
            k[1, :, 511:] = v[1, :, 511:] = torch.nan  # not read
    elif masked == "array":
        mask = normal(torch.float32, length, keys)
        mask[:, 256:512] = -math.inf  # a chunk of which nothing is seen
    before = _native.emulated_launches()
    out, lse = px.ops.attention(q, k, v, mask=mask, return_lse=True, **scales)
    assert _native.emulated_launches() == before + 2
    one, one_lse = in_one_block(q, k, v, mask, scales)
    assert _native.emulated_launches() == before + 3
    assert same_bits(out, one) and same_bits(lse, one_lse)
    arrays = [x.double().nan_to_num().numpy() for x in (q, k, v)]
    numbers = {name: x.numpy() for name, x in scales.items()}
    given = mask.double().numpy() if isinstance(mask, torch.Tensor) else mask
    want, want_lse = px.reference.attention(*arrays, mask=given, return_lse=True, **numbers)
    atol = TOLERANCE[dtype] * max(1.0, np.abs(want).max())
    np.testing.assert_allclose(out.double().numpy(), want, rtol=0, atol=atol)
    np.testing.assert_allclose(lse.numpy(), want_lse, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_do_not_depend_on_the_batch_or_on_hidden_keys(dtype: torch.dtype) -> None:
    q = normal(dtype, 3, 2, 1, 24)
    (k, v), _ = cache(dtype, False, 3, 2, 900, 24)
    lengths = np.array([900, 257, 40])
    out = px.ops.attention(q, k, v, mask=px.masks.key_lengths(lengths))
    flat = q.transpose(1, 2).reshape(3, 2, 24)
    packed = px.ops.attention_varlen(flat, k, v, np.arange(4), lengths)
    for b, n in enumerate(lengths):
        alone = px.ops.attention(q[b : b + 1], k[b : b + 1, :, :n], v[b : b + 1, :, :n])
        assert same_bits(out[b : b + 1], alone), b
        assert same_bits(packed[b], alone[0, :, 0]), b


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_are_not_aligned(dtype: torch.dtype) -> None:
    q = normal(dtype, 1, 2, 1, 64)
    (k, v), _ = cache(dtype, False, 1, 2, 300, 67)
    k, v = k[..., 1:65], v[..., 3:67]
    assert same_bits(px.ops.attention(q, k, v), px.ops.attention(q, k.contiguous(), v.contiguous()))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_not_finite_reaches_its_column(bad: float) -> None:
    q = normal(torch.float32, 1, 1, 1, 64)
    (k, v), _ = cache(torch.float32, False, 1, 1, 700, 64)
    clean = px.ops.attention(q, k, v)
    v[:, :, 300, 7] = bad
    out = px.ops.attention(q, k, v)
    rest = torch.arange(64) != 7
    assert same_bits(out[..., rest], clean[..., rest]) and not out[..., 7].isfinite().any()


def test_scratch_is_checked() -> None:
    q = normal(torch.float32, 1, 1, 1, 8)
    (k, v), _ = cache(torch.float32, False, 1, 1, 700, 8)
    rest = (q, k, v, None, None, None, None, (), False, 1.0)
    with pytest.raises(ValueError, match="attention: argument 'scratch' expected at least 16 num"):
        _native.attention([q.clone()], [torch.empty(15, dtype=torch.float64)], *rest)
    with pytest.raises(TypeError, match="attention: argument 'scratch' expected dtype float64"):
        _native.attention([q.clone()], [torch.empty(99)], *rest)
