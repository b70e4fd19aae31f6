"""What the generated tests cannot say of an op that writes into its arguments."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import pixleap as px

from harness import Sentinel

QKV = torch.linspace(-1, 1, 2 * 3 * 3 * 2 * 11).view(2, 3, 3, 2, 11)


def caches(capacity: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full((2, 2, capacity, 11), 5.0), torch.full((2, 2, capacity, 11), 6.0)


@pytest.mark.parametrize("isa", px.available_isas())
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("position", [0, 4, 5])
def test_writes_its_positions_only(isa: str, scaled: bool, position: int) -> None:
    before = px.isa()
    px.set_isa(isa)
    guards = [Sentinel(t) for t in (torch.empty(2, 2, 3, 11), *caches())]
    q, k, v = (g.out for g in guards)
    k.fill_(5.0), v.fill_(6.0)
    scale = torch.tensor([2.0, 3.0]) if scaled else None
    result = px.ops.kv_append(QKV, k, v, position, q_scale=scale, out=q)
    px.set_isa(before)
    assert result[0] is q and result[1] is k and result[2] is v
    want = px.reference.kv_append(
        QKV.numpy(), *(c.numpy() for c in caches()), position, q_scale=scale
    )
    for guard, expected in zip(guards, want, strict=True):
        guard.check()
        np.testing.assert_allclose(guard.out.numpy(), expected, atol=1e-6)
    assert (k[:, :, :position] == 5).all() and (k[:, :, position + 3 :] == 5).all()


def test_strided_out_and_inputs() -> None:
    out = torch.full((2, 3, 2, 20), 9.0)
    q = out[..., :11].transpose(1, 2)
    k, v = (torch.zeros(8, 2, 2, 11).permute(1, 2, 0, 3) for _ in range(2))
    wide = torch.zeros(2, 3, 3, 2, 30)
    wide[..., 3:14] = QKV
    px.ops.kv_append(wide[..., 3:14], k, v, 1, out=q)
    assert torch.equal(q, QKV[:, :, 0].transpose(1, 2))
    assert torch.equal(k[:, :, 1:4], QKV[:, :, 1].transpose(1, 2))
    assert (out[..., 11:] == 9).all()


def test_zero_vector_stays_zero() -> None:
    k, v = caches()
    q, _, _ = px.ops.kv_append(QKV * 0, k, v, 0, q_scale=torch.ones(2))
    assert (q == 0).all() and (k[:, :, :3] == 0).all()


def normal(*shape: int, seed: int = 5) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def test_rms_and_rotation_are_those_of_torch() -> None:
    """RMSNorm of torch.nn; pairs as complex numbers (LLaMA's original), halves as one matrix."""
    qkv, at = normal(2, 3, 3, 2, 12), 4
    norms = [torch.nn.RMSNorm(12, eps=1e-5).requires_grad_(False) for _ in range(2)]
    for i, norm in enumerate(norms):
        norm.weight.copy_(normal(12, seed=i))
    table = px.rope.tables(7, 12)
    cos, sin = (torch.from_numpy(x) for x in table)
    for interleaved in (True, False):
        q, k, _ = px.ops.kv_append(
            qkv, normal(2, 2, 9, 12), normal(2, 2, 9, 12), at, norm="rms",
            q_weight=norms[0].weight, k_weight=norms[1].weight, eps=1e-5, rope=table,
            rope_interleaved=interleaved,
        )  # fmt: skip
        for i, got in enumerate((q, k[:, :, at : at + 3])):
            x = norms[i](qkv[:, :, i]).transpose(1, 2)
            if interleaved:
                turn = torch.complex(cos[at:], sin[at:])
                want = torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (6, 2))) * turn)
                want = want.flatten(-2)
            else:
                a, b = x.split(6, -1)
                c, s = cos[at:], sin[at:]
                want = torch.cat((a * c - b * s, b * c + a * s), -1)
            torch.testing.assert_close(got, want, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("interleaved", [True, False])
def test_rotated_products_depend_on_the_distance(interleaved: bool) -> None:
    row = normal(1, 1, 3, 1, 16).repeat(1, 9, 1, 1, 1)
    table = px.rope.tables(9, 16)
    caches = normal(1, 1, 9, 16), normal(1, 1, 9, 16)
    q, k, _ = px.ops.kv_append(row, *caches, 0, rope=table, rope_interleaved=interleaved)
    scores = (q @ k.mT)[0, 0]
    for distance in range(-8, 9):
        line = scores.diagonal(distance)
        torch.testing.assert_close(line, line[:1].expand_as(line), rtol=1e-4, atol=1e-4)
    assert (scores[0] - scores[0, 0]).abs().max() > 0.1


def test_one_rounding_in_bfloat16() -> None:
    """Normalised and rotated, bfloat16 differs from float32 by its last rounding alone."""
    qkv = normal(1, 4, 3, 2, 32).bfloat16()
    options: Any = {"norm": "rms", "rope": px.rope.tables(4, 32)}
    exact = px.ops.kv_append(
        qkv.float(), torch.zeros(1, 2, 4, 32), torch.zeros(1, 2, 4, 32), 0, **options
    )
    zeros = (torch.zeros(1, 2, 4, 32, dtype=torch.bfloat16) for _ in range(2))
    got = px.ops.kv_append(qkv, *zeros, 0, **options)
    for a, b in zip(got, exact, strict=True):
        assert torch.equal(a, b.bfloat16())


@pytest.mark.parametrize("isa", px.available_isas())
def test_a_token_has_the_same_bits_in_any_batch(isa: str) -> None:
    px.set_isa(isa)
    qkv, table = normal(3, 5, 3, 2, 43), px.rope.tables(8, 34)
    options: Any = {"norm": "rms", "q_weight": normal(43), "rope": table}
    size = (3, 2, 8, 43)
    for dtype in ("float32", "int8"):

        def append(x: torch.Tensor, *caches: torch.Tensor, dtype: str = dtype, at: int = 2) -> Any:
            scales = dict(zip(("k_scale", "v_scale"), caches[2:], strict=False))
            return px.ops.kv_append(x, *caches[:2], at, **scales, **options)

        made: Any = [torch.zeros(size, dtype=getattr(torch, dtype)) for _ in range(2)]
        made += [torch.zeros(size[:3]) for _ in range(2)] if dtype == "int8" else []
        alone = [torch.zeros_like(c) for c in made]
        q = append(qkv, *made)[0]
        for b in range(3):
            for i in range(5):
                one = qkv[b : b + 1, i : i + 1]
                row = append(one, *(c[b : b + 1] for c in alone), at=2 + i)[0]
                assert torch.equal(row[0, :, 0], q[b, :, i])
        assert all(torch.equal(a, b) for a, b in zip(alone, made, strict=True))


def int8_caches(capacity: int = 8, dim: int = 11) -> dict[str, torch.Tensor]:
    whole = {n: torch.full((2, 2, capacity, dim), 55, dtype=torch.int8) for n in ("k", "v")}
    return {
        "k_cache": whole["k"], "v_cache": whole["v"],
        "k_scale": torch.full((2, 2, capacity), 5.0), "v_scale": torch.full((2, 2, capacity), 6.0),
    }  # fmt: skip


@pytest.mark.parametrize("isa", px.available_isas())
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_int8_is_the_nearest_of_255_steps(isa: str, dtype: str) -> None:
    px.set_isa(isa)
    qkv = normal(2, 3, 3, 2, 11).to(getattr(torch, dtype))
    guards = {name: Sentinel(t) for name, t in int8_caches().items()}
    caches = {name: g.out.copy_(int8_caches()[name]) for name, g in guards.items()}
    result = px.ops.kv_append(qkv, position=4, norm="rms", **caches)
    assert result[1] is caches["k_cache"] and result[4] is caches["v_scale"]
    key = px.reference.kv_append(
        qkv.double().numpy(), np.zeros((2, 2, 3, 11)), np.zeros((2, 2, 3, 11)), 0, norm="rms"
    )[1]
    for name, want in (("k", key), ("v", qkv[:, :, 2].double().numpy().swapaxes(1, 2))):
        guards[f"{name}_cache"].check(), guards[f"{name}_scale"].check()
        whole, scales = caches[f"{name}_cache"], caches[f"{name}_scale"]
        got, scale = whole[:, :, 4:7].numpy(), scales[:, :, 4:7].double().numpy()
        amax = np.abs(want).max(-1)
        np.testing.assert_allclose(scale, amax / 127, rtol=1e-6)
        assert (np.abs(got).max(-1) == 127).all() and got.min() >= -127
        error = np.abs(got * scale[..., None] - want)
        assert (error <= amax[..., None] / 254 * (1 + 1e-4)).all()
        before = int8_caches()[f"{name}_cache"]
        assert torch.equal(whole[:, :, :4], before[:, :, :4])
        assert torch.equal(whole[:, :, 7:], before[:, :, 7:])
        assert (scales[:, :, :4] == scales[:, :, 7:].max()).all()


def test_int8_rounds_ties_to_even() -> None:
    row = torch.tensor([127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -126.5, 126.5, 3.0, 0.49, 0.51])
    caches = int8_caches()
    px.ops.kv_append(row.expand(2, 1, 3, 2, 11).contiguous(), position=0, **caches)
    want = torch.tensor([127, 0, 2, 2, 0, -2, -126, 126, 3, 0, 1], dtype=torch.int8)
    for name in ("k", "v"):
        assert (caches[f"{name}_cache"][:, :, 0] == want).all()
        assert (caches[f"{name}_scale"][:, :, 0] == 1).all()


@pytest.mark.parametrize("isa", px.available_isas())
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_shows(isa: str, bad: float) -> None:
    """In a row with NaN or infinity the scale is NaN and the numbers are 0; other rows are as they
    would be. A row of zeros has scale 0."""
    px.set_isa(isa)
    qkv = normal(2, 3, 3, 2, 11)
    qkv[0, 1, 1, 0, 10] = qkv[1, 2, 2, 1, 3] = bad
    qkv[1, 0, 1:, 0] = 0
    caches = int8_caches()
    px.ops.kv_append(qkv, position=0, **caches)
    k, v = (torch.isnan(caches[f"{n}_scale"]) for n in ("k", "v"))
    assert k.sum() == 1 and k[0, 0, 1] and v.sum() == 1 and v[1, 1, 2]
    assert (caches["k_cache"][0, 0, 1] == 0).all() and (caches["v_cache"][1, 1, 2] == 0).all()
    for name in ("k", "v"):
        assert caches[f"{name}_scale"][1, 0, 0] == 0
        assert (caches[f"{name}_cache"][1, 0, 0] == 0).all()
    # What is read of such a key is NaN.
    read = caches["k_cache"][..., :3, :] * caches["k_scale"][..., :3, None]
    assert read[0, 0, 1].isnan().all() and read.isnan().sum() == 11


ROPE = px.rope.tables(8, 10)
WIDE = {name: torch.from_numpy(x) for name, x in zip("cs", px.rope.tables(8, 12), strict=True)}
ONES = torch.ones(11)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm": "layer"}, r"'norm' expected None, 'l2' or 'rms', got layer"),
        ({"norm": "rms", "q_scale": torch.ones(2)}, r"'q_scale' expected None with norm='rms'"),
        ({"q_weight": ONES}, r"'q_weight' expected None without norm='rms'"),
        ({"norm": "l2", "k_weight": ONES}, r"'k_weight' expected None without norm='rms'"),
        ({"norm": "rms", "k_weight": ONES[:10]}, r"'k_weight' expected shape \(11,\), got \(10,\)"),
        (
            {"norm": "rms", "q_weight": ONES.repeat(3, 1)},
            r"'q_weight' expected shape \(2, 11\), got \(3, 11\)",
        ),
        ({"norm": "rms", "q_weight": ONES.double()}, r"'q_weight' expected dtype float32 as 'qkv'"),
        ({"norm": "rms", "eps": -1.0}, r"'eps' expected a number from 0 to 1, got -1"),
        ({"norm": "rms", "eps": float("nan")}, r"'eps' expected a number from 0 to 1, got nan"),
        ({"rope": ROPE[0]}, r"'rope' expected a list of arrays, got numpy.ndarray"),
        ({"rope": ROPE[:1]}, r"'rope' expected the pair \(cos, sin\), got 1 arrays"),
        ({"rope": (None, ROPE[1])}, r"'rope' expected an array .*, got NoneType"),
        ({"rope": (ROPE[0], ROPE[1][:7])}, r"'rope' expected shape \(8, 5\) as 'rope', got \(7,"),
        ({"rope": (WIDE["c"], WIDE["s"])}, r"'rope' expected at most 5 angles, half .* 11, got 6"),
        ({"rope": (ONES, ONES)}, r"'rope' expected shape \(\*, \*\), got \(11,\)"),
        ({"rope": ROPE, "position": 5, "k_cache": "long"}, None),
        ({"rope": tuple(t[:2] for t in ROPE)}, r"'rope' expected tables of at least 3 pos.*got 2"),
        (
            {"rope": tuple(t[None, :4] for t in ROPE)},
            r"'rope' expected shape \(1, 3, \*\), got \(1, 4, 5\)",
        ),
        (
            {"rope": tuple(np.stack([t[:3]] * 3) for t in ROPE)},
            r"'rope' expected shape \(2, 3, \*\), got \(3, 3, 5\)",
        ),
        ({"rope_positions": np.arange(3)}, r"'rope_positions' expected None without 'rope'"),
        (
            {"rope": ROPE, "rope_positions": np.arange(4)},
            r"'rope_positions' expected shape \(3,\), got \(4,\)",
        ),
        (
            {"rope": ROPE, "rope_positions": np.array([0, 8, 1])},
            r"'rope_positions' expected rows of 'rope', 0 to 7, got 8",
        ),
        (
            {"rope": ROPE, "rope_positions": np.array([[0, 1, 1], [0, -1, 1]])},
            r"'rope_positions' expected rows of 'rope', 0 to 7, got -1",
        ),
        (
            {"rope": ROPE, "rope_positions": np.arange(3, dtype=np.int32)},
            r"'rope_positions' expected dtype int64, got int32",
        ),
        (
            {"rope": tuple(t[None, :3] for t in ROPE), "rope_positions": np.arange(3)},
            r"'rope_positions' expected None with tables per token",
        ),
        ({"k_scale": None}, r"'k_scale' expected with 'v_scale', .* of int8 caches, got 1 of"),
        ({"k_scale": None, "v_scale": None}, r"'k_scale' expected with 'v_scale'.*got 0 of"),
        ({"v_scale": torch.zeros(2, 2, 7)}, r"'v_scale' expected shape \(2, 2, 8\), got"),
        ({"k_scale": torch.zeros(2, 2, 8).half()}, r"'k_scale' expected dtype float32, got f"),
        ({"v_cache": torch.zeros(2, 2, 8, 11)}, r"'v_cache' expected dtype int8 as 'k_cache'"),
        ({"k_cache": torch.zeros(2, 2, 8, 11), "v_cache": torch.ones(2, 2, 8, 11)},
         r"'k_scale' expected None and no 'v_scale', as only int8 .*, got 2 of the two"),
        ({"position": 6}, r"'position' expected 0 to 5, so that 3 more fit into 8, got 6"),
    ],
)  # fmt: skip
def test_errors_of_options_leave_the_caches_alone(
    change: dict[str, Any], message: str | None
) -> None:
    arguments: dict[str, Any] = {"qkv": QKV, "position": 0, **int8_caches(), **change}
    if message is None:  # the tables end before the caches do
        arguments.update(int8_caches(20), position=6)
        message = r"'rope' expected tables of at least 9 positions, got 8"
    with pytest.raises((ValueError, TypeError), match="kv_append: argument " + message):
        px.ops.kv_append(**arguments)
    for name, untouched in int8_caches().items():
        given = arguments[name]
        if given is not None and given.dtype == untouched.dtype and name not in change:
            assert (given == untouched.flatten()[0]).all()


