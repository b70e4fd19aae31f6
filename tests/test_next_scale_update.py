"""next_scale_update equals VAR's torch sequence, works in place and on views, and refuses tokens
that are no codebook rows before it writes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import pixleap as px

from cases.next_scale_update import make, peer
from harness import strided, to_torch


def arguments(batch: int, channels: int, height: int, n: int, m: int) -> list[Any]:
    args, _ = make(batch, channels, height, n, m)(np.random.default_rng(1))
    return list(to_torch(args))


@pytest.mark.parametrize("height", [1, 2, 7, 16])
def test_equals_torch_at_every_size(height: int) -> None:
    for n in range(1, height + 1):
        m = (n * 5) % (height + 1)
        args = arguments(2, 9, height, n, m)
        for got, want in zip(px.ops.next_scale_update(*args), peer(*args), strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def test_in_place() -> None:
    args = arguments(3, 17, 7, 4, 5)
    f_hat, next_input = px.ops.next_scale_update(*args)
    state, output = args[4].clone(), torch.empty_like(next_input)
    args[4] = state
    got = px.ops.next_scale_update(*args, out=(state, output))
    assert got[0] is state and got[1] is output
    assert torch.equal(state, f_hat)
    assert torch.equal(output, next_input)


def test_views_with_unit_last_stride() -> None:
    args = arguments(3, 17, 7, 4, 5)
    want = px.ops.next_scale_update(*args)
    views = [strided(x) if i in (0, 1, 4) else x for i, x in enumerate(args)]
    out = tuple(strided(torch.zeros_like(x)) for x in want)
    got = px.ops.next_scale_update(*views, out=out)
    for a, b, o in zip(got, want, out, strict=True):
        assert torch.equal(a, b)
        assert (o._base == 99).sum() == o._base.numel() - o.numel()


def test_a_sample_alone_equals_the_same_one_in_a_batch() -> None:
    args = arguments(5, 17, 7, 4, 5)
    whole = px.ops.next_scale_update(*args)
    alone = px.ops.next_scale_update(args[0][3:4], *args[1:4], args[4][3:4], 5)
    for a, b in zip(alone, whole, strict=True):
        assert torch.equal(a, b[3:4])


@pytest.mark.parametrize("bad", [-1, 256, 2**40])
def test_token_out_of_range(bad: int) -> None:
    args = arguments(3, 8, 7, 2, 3)
    args[0][1, 2] = bad
    args[0][2, 0] = -5  # the first one is named
    out = (torch.full((3, 8, 7, 7), 5.0), torch.full((3, 9, 8), 5.0))
    with pytest.raises(ValueError, match=rf"'tokens' .* 0 to 255, got {bad} at \(1, 2\)"):
        px.ops.next_scale_update(*args, out=out)
    assert all((o == 5).all() for o in out)


@pytest.mark.parametrize(
    ("position", "value", "name"),
    [
        (0, torch.zeros(3, 5, dtype=torch.int64), "tokens"),
        (0, torch.zeros(3, 64, dtype=torch.int64), "tokens"),
        (0, torch.zeros(3, 0, dtype=torch.int64), "tokens"),
        (1, torch.zeros(256, 7), "codebook"),
        (1, torch.zeros(0, 8), "tokens"),
        (2, torch.zeros(8, 8, 3, 1), "phi_weight"),
        (3, torch.zeros(7), "phi_bias"),
        (4, torch.zeros(3, 8, 7, 6), "f_hat"),
        (5, -1, "next_size"),
        (5, 8, "next_size"),
    ],
)
def test_bad_arguments(position: int, value: Any, name: str) -> None:
    args = arguments(3, 8, 7, 2, 3)
    args[position] = value
    with pytest.raises(ValueError, match=f"next_scale_update: argument '{name}'"):
        px.ops.next_scale_update(*args)


def test_bad_ratio() -> None:
    with pytest.raises(ValueError, match="'phi_ratio'"):
        px.ops.next_scale_update(*arguments(3, 8, 7, 2, 3), phi_ratio=float("nan"))
