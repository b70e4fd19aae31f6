"""Attention on AMX tiles: masks and lengths around the edges of tiles, bits, special values, and
the error beside torch's. On CPUs with AMX, or in a build with -DPIXLEAP_EMULATE_ISA=ON."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

import pixleap as px

from cases.attention import VAR_SCALES

pytestmark = pytest.mark.skipif(
    "amx" not in px.available_isas(),
    reason="no AMX here, and a build that does not emulate it (cmake -DPIXLEAP_EMULATE_ISA=ON)",
)
EDGES = (1, 15, 16, 17, 31, 32, 33, 63, 65)
DIMS = (8, 40, 64, 72, 80, 128, 256)
INF = float("inf")


@pytest.fixture(autouse=True)
def amx() -> Iterator[None]:
    px.set_isa("amx")
    yield


def normal(*shape: int, seed: int = 3) -> torch.Tensor:
    rng = np.random.default_rng((seed, *shape))
    return torch.from_numpy(rng.standard_normal(shape).astype(np.float32)).bfloat16()


def qkv(queries: int, keys: int, dim: int, batch: int = 1, heads: int = 2, seed: int = 3) -> Any:
    shapes = (batch, heads, queries, dim), (batch, heads, keys, dim), (batch, heads, keys, dim)
    return [normal(*s, seed=seed + i) for i, s in enumerate(shapes)]


def reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **kwargs: Any) -> Any:
    return px.reference.attention(*(x.double().numpy() for x in (q, k, v)), **kwargs)


def assert_near(actual: torch.Tensor, want: np.ndarray, tolerance: float = 8e-3) -> None:
    top = np.abs(want).max(initial=1e-30)
    np.testing.assert_allclose(actual.double().numpy() / top, want / top, rtol=0, atol=tolerance)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("name", ["none", "causal", "key lengths", "block causal", "array"])
def test_masks_and_lengths_around_the_edges_of_tiles(name: str, dim: int) -> None:
    lengths = EDGES if dim in (8, 72) else (5, 16, 33, 65)
    for queries, keys in product(lengths, EDGES):
        mask: Any = None
        if name in ("causal", "block causal"):
            keys += queries
        if name == "causal":
            mask = px.masks.causal()
        elif name == "block causal":
            mask = px.masks.block_causal((queries // 3, queries - queries // 3))
        elif name == "key lengths":
            mask = px.masks.key_lengths([keys, keys // 2])
        q, k, v = qkv(queries, keys, dim, batch=2, heads=1)
        if name == "array":
            added = normal(1, 1, queries, keys, seed=9).float()
            mask = torch.where(added > 1, -INF, added)
        want, lse = reference(
            q, k, v, mask=mask.numpy() if isinstance(mask, torch.Tensor) else mask, return_lse=True
        )
        got, got_lse = px.ops.attention(q, k, v, mask=mask, return_lse=True)
        assert_near(got, want)
        np.testing.assert_allclose(got_lse.numpy(), lse, atol=5e-3)


@pytest.mark.parametrize(
    "mask",
    [
        px.masks.window(12, 22, (12, 11), 5),
        px.masks.window(6, 44, (3, 2), (1, 3)),
        px.masks.neighbourhood(22, 12, (7, 5)),
        px.masks.neighbourhood(4, 66, (3, 65)),
    ],
)
@pytest.mark.parametrize("int8", [False, True])
def test_windows_of_grouped_heads(mask: Any, int8: bool) -> None:
    q, (k, v), scales = normal(2, 4, 264, 40), (normal(2, 2, 264, 40, seed=s) for s in (4, 5)), {}
    if int8:
        k, v = ((x.float() * 40).clamp(-127, 127).to(torch.int8) for x in (k, v))
        scales = {n: torch.rand(2, 2, 264) / 30 for n in ("k_scale", "v_scale")}
    numbers = {n: x.double().numpy() for n, x in scales.items()}
    want = reference(q, k, v, mask=mask, **numbers)
    assert_near(px.ops.attention(q, k, v, mask=mask, **scales), want)


@pytest.mark.parametrize("dim", [64, 100, 256])
@pytest.mark.parametrize("keys", [40, 300])
def test_bits_do_not_depend_on_threads_or_tasks(dim: int, keys: int) -> None:
    q, k, v = qkv(197, keys, dim, heads=1)
    for mask in (None, px.masks.key_lengths([keys - 3]), px.masks.block_causal((90, 107))):
        if isinstance(mask, px.masks.block_causal) and keys < 197:
            continue
        results = []
        for threads in (1, 2, 3, 16):
            px.set_num_threads(threads)
            results.append(px.ops.attention(q, k, v, mask=mask))
        assert all(same_bits(results[0], other) for other in results[1:])


def test_bits_of_a_query_do_not_depend_on_those_beside_it() -> None:
    """Alone in the batch, beside others in a tile, and with those around it changed, as long as
    there are five or more: also when the others' scores are huge or they see fewer keys."""
    q, k, v = qkv(40, 300, 64, batch=3)
    whole = px.ops.attention(q, k, v)
    for b in range(3):
        assert same_bits(px.ops.attention(q[b : b + 1], k[b : b + 1], v[b : b + 1])[0], whole[b])
    for first in (0, 5, 16, 31):
        assert same_bits(px.ops.attention(q[:, :, first : first + 9], k, v),
                         whole[:, :, first : first + 9])  # fmt: skip
    q[:, :, ::2] *= 1e4
    assert same_bits(px.ops.attention(q, k, v)[:, :, 1::2], whole[:, :, 1::2])
    # Block by block of an ever longer sequence: the first 30 see the same keys in both.
    short = px.ops.attention(q[:, :, :30], k[:, :, :30], v[:, :, :30], mask=px.masks.causal())
    long = px.ops.attention(q, k[:, :, :40], v[:, :, :40], mask=px.masks.causal())
    assert same_bits(short, long[:, :, :30])