def test_scales_that_share_memory_are_refused() -> None:
    caches = int8_caches()
    caches["v_scale"] = caches["k_scale"]
    with pytest.raises(ValueError, match=r"'v_scale' expected memory apart from 'k_scale'"):
        px.ops.kv_append(QKV, position=0, **caches)


def test_compiled_with_options() -> None:
    table = tuple(torch.from_numpy(t) for t in ROPE)

    def f(qkv: torch.Tensor, k: Any, v: Any, a: Any, b: Any) -> torch.Tensor:
        q, *_ = px.ops.kv_append(qkv, k, v, 1, norm="rms", rope=table, k_scale=a, v_scale=b)
        return q * 2

    torch._dynamo.reset()
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    mine, theirs = list(int8_caches().values()), list(int8_caches().values())
    torch.testing.assert_close(compiled(QKV, *mine), f(QKV, *theirs))
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    assert not torch.equal(mine[2], int8_caches()["k_scale"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"position": 6}, r"'position' expected 0 to 5, so that 3 more fit into 8, got 6"),
        ({"position": -1}, r"'position' expected 0 to 5.*got -1"),
        ({"position": 2**63 - 1}, r"'position' expected 0 to 5"),
        ({"position": 2**80}, r"'position' expected an integer, got a number out of range"),
        ({"qkv": QKV.repeat(1, 3, 1, 1, 1)}, r"'qkv' expected at most 8 positions.*got 9"),
        ({"qkv": QKV[:1]}, r"'k_cache' expected shape \(1, 2, \*, 11\)"),
        ({"qkv": QKV[:, :, :2]}, r"'qkv' expected shape \(\*, \*, 3, \*, \*\)"),
        ({"qkv": QKV.bfloat16()}, r"'k_cache' expected dtype bfloat16"),
        ({"q_scale": torch.ones(3)}, r"'q_scale' expected shape \(2,\)"),
        ({"out": torch.empty(2, 2, 3, 12)}, r"'out' expected shape"),
    ],
)
def test_errors_leave_the_caches_alone(change: dict[str, Any], message: str) -> None:
    k, v = caches()
    arguments: dict[str, Any] = {"qkv": QKV, "k_cache": k, "v_cache": v, "position": 0}
    with pytest.raises((ValueError, TypeError), match="kv_append: argument " + message):
        px.ops.kv_append(**{**arguments, **change})
    assert (k == 5).all() and (v == 6).all()


