"""Ragged batches: every sequence has the bits that it has alone, and wrong ones change nothing."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import numpy as np
import pytest
import torch

import pixleap as px

RNG = np.random.default_rng(11)
QUERIES = (3, 0, 70, 1, 9, 140, 5)
KEYS = (3, 4, 131, 100, 30, 150, 5)
SLOTS = (6, 0, 2, 2, 8, 1, 4)


@pytest.fixture(params=px.available_isas())
def isa(request: Any) -> Any:
    px.set_isa(request.param)


def integers(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def normal(*shape: int, dtype: str = "float32") -> torch.Tensor:
    x = torch.from_numpy(RNG.standard_normal(shape).astype(np.float32))
    return x.to(getattr(torch, dtype))


def offsets_of(lengths: tuple[int, ...]) -> np.ndarray:
    return integers(0, *accumulate(lengths))


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dim", [24, 100])
def test_attention_has_the_bits_of_each_alone(
    isa: None, dim: int, causal: bool, dtype: str
) -> None:
    offsets, mask = offsets_of(QUERIES), px.masks.causal() if causal else None
    q = normal(int(offsets[-1]), 4, dim, dtype=dtype)
    k, v = (normal(9, 2, 151, dim, dtype=dtype) for _ in range(2))
    results = []
    for threads in (1, 3):
        px.set_num_threads(threads)
        results.append(
            px.ops.attention_varlen(
                q, k, v, offsets, integers(*KEYS), slots=integers(*SLOTS), causal=causal
            )
        )
    assert same_bits(*results)
    for i, (slot, keys) in enumerate(zip(SLOTS, KEYS, strict=True)):
        rows, cache = slice(*offsets[i : i + 2]), (slice(slot, slot + 1), slice(None), slice(keys))
        alone = px.ops.attention(q[None, rows].transpose(1, 2), k[cache], v[cache], mask=mask)
        assert same_bits(results[0][rows], alone[0].transpose(0, 1)), i


def test_attention_reads_strides_and_no_hidden_keys(isa: None) -> None:
    """Caches as (T, S, H, D), rows apart, NaN behind the lengths, the output in q."""
    offsets, lengths = offsets_of(QUERIES[:4]), integers(*KEYS[:4])
    k, v = (normal(140, 4, 2, 16).permute(1, 2, 0, 3) for _ in range(2))
    for i, keys in enumerate(KEYS[:4]):
        k[i, :, keys:] = v[i, :, keys:] = torch.nan
    wide = normal(int(offsets[-1]) * 2, 5, 20)
    q = wide[::2, 1:3, 2:18]
    clean = [torch.nan_to_num(x) for x in (k, v)]
    want = px.ops.attention_varlen(q.contiguous(), *clean, offsets, lengths)
    rest = wide.clone()
    assert px.ops.attention_varlen(q, k, v, offsets, lengths, out=q) is q
    assert same_bits(q, want)
    rest[::2, 1:3, 2:18] = q
    assert same_bits(rest, wide)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("scaled", [True, False])
def test_append_has_the_bits_of_each_alone(isa: None, scaled: bool, dtype: str) -> None:
    offsets, positions = offsets_of(QUERIES), (7, 150, 2, 149, 0, 10, 1)
    qkv = normal(int(offsets[-1]), 3, 3, 43, dtype=dtype)
    scale = normal(3).abs() if scaled else None
    caches = [normal(9, 3, 150, 43, dtype=dtype) for _ in range(2)]
    want = [c.clone() for c in caches]
    px.set_num_threads(3)
    q, k, v = px.ops.kv_append_varlen(
        qkv, *caches, offsets, integers(*positions), slots=integers(*SLOTS), q_scale=scale
    )
    assert k is caches[0] and v is caches[1]
    for i, slot in enumerate(SLOTS):
        rows = slice(*offsets[i : i + 2])
        one = [c[slot : slot + 1] for c in want]
        alone, _, _ = px.ops.kv_append(qkv[None, rows], *one, positions[i], q_scale=scale)
        assert same_bits(q[rows], alone[0].transpose(0, 1)), i
    assert all(same_bits(a, b) for a, b in zip(caches, want, strict=True))


def test_append_with_strides(isa: None) -> None:
    wide = normal(5, 3, 2, 30)
    qkv, out = wide[..., 3:14], torch.full((2, 5, 20), 9.0)
    caches = [torch.zeros(8, 2, 2, 11).permute(1, 2, 0, 3) for _ in range(2)]
    px.ops.kv_append_varlen(
        qkv, *caches, integers(0, 2, 5), integers(6, 1), out=out[..., :11].transpose(0, 1)
    )
    assert same_bits(out[..., :11].transpose(0, 1), qkv[:, 0]) and (out[..., 11:] == 9).all()
    for i, cache in enumerate(caches):
        assert same_bits(cache[0, :, 6:].transpose(0, 1), qkv[:2, i + 1])
        assert same_bits(cache[1, :, 1:4].transpose(0, 1), qkv[2:, i + 1])
        cache[0, :, 6:] = cache[1, :, 1:4] = 0
        assert (cache == 0).all()


def test_on_the_buffers_of_a_cache() -> None:
    """Two sequences of different lengths, token by token, are causal attention over them whole."""
    cache = px.KVCache(3, 2, 8, 9)
    assert isinstance(cache.buffers[0], np.ndarray) and cache.buffers[1].shape == (3, 2, 9, 8)
    tokens = [normal(n, 3, 2, 8).numpy() for n in (9, 4)]
    held, slots = [0, 0], (2, 0)
    for step in range(9):
        going = [i for i in range(2) if step < len(tokens[i])]
        at = dict(slots=integers(*(slots[i] for i in going)))
        offsets = np.arange(len(going) + 1)
        rows = np.stack([tokens[i][step] for i in going])
        positions = integers(*(held[i] for i in going))
        q, k, v = px.ops.kv_append_varlen(rows, *cache.buffers, offsets, positions, **at)
        out = px.ops.attention_varlen(q, k, v, offsets, positions + 1, **at)
        for row, i in enumerate(going):
            held[i] += 1
            seen = tokens[i][: held[i]].transpose(1, 2, 0, 3)[:, None]
            want = px.ops.attention(seen[0][:, :, -1:], seen[1], seen[2])
            np.testing.assert_array_equal(out[row], want[0, :, 0])
    assert cache.length == 0  # the caller's


def test_compiled() -> None:
    offsets, lengths = torch.tensor([0, 2, 5]), torch.tensor([4, 3])

    def f(qkv: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = px.ops.kv_append_varlen(qkv, k, v, offsets, torch.tensor([2, 0]))
        return px.ops.attention_varlen(q, k, v, offsets, lengths) * 2

    arguments = normal(5, 3, 2, 8), normal(2, 2, 6, 8), normal(2, 2, 6, 8)
    torch._dynamo.reset()
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    mine = [x.clone() for x in arguments]
    torch.testing.assert_close(compiled(*mine), f(*arguments))
    assert torch.equal(mine[1], arguments[1])


Q, CACHE = torch.zeros(5, 4, 8), torch.zeros(3, 2, 6, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": Q[0]}, r"'q' expected 3 dimensions"),
        ({"q": Q[..., :0], "k": CACHE[..., :0]}, r"'q' expected a head dimension of 1 to 256"),
        ({"q": Q[:, :3]}, r"'k' expected a number of heads that divides 3, got 2"),
        ({"k": CACHE[..., :7]}, r"'k' expected shape \(\*, \*, \*, 8\), got \(3, 2, 6, 7\)"),
        ({"v": CACHE[:2]}, r"'v' expected shape \(3, 2, 6, 8\) as 'k'"),
        ({"v": CACHE.bfloat16()}, r"'v' expected dtype float32 as 'q', got bfloat16"),
        ({"offsets": integers(1, 2, 5)}, r"'offsets' expected 0 first, got 1"),
        ({"offsets": integers(0, 2, 4)}, r"'offsets' expected the number of rows 5 last, got 4"),
        ({"offsets": integers(0, 6, 5)}, r"'offsets' expected numbers .* descend, got 5 after 6"),
        ({"offsets": integers()}, r"'offsets' expected at least one number, got none"),
        ({"offsets": integers(0, 2, 5)[None]}, r"'offsets' expected shape \(\*,\), got \(1, 3\)"),
        ({"offsets": integers(0, 2, 5).astype("i4")}, r"'offsets' expected dtype int64, got int32"),
        ({"offsets": [0, 2, 5]}, r"'offsets' expected an array"),
        ({"lengths": integers(4)}, r"'lengths' expected shape \(2,\), got \(1,\)"),
        ({"lengths": integers(4, 7)}, r"'lengths' expected numbers from 0 to 6.*got 7 for seq.* 1"),
        ({"lengths": integers(4, -1), "causal": False}, r"'lengths' expected .*0 to 6, got -1 for"),
        ({"lengths": integers(1, 4)}, r"'lengths' .*at least as many keys as queries \(2\), got 1"),
        ({"slots": integers(0, 3)}, r"'slots' expected numbers from 0 to 2, got 3 for sequence 1"),
        ({"slots": integers(-1, 0)}, r"'slots' expected numbers from 0 to 2, got -1"),
        ({"slots": integers(1)}, r"'slots' expected shape \(2,\), got \(1,\)"),
        ({"k": CACHE[:1], "v": CACHE[:1]}, r"'k' expected at least 2 slots.*got 1"),
        ({"out": torch.zeros(5, 4, 7)}, r"'out' expected shape \(5, 4, 8\) as 'q'"),
        ({"out": CACHE.view(-1)[:160].view(5, 4, 8)}, r"'out' expected memory apart from 'k'"),
    ],
)
def test_attention_errors(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "q": Q, "k": CACHE, "v": CACHE, "offsets": integers(0, 2, 5), "lengths": integers(4, 3),
    }  # fmt: skip
    if "k" in change:
        arguments["v"] = change["k"]
    with pytest.raises((ValueError, TypeError), match="attention_varlen: argument " + message):
        px.ops.attention_varlen(**{**arguments, **change})


QKV = torch.ones(5, 3, 2, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qkv": QKV[:, :2]}, r"'qkv' expected shape \(\*, 3, \*, \*\)"),
        ({"qkv": QKV[0]}, r"'qkv' expected 4 dimensions"),
        ({"qkv": QKV.bfloat16()}, r"'k_cache' expected dtype bfloat16"),
        ({"q_scale": torch.ones(3)}, r"'q_scale' expected shape \(2,\)"),
        ({"out": torch.zeros(5, 2, 9)}, r"'out' expected shape \(5, 2, 8\)"),
        ({"offsets": integers(0, 2, 6)}, r"'offsets' expected the number of rows 5 last, got 6"),
        ({"positions": integers(0)}, r"'positions' expected shape \(2,\)"),
        ({"positions": integers(0, -1)}, r"'positions' expected 0 to 3.*got -1 for sequence 1"),
        (
            {"positions": integers(0, 4)},
            r"'positions' expected 0 to 3, so that 3 more fit into 6, got 4 for sequence 1",
        ),
        ({"positions": integers(0, 2**63 - 1)}, r"'positions' expected 0 to 3"),
        ({"slots": integers(0, 3)}, r"'slots' expected numbers from 0 to 2, got 3"),
        (
            {"slots": integers(1, 1), "positions": integers(4, 2)},
            r"'positions' expected sequences that write apart, got 0 and 1 both at 4 of slot 1",
        ),
        (
            {"qkv": QKV.repeat(2, 1, 1, 1), "offsets": integers(0, 7, 10)},
            r"'offsets' expected at most 6 rows, which a slot holds, got 7 for sequence 0",
        ),
    ],
)
def test_append_errors_leave_the_caches_alone(change: dict[str, Any], message: str) -> None:
    k, v = torch.full((3, 2, 6, 8), 5.0), torch.full((3, 2, 6, 8), 6.0)
    arguments: dict[str, Any] = {
        "qkv": QKV, "k_cache": k, "v_cache": v,
        "offsets": integers(0, 2, 5), "positions": integers(0, 0),
    }  # fmt: skip
    with pytest.raises((ValueError, TypeError), match="kv_append_varlen: argument " + message):
        px.ops.kv_append_varlen(**{**arguments, **change})
    assert (k == 5).all() and (v == 6).all()


def test_append_beside_each_other_in_one_slot() -> None:
    k, v = torch.zeros(1, 2, 6, 8), torch.zeros(1, 2, 6, 8)
    offsets, positions, slots = integers(0, 2, 5, 5), integers(3, 0, 1), integers(0, 0, 0)
    qkv = normal(5, 3, 2, 8)
    px.ops.kv_append_varlen(qkv, k, v, offsets, positions, slots=slots)
    assert same_bits(k[0, :, :5].transpose(0, 1), torch.cat((qkv[2:, 1], qkv[:2, 1])))
