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