def test_one_buffer_for_both_caches_is_refused() -> None:
    k, _ = caches()
    with pytest.raises(ValueError, match=r"'v_cache' expected memory apart from 'k_cache'"):
        px.ops.kv_append(QKV, k, k, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope": tuple(t[:4] for t in ROPE)}, r"'rope' expected tables of at least 5 pos.*got 4"),
        ({"rope": tuple(t[None, :4] for t in ROPE)}, r"'rope' expected shape \(1, 5, \*\), got"),
        (
            {"rope": ROPE, "rope_positions": np.array([0, 1, 2, 3, 8])},
            r"'rope_positions' expected rows of 'rope', 0 to 7, got 8",
        ),
        ({"rope": ROPE, "rope_positions": np.arange(4)}, r"'rope_positions' expected shape \(5,\)"),
        ({"norm": "rms", "k_weight": ONES[:9]}, r"'k_weight' expected shape \(11,\), got \(9,\)"),
        ({"v_scale": None}, r"'k_scale' expected with 'v_scale'.*got 1 of the two"),
        ({"k_scale": torch.zeros(2, 8)}, r"'k_scale' expected shape \(2, 2, 8\), got \(2, 8\)"),
        ({"positions": np.array([7, 0])}, r"'positions' expected 0 to 6"),
    ],
)
def test_errors_of_varlen_options_leave_the_caches_alone(
    change: dict[str, Any], message: str
) -> None:
    arguments: dict[str, Any] = {
        "qkv": QKV.reshape(6, 3, 2, 11)[:5], "offsets": np.array([0, 2, 5]),
        "positions": np.array([3, 2]), **int8_caches(),
    }  # fmt: skip
    with pytest.raises(ValueError, match="kv_append_varlen: argument " + message):
        px.ops.kv_append_varlen(**{**arguments, **change})
    for name, untouched in int8_caches().items():
        assert torch.equal(arguments[name], untouched)


def test_varlen_takes_rows_of_the_tables_by_position() -> None:
    """The rows that it would have taken give the same; others, those of `kv_append`."""
    qkv, offsets, starts = normal(5, 3, 2, 11), np.array([0, 2, 5]), np.array([3, 2])
    rows = np.array([3, 4, 2, 3, 4])

    def append(**options: Any) -> Any:
        return px.ops.kv_append_varlen(qkv, *caches(), offsets, starts, rope=ROPE, **options)

    for a, b in zip(append(), append(rope_positions=rows), strict=True):
        assert torch.equal(a, b)
    other = np.array([7, 0, 1, 1, 6])
    q, k, _ = append(rope_positions=other)
    one, key, _ = px.ops.kv_append(
        qkv[None, 2:], *(c[:1] for c in caches()), 2, rope=ROPE, rope_positions=other[2:]
    )
    assert torch.equal(q[2:], one[0].transpose(0, 1)) and torch.equal(k[1], key[0])
    assert not torch.equal(q, append()[0])
