"""selective_scan beyond its cases: continued scans, extreme steps, aliasing, errors, and
the M-VAR-style blocks on it."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

import pixleap as px
from pixleap.models.mvar_mixer import MVARMixer

from cases.selective_scan import make, peer
from harness import to_torch

ISAS = px.available_isas()
OPTIONS = "dzbs"


def arguments(*size: int, options: str = OPTIONS, dtype: str = "float32") -> tuple[Any, Any]:
    args, kwargs = to_torch(list(make(*size, options)(np.random.default_rng(3))), dtype)
    return args, kwargs


def part(args: Any, kwargs: Any, steps: slice, state: Any) -> Any:
    u, delta, a, b, c, d = args
    z = kwargs["z"][:, steps]
    return px.ops.selective_scan(
        u[:, steps], delta[:, steps], a, b[:, steps], c[:, steps], d,
        **{**kwargs, "z": z, "state": state},
    )  # fmt: skip


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parts_are_the_whole_bit_for_bit(isa: str, dtype: str) -> None:
    px.set_isa(isa)
    for states in (16, 5):
        args, kwargs = arguments(2, 30, 45, states, dtype=dtype)
        whole, final = px.ops.selective_scan(*args, **kwargs)
        for cuts in ((0, 1, 5, 14, 30), (0, 29, 30), (0, 0, 30, 30)):
            state, parts = kwargs["state"], []
            for begin, end in itertools.pairwise(cuts):
                y, state = part(args, kwargs, slice(begin, end), state)
                parts.append(y)
            assert torch.equal(torch.cat(parts, 1), whole)
            assert torch.equal(state, final)


def test_without_a_state_is_from_zeros() -> None:
    args, kwargs = arguments(2, 9, 20, 16, options="dzb")
    zeros = torch.zeros(2, 20, 16)
    y, final = px.ops.selective_scan(*args, **kwargs)
    other, last = px.ops.selective_scan(*args, **kwargs, state=zeros)
    assert torch.equal(y, other)
    assert torch.equal(final, last)


@pytest.mark.parametrize("isa", ISAS)
def test_channels_do_not_touch_each_other(isa: str) -> None:
    """Long steps, infinities and NaN send a vector another way; its other channels keep their
    bits, and the extreme ones get what the recurrence gives."""
    px.set_isa(isa)
    args, kwargs = arguments(1, 6, 40, 16)
    y, final = px.ops.selective_scan(*args, **kwargs)
    delta, u = args[1].clone(), args[0].clone()
    delta[:, :, 3] = 40.0  # exp(-40 * 16): below what a float holds
    delta[:, 2, 5] = torch.inf
    u[:, 4, 37] = torch.nan
    got, last = px.ops.selective_scan(u, delta, *args[2:], **kwargs)
    keep = [i for i in range(40) if i not in (3, 5, 37)]
    assert torch.equal(got[..., keep], y[..., keep])
    assert torch.equal(last[:, keep], final[:, keep])
    want, end = peer(u, delta, *args[2:], **kwargs)
    torch.testing.assert_close(got[..., 3], want[..., 3], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(last[:, 3], end[:, 3], rtol=1e-5, atol=1e-5)
    assert got[0, :4, 37].isfinite().all()
    assert got[0, 4:, 37].isnan().all()
    assert last[0, 37].isnan().all()


def test_small_steps_keep_their_digits() -> None:
    """softplus(-12) = 6.1e-6, of which log(1 + x) in float32 would keep two digits."""
    x = torch.linspace(-80.0, 30.0, 200)[None, :, None]
    ones = torch.ones(1, 200, 1)
    y, _ = px.ops.selective_scan(
        ones, x, torch.full((1, 1), -1e9), ones, ones, delta_softplus=True
    )  # nothing is kept from before where dt a is below -88
    far = x[0, :, 0] > -14
    want = np.logaddexp(0, x.double().numpy()[0, :, 0])
    np.testing.assert_allclose(y.numpy()[0, far, 0], want[far], rtol=5e-7)


def test_in_place() -> None:
    for name in ("u", "delta", "z"):
        args, kwargs = arguments(2, 11, 37, 16)
        y, final = px.ops.selective_scan(*args, **kwargs)
        target = {"u": args[0], "delta": args[1], "z": kwargs["z"]}[name]
        out = (target, kwargs["state"])
        got, last = px.ops.selective_scan(*args, **kwargs, out=out)
        assert got is target
        assert torch.equal(target, y)
        assert torch.equal(last, final)


def test_equals_the_recurrence_in_torch() -> None:
    args, kwargs = arguments(2, 40, 70, 16)
    results = px.ops.selective_scan(*args, **kwargs)
    for got, want in zip(results, peer(*args, **kwargs), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_errors() -> None:
    (u, delta, a, b, c, d), _ = arguments(2, 4, 6, 3)
    scan = px.ops.selective_scan
    with pytest.raises(ValueError, match=r"selective_scan: argument 'u' expected 3 dimensions"):
        scan(u[0], delta, a, b, c)
    with pytest.raises(ValueError, match=r"argument 'a' expected shape \(6, \*\), got \(5, 3\)"):
        scan(u, delta, a[:5], b, c)
    with pytest.raises(ValueError, match=r"'a' expected at most 256 states, got 257"):
        scan(u, delta, torch.zeros(6, 257), torch.zeros(2, 4, 257), torch.zeros(2, 4, 257))
    with pytest.raises(ValueError, match=r"'c' expected shape \(2, 4, 3\), got \(2, 4, 2\)"):
        scan(u, delta, a, b, c[..., :2])
    with pytest.raises(TypeError, match=r"'b' expected dtype float32 as 'u', got bfloat16"):
        scan(u, delta, a, b.bfloat16(), c)
    with pytest.raises(TypeError, match=r"'a' expected dtype float32, got bfloat16"):
        scan(u, delta, a.bfloat16(), b, c)
    with pytest.raises(ValueError, match=r"'d' expected shape \(6,\), got \(5,\)"):
        scan(u, delta, a, b, c, d[:5])
    with pytest.raises(ValueError, match=r"'state' expected shape \(2, 6, 3\), got \(2, 3, 6\)"):
        scan(u, delta, a, b, c, state=torch.zeros(2, 3, 6))
    with pytest.raises(ValueError, match=r"'y' expected memory apart from 'delta'"):
        big = torch.zeros(2, 5, 6)
        scan(u, big[:, 1:], a, b, c, out=(big[:, :4], torch.zeros(2, 6, 3)))


LENGTHS = (1, 4, 9, 16, 36)


def mixer() -> MVARMixer:
    torch.manual_seed(0)
    return MVARMixer(width=48, depth=3, heads=4, states=16).eval()


def test_mixer_scale_by_scale_is_the_full_pass() -> None:
    model, x = mixer(), torch.randn(2, sum(LENGTHS), 48)
    whole, last = model(x, LENGTHS)
    states, parts = None, []
    for part in x.split(LENGTHS, 1):
        y, states = model(part, (part.shape[1],), states)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-5, atol=1e-5)
    for state, other in zip(states, last, strict=True):
        torch.testing.assert_close(state.scan, other.scan, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(state.taps, other.taps, rtol=1e-5, atol=1e-5)


def test_mixer_sees_what_it_says() -> None:
    """A scale sees all of itself and the coarser ones, nothing of the finer ones."""
    model, x = mixer(), torch.randn(1, sum(LENGTHS), 48)
    whole, _ = model(x, LENGTHS)
    changed = x.clone()
    changed[:, 13] = torch.randn(48)  # the last token of the third scale
    y, _ = model(changed, LENGTHS)
    moved = (y - whole).abs().amax(-1)[0]
    assert (moved[:5] == 0).all()
    assert (moved[5:14] > 1e-6).all()  # attention inside the scale
    assert (moved[14:] > 1e-6).sum() > 20  # the scan beyond it


def test_mixer_errors() -> None:
    model, x = mixer(), torch.zeros(1, 5, 48)
    with pytest.raises(
        ValueError, match=r"MVARMixer: argument 'lengths' .* add up to 5 .*\(1, 9\)"
    ):
        model(x, (1, 9))
    with pytest.raises(ValueError, match=r"MVARMixer: argument 'states' expected 3, .* got 0"):
        model(x, (1, 4), [])
    with pytest.raises(ValueError, match=r"'heads' expected a divisor of 48, got 5"):
        MVARMixer(48, 1, 5)
