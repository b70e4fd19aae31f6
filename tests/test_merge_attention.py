"""Attention over parts of the keys, merged, is attention over all of them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

import pixleap as px
from pixleap.ops import attention, merge_attention


def random_qkv(batch: int, heads: int, queries: int, keys: int, dim: int) -> list[Tensor]:
    torch.manual_seed(3)
    sizes = (queries, keys, keys)
    return [torch.randn(batch, heads, n, dim) * 1.5 for n in sizes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk", [1, 7, 40, 64])
def test_chunks_of_keys_equal_the_whole(chunk: int, dtype: torch.dtype) -> None:
    q, k, v = (x.to(dtype) for x in random_qkv(2, 3, 11, 64, 40))
    want, want_lse = attention(q, k, v, return_lse=True)
    close = {"atol": 3e-6 if dtype == torch.float32 else 1e-2 * want.abs().max().item(), "rtol": 0}
    bounds = [*range(0, 64, chunk), 64]
    parts = [
        attention(q, k[:, :, a:b], v[:, :, a:b], return_lse=True)
        for a, b in itertools.pairwise(bounds)
    ]
    # All at once, up to 16; then gradually, the sums so far being one of the parts.
    if len(parts) <= 16:
        out, lse = merge_attention(*zip(*parts, strict=True), return_lse=True)
        torch.testing.assert_close(out, want, **close)
        torch.testing.assert_close(lse, want_lse, atol=5e-6, rtol=1e-6)
    sums, logs = parts[0][0].float(), parts[0][1]
    for part, log in parts[1:]:
        merge_attention([sums, part.float()], [logs, log], out=(sums, logs), return_lse=True)
    torch.testing.assert_close(sums, want.float(), **close)
    torch.testing.assert_close(logs, want_lse, atol=5e-6, rtol=1e-6)


def test_prefix_and_window() -> None:
    """A prefix that all see, and a causal window: attention with a mask, in two calls without one
    for the prefix."""
    prefix, length = 23, 70
    q, k, v = random_qkv(2, 2, length, prefix + length, 24)
    want = attention(q, k, v, mask=px.masks.causal())
    ours = [
        attention(q, k[:, :, :prefix], v[:, :, :prefix], return_lse=True),
        attention(q, k[:, :, prefix:], v[:, :, prefix:], mask=px.masks.causal(), return_lse=True),
    ]
    got = merge_attention(*zip(*ours, strict=True))
    torch.testing.assert_close(got, want, atol=3e-6, rtol=0)


def test_prefix_shared_by_many_samples() -> None:
    """The prompt's keys are kept once. The queries of all samples, laid out as a projection leaves
    them, (B, L, H * D), are the queries of one call."""
    batch, heads, length, prefix, own, dim = 5, 3, 4, 33, 9, 16
    torch.manual_seed(1)
    q = torch.randn(batch, length, heads * dim)
    prompt_k, prompt_v = torch.randn(2, 1, heads, prefix, dim).unbind()
    own_k, own_v = torch.randn(2, batch, heads, own, dim).unbind()

    def split(x: Tensor, samples: int) -> Tensor:
        return x.view(samples, -1, heads, dim).transpose(1, 2)

    out = torch.empty(2, batch, length, heads * dim)
    _, shared = attention(
        split(q, 1), prompt_k, prompt_v, return_lse=True,
        out=(split(out[0], 1), torch.empty(1, heads, batch * length)),
    )  # fmt: skip
    _, alone = attention(
        split(q, batch), own_k, own_v, return_lse=True,
        out=(split(out[1], batch), torch.empty(batch, heads, length)),
    )  # fmt: skip
    shared = shared.view(heads, batch, length).transpose(0, 1)
    parts = [split(x, batch) for x in out]
    got = merge_attention(parts, [shared, alone], out=parts[0])
    assert got.data_ptr() == out.data_ptr()
    keys, values = (
        torch.cat([p.expand(batch, -1, -1, -1), o], 2)
        for p, o in ((prompt_k, own_k), (prompt_v, own_v))
    )
    want = torch.nn.functional.scaled_dot_product_attention(split(q, batch), keys, values)
    torch.testing.assert_close(out[0], want.transpose(1, 2).flatten(2), atol=2e-6, rtol=0)


def test_what_saw_no_key_is_not_read() -> None:
    outs = [torch.full((1, 1, 2, 3), torch.nan), torch.ones(1, 1, 2, 3)]
    lses = [torch.full((1, 1, 2), -torch.inf), torch.tensor([[[0.5, -torch.inf]]])]
    out, lse = merge_attention(outs, lses, return_lse=True)
    assert torch.equal(out, torch.tensor([[[[1.0] * 3, [0.0] * 3]]]))
    assert torch.equal(lse, torch.tensor([[[0.5, -torch.inf]]]))
    outs[1].fill_(torch.nan)
    assert merge_attention(outs, lses)[0, 0, 0].isnan().all()  # a key seen: NaN shows
    for bad in (torch.nan, torch.inf):
        lses[0].fill_(bad)
        out, lse = merge_attention([torch.ones(1, 1, 2, 3)] * 2, lses, return_lse=True)
        assert out.isnan().all()


def test_one_rounding_and_the_same_bits_alone_or_in_a_batch() -> None:
    torch.manual_seed(0)
    outs = [torch.randn(3, 2, 50, 72).bfloat16() for _ in range(3)]
    lses = [torch.randn(3, 2, 50) for _ in range(3)]
    whole = merge_attention(outs, lses)
    wide = merge_attention(outs, lses, out=torch.empty(3, 2, 50, 72))
    assert torch.equal(whole, wide.bfloat16())
    one = merge_attention([x[1:2, :, 17:18] for x in outs], [x[1:2, :, 17:18] for x in lses])
    assert torch.equal(one, whole[1:2, :, 17:18])
    # Parts shared by the batch: strides of 0.
    shared = merge_attention([outs[0][:1].expand(3, -1, -1, -1), outs[1]], lses[:2])
    copied = merge_attention([outs[0][:1].repeat(3, 1, 1, 1), outs[1]], lses[:2])
    assert torch.equal(shared, copied)


def test_bad_input() -> None:
    x, log = np.zeros((1, 2, 3, 4), np.float32), np.zeros((1, 2, 3), np.float32)
    for args, kwargs, error, message in (
        (([], []), {}, ValueError, "'outs' expected 1 to 16 arrays, got 0"),
        (([x] * 17, [log] * 17), {}, ValueError, "'outs' expected 1 to 16 arrays, got 17"),
        (([x, x], [log]), {}, ValueError, "'lses' expected 2 arrays, as 'outs', got 1"),
        ((x, [log]), {}, TypeError, "'outs' expected a list of arrays, got ndarray"),
        (([x], log), {}, TypeError, "'lses' expected a list of arrays, got numpy.ndarray"),
        (([x], [log[..., None]]), {}, ValueError, r"'lses' expected shape \(1, 2, 3\)"),
        (([x], [log.astype("f8")]), {}, TypeError, "'lses' expected dtype float32, got float64"),
        (([x, x[:, :1]], [log, log]), {}, ValueError, r"'outs' expected shape \(1, 2, 3, 4\)"),
        (([x], [log]), {"out": (x, log), "return_lse": False}, TypeError, "'out'"),
    ):
        with pytest.raises(error, match=f"merge_attention: argument {message}"):
            merge_attention(*args, **kwargs)
    with pytest.raises(ValueError, match="'out' expected memory apart from 'outs'"):
        wide = np.zeros((1, 2, 4, 4), np.float32)
        merge_attention([wide[:, :, :3]], [log], out=wide[:, :, 1:])
