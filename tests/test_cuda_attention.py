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

pytestmark = pytest.mark.cuda_emulated
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LENGTHS = [1, 3, 16, 17, 70, 150]  # each kernel of few and of many queries


@pytest.fixture(autouse=True, params=[8, 9])
def capability(request: pytest.FixtureRequest) -> Iterator[int]:
    """Of the emulated device: 9 takes warpgroup products where there are more than 64 queries."""
    _native.emulate_cuda("shuffle", 3, request.param)
    before = _native.emulated_launches()
    yield request.param
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
@pytest.mark.parametrize("length", [5, 40, 80])
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
    queries = [(1, 20, 3, 70, 16, 17, 64)[i % 7] if i < 30 else 1 + i % 2 for i in range(count)]
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dim", [40, 64, 72, 96, 128])
@pytest.mark.parametrize(
    ("queries", "keys"),
    [(64, 64), (65, 63), (127, 65), (128, 128), (129, 129), (193, 400), (66, 1), (70, 0)],
)
def test_blocks_and_tiles(
    queries: int, keys: int, dim: int, dtype: torch.dtype, capability: int
) -> None:
    """About the 64 and 128 queries of a block and the 64 and 128 keys of a tile; grouped heads."""
    q = normal(dtype, 1, 2, queries, dim)
    k, v = normal(dtype, 1, 1, keys, dim), normal(dtype, 1, 1, keys + 1, dim)[:, :, 1:]
    outs = []
    for order in ("forward", "reverse", "shuffle"):
        _native.emulate_cuda(order, 3, capability)
        outs.append(px.ops.attention(q, k, v, return_lse=True))
    want, want_lse = px.reference.attention(
        *(x.double().numpy() for x in (q, k, v)), return_lse=True
    )
    out, lse = outs[0]
    torch.testing.assert_close(out.double(), torch.from_numpy(want), atol=TOLERANCE[dtype], rtol=0)
    torch.testing.assert_close(lse.double(), torch.from_numpy(want_lse), atol=2e-3, rtol=0)
    assert all(
        torch.equal(bits(a), bits(b)) for o in outs[1:] for a, b in zip(o, outs[0], strict=True)
    )


@pytest.mark.parametrize("dim", [64, 100])
@pytest.mark.parametrize("mask", ["causal", "lengths", "block_causal", "window", "tensor"])
def test_masks_of_many_queries(mask: str, dim: int) -> None:
    """Across several tiles of keys: a prefix before causal queries, scales, rolled windows."""
    rng = np.random.default_rng(8)
    queries, keys = {"causal": (150, 290), "block_causal": (141, 141), "window": (288, 288)}.get(
        mask, (100, 200)
    )
    q, k, v = (normal(torch.bfloat16, 2, 2, n, dim) for n in (queries, keys, keys + 1))
    masks: dict[str, Any] = {
        "causal": lambda: px.masks.causal(),
        "lengths": lambda: px.masks.key_lengths(np.array([1, 131])),
        "block_causal": lambda: px.masks.block_causal([1, 4, 16, 20, 100]),
        "window": lambda: px.masks.window(24, 12, 12, 3),
        "tensor": lambda: rng.standard_normal((1, 2, queries, keys)).astype(np.float32),
    }
    chosen = masks[mask]()
    given = torch.from_numpy(chosen) if isinstance(chosen, np.ndarray) else chosen
    out = px.ops.attention(q, k, v[:, :, :keys], mask=given)
    want = reference(q, k, v[:, :, :keys], mask=chosen)
    torch.testing.assert_close(out.double(), want, atol=2e-2, rtol=0)


def test_many_queries_have_the_bits_that_they_have_alone(capability: int) -> None:
    """Of a head, whatever batch and heads stand beside it."""
    q, k, v = (normal(torch.bfloat16, 3, 4, n, 64) for n in (140, 200, 201))
    v = v[:, :, :200]
    out = px.ops.attention(q, k, v)
    before = _native.emulated_launches()
    alone = px.ops.attention(q[1:2, 2:3], k[1:2, 2:3], v[1:2, 2:3])
    assert _native.emulated_launches() == before + 1
    assert torch.equal(bits(out[1:2, 2:3]), bits(alone))