@pytest.mark.parametrize("dim", [40, 64])
@pytest.mark.parametrize("length", [6, 41, 70])
def test_hidden_keys_and_values_are_not_read(length: int, dim: int) -> None:
    q, k, v = qkv(length, 150, dim, batch=2)
    for seen in ([37, 105], [128, 129], [64, 1]):
        dirty = [x.clone() for x in (k, v)]
        for x, b in product(dirty, range(2)):
            x[b, :, seen[b] :] = INF if b else torch.nan
        mask = px.masks.key_lengths(seen)
        want = px.ops.attention(q, k, v, mask=mask)
        assert same_bits(px.ops.attention(q, *dirty, mask=mask), want)
    # Seen by some queries of a tile, hidden from others.
    clean = px.ops.attention(q, k, v, mask=px.masks.causal())
    for bad, value in product((150 - length, 149, 150 - length // 2), (torch.nan, INF, -INF)):
        dirty = v.clone()
        dirty[0, 0, bad, 3] = value
        got = px.ops.attention(q, k, dirty, mask=px.masks.causal())
        first = bad - (150 - length)  # query
        assert same_bits(got[1], clean[1]) and same_bits(got[0, 1], clean[0, 1])
        assert same_bits(got[0, 0, :first], clean[0, 0, :first])
        hit = got[0, 0, first:]
        assert not hit[:, 3].isfinite().any() and hit[:, :3].isfinite().all()
        assert (hit[:, 3].isnan() if value != value else hit[:, 3] == value).all()
        np.testing.assert_allclose(hit[:, 4:].float(), clean[0, 0, first:, 4:].float(), atol=2e-2)


def test_nan_and_infinity_reach_their_rows_only() -> None:
    q, k, v = qkv(20, 200, 64, heads=1)
    clean, clean_lse = px.ops.attention(q, k, v, return_lse=True)
    q[0, 0, 1] = torch.nan
    out, lse = px.ops.attention(q, k, v, return_lse=True)
    others = [i for i in range(20) if i != 1]
    assert out[0, 0, 1].isnan().all() and lse[0, 0, 1].isnan()
    assert same_bits(out[:, :, others], clean[:, :, others])
    assert same_bits(lse[:, :, others], clean_lse[:, :, others])
    for bad in (torch.nan, INF):
        k[0, 0, 150] = bad
        assert px.ops.attention(q, k, v).isnan().any(-1).all()


def test_rows_that_see_nothing_and_huge_scores() -> None:
    q, k, v = qkv(20, 120, 8)
    mask = torch.zeros(20, 120)
    mask[0] = mask[1, :119] = mask[2, :64] = mask[3, 64:] = -INF
    out, lse = px.ops.attention(q, k, v, mask=mask, return_lse=True)
    want, want_lse = reference(q, k, v, mask=mask.numpy(), return_lse=True)
    assert (out[:, :, 0] == 0).all() and (lse[:, :, 0] == -INF).all()
    assert same_bits(out[:, :, 1], v[:, :, 119])
    assert_near(out, want)
    np.testing.assert_allclose(lse[:, :, 1:], want_lse[:, :, 1:], atol=5e-3)
    out = px.ops.attention(q, k, v, mask=px.masks.key_lengths([0]))
    assert (out == 0).all()
    for power in (20, 60):
        assert_near(px.ops.attention(q * 2.0**power, k, v), reference(q * 2.0**power, k, v))


@pytest.mark.parametrize("scale", [-0.3, 0.0, 0.7, 1e-20])
def test_any_scale(scale: float) -> None:
    q, k, v = qkv(20, 150, 72)
    mask = px.masks.causal()
    got, lse = px.ops.attention(q, k, v, mask=mask, scale=scale, return_lse=True)
    want, want_lse = reference(q, k, v, mask=mask, scale=scale, return_lse=True)
    assert_near(got, want)
    np.testing.assert_allclose(lse, want_lse, atol=5e-3)


def test_scores_that_rise_from_block_to_block() -> None:
    """Maxima that grow by less and by more than what sums are scaled for."""
    q, k, v = qkv(33, 700, 64)
    q[..., 0], k[..., 0] = 8, torch.linspace(-60, 60, 700).bfloat16()
    assert_near(px.ops.attention(q, k, v), reference(q, k, v))
    assert_near(px.ops.attention(q, k.flip(2), v), reference(q, k.flip(2), v))


@pytest.mark.parametrize("dim", [40, 64])
def test_int8_keys_and_values(dim: int) -> None:
    q, k, v = qkv(50, 150, dim, batch=2)
    k, v = ((x.float() * 40).clamp(-127, 127).to(torch.int8) for x in (k, v))
    k_scale, v_scale = (torch.rand(2, 2, 150) / 30 + 1e-3 for _ in range(2))
    mask = px.masks.causal()
    arguments: Any = dict(mask=mask, return_lse=True)
    want, want_lse = reference(
        q, k, v, k_scale=k_scale.numpy(), v_scale=v_scale.numpy(), **arguments
    )
    got, lse = px.ops.attention(q, k, v, k_scale=k_scale, v_scale=v_scale, **arguments)
    assert_near(got, want)
    np.testing.assert_allclose(lse, want_lse, atol=5e-3)
    v_scale[:, :, 149] = torch.nan
    hit = px.ops.attention(q, k, v, k_scale=k_scale, v_scale=v_scale, mask=mask)
    assert same_bits(hit[:, :, :49], got[:, :, :49]) and hit[:, :, 49].isnan().all()


def test_few_queries_are_those_of_avx512() -> None:
    for queries in (1, 2, 4):
        q, k, v = qkv(queries, 150, 64)
        few = px.ops.attention(q, k, v, mask=px.masks.causal())
        px.set_isa("avx512")
        assert same_bits(few, px.ops.attention(q, k, v, mask=px.masks.causal()))
        px.set_isa("amx")


def test_other_types_are_those_of_avx512() -> None:
    for dtype in (torch.float32, torch.float16):
        q, k, v = (x.to(dtype) for x in qkv(40, 150, 64))
        got = px.ops.attention(q, k, v)
        px.set_isa("avx512")
        assert same_bits(got, px.ops.attention(q, k, v))
        px.set_isa("amx")


def test_strides_and_output_in_the_place_of_the_queries() -> None:
    q, k, v = qkv(130, 150, 40)
    want = px.ops.attention(q, k, v)
    wide = [torch.full((1, x.shape[2], 2, 50), 9.0).bfloat16() for x in (q, k, v)]
    views = [w[..., 3:43].transpose(1, 2) for w in wide]
    for view, x in zip(views, (q, k, v), strict=True):
        view.copy_(x)
    assert same_bits(px.ops.attention(*views), want)
    assert px.ops.attention(*views, out=views[0]) is views[0]
    assert same_bits(views[0], want)
    views[0].fill_(9)
    assert (wide[0] == 9).all()


def error(out: torch.Tensor, want: torch.Tensor) -> float:
    return float((out.double() - want).pow(2).mean().sqrt() / want.pow(2).mean().sqrt())


@pytest.mark.parametrize("dim", [64, 72, 128])
def test_error_is_at_most_that_of_torch(dim: int) -> None:
    """Root mean square against float64, within 1.1 of torch's bfloat16 attention."""
    ends = np.cumsum([s * s for s in VAR_SCALES])
    shapes = [(s * s, int(e)) for s, e in zip(VAR_SCALES, ends, strict=True) if s * s > 4]
    for queries, keys in [*shapes, (256, 1024)]:
        q, k, v = qkv(queries, keys, dim, heads=4 if queries < 100 else 1)
        attend = torch.nn.functional.scaled_dot_product_attention
        want = attend(q.double(), k.double(), v.double())
        ours, torchs = error(px.ops.attention(q, k, v), want), error(attend(q, k, v), want)
        print(f"D={dim} L={queries} S={keys}: {ours:.3e}, torch {torchs:.3e}, {ours / torchs:.3f}")
        assert ours <= 1.1 * torchs
