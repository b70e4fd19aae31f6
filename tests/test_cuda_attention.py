"""What the cases of the CUDA kernels of attention cannot say: hidden values that are NaN, rows that
are not aligned, bits that depend on a sequence alone. In a build that emulates CUDA."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import pixleap as px
from pixleap import _native

pytestmark = [
    pytest.mark.cuda_emulated,
    pytest.mark.skipif(
        not hasattr(_native, "emulate_cuda"),
        reason="this build does not emulate CUDA (cmake -DPIXLEAP_CUDA_EMULATE=ON)",
    ),
]
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LENGTHS = [1, 3, 16, 17, 70, 150]  # each kernel of few and of many queries


@pytest.fixture(autouse=True)
def emulated() -> Iterator[None]:
    _native.emulate_cuda("shuffle", 3)
    before = _native.emulated_launches()
    yield
    assert _native.emulated_launches() > before


def normal(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    numbers = np.random.default_rng(sum(shape)).standard_normal(shape)
    return torch.from_numpy(numbers.astype(np.float32)).to(dtype)


def reference(*arrays: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    return torch.from_numpy(px.reference.attention(*(x.double().numpy() for x in arrays), **kwargs))


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view(torch.uint8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", LENGTHS)
def test_hidden_keys_and_values_are_not_read(length: int, dtype: torch.dtype) -> None:
    q, k, v = (normal(dtype, 2, 1, n, 20) for n in (length, 160, 161))
    v = v[:, :, :160]
    seen = np.array([37, 155])
    for b in range(2):
        k[b, :, seen[b] :] = v[b, :, seen[b] :] = torch.nan
    mask = px.masks.key_lengths(seen)
    out = px.ops.attention(q, k, v, mask=mask)
    want = reference(q, k.nan_to_num(), v.nan_to_num(), mask=mask)
    torch.testing.assert_close(out.double(), want, atol=TOLERANCE[dtype], rtol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("dim", [20, 72, 250])
@pytest.mark.parametrize("length", LENGTHS)
def test_a_value_reaches_those_that_see_it(
    length: int, dim: int, bad: float, dtype: torch.dtype
) -> None:
    """Query i sees keys up to 9 + i; the value of the last one that it sees is not finite."""
    q, k, v = (normal(dtype, 1, 2, n, dim) for n in (length, length + 9, length + 9))
    clean = reference(q, k, v, mask=px.masks.causal())
    for i in {0, length // 2, length - 1}:
        broken = v.clone()
        broken[:, :, 9 + i, dim - 1] = bad
        out = px.ops.attention(q, k, broken, mask=px.masks.causal())
        torch.testing.assert_close(
            out[..., :-1].double(), clean[..., :-1], atol=TOLERANCE[dtype], rtol=0
        )
        last = out[..., -1].double()
        torch.testing.assert_close(
            last[:, :, :i], clean[:, :, :i, -1], atol=TOLERANCE[dtype], rtol=0
        )
        # Its weight may round to 0, and 0 times infinity is NaN.
        assert not last[:, :, i:].isfinite().any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [5, 40])
def test_rows_that_are_not_aligned(length: int, dtype: torch.dtype) -> None:
    arrays = [normal(dtype, 2, n, 3, 67) for n in (length, 90, 90)]
    q, k, v = (x[..., 1:65].transpose(1, 2) for x in arrays)
    out = torch.full((2, length, 3, 70), 7.0, dtype=dtype)
    px.ops.attention(q, k, v, out=out[..., 3:67].transpose(1, 2))
    want = px.ops.attention(*(x.contiguous() for x in (q, k, v)))
    assert torch.equal(bits(out[..., 3:67].transpose(1, 2)), bits(want))
    assert (out[..., :3] == 7).all() and (out[..., 67:] == 7).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sequence_has_the_bits_that_it_has_alone(dtype: torch.dtype) -> None:
    """More sequences than one launch takes, few and many queries among each other."""
    count = 150
    queries = [(1, 20, 3, 70, 16, 17)[i % 6] if i < 30 else 1 + i % 2 for i in range(count)]
    keys = [n + i % 50 for i, n in enumerate(queries)]
    offsets = np.concatenate([[0], np.cumsum(queries)])
    q = normal(dtype, int(offsets[-1]), 2, 24)
    k, v = normal(dtype, count, 1, 120, 24), normal(dtype, count, 1, 121, 24)[:, :, :120]
    lengths = np.array(keys)
    out = px.ops.attention_varlen(q, k, v, offsets, lengths)
    for i in range(count):
        rows = slice(int(offsets[i]), int(offsets[i + 1]))
        alone = px.ops.attention(
            q[None, rows].transpose(1, 2),
            k[i : i + 1, :, : keys[i]],
            v[i : i + 1, :, : keys[i]],
            mask=px.masks.causal(),
        )
        assert torch.equal(bits(out[rows]), bits(alone[0].transpose(0, 1))), i
