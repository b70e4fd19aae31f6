"""What the cases of lincomb cannot say: outputs of other dtypes than the inputs, layouts, parts of
a batch, and its messages."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

import pixleap as px

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
ISAS = px.available_isas()


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(3).standard_normal(shape)).to(dtype)


@pytest.mark.parametrize("isa", ISAS)
def test_outputs_have_their_own_dtypes(isa: str) -> None:
    px.set_isa(isa)
    for kinds in itertools.product(DTYPES, repeat=3):
        a, b = randn(3, 77, dtype=kinds[0]), randn(3, 77, dtype=kinds[1]).flip(0)
        out = [torch.empty(3, 77, dtype=k) for k in (kinds[2], torch.float32, kinds[1])]
        px.ops.lincomb([a, b], (0.5, -1.5, 1.0, 0.0, 0.25, 2.0), out=out)
        expected = px.reference.lincomb(
            [a.double().numpy(), b.double().numpy()], [[0.5, -1.5], [1.0, 0.0], [0.25, 2.0]]
        )
        for o, e in zip(out, expected, strict=True):
            rounded = torch.from_numpy(e).to(o.dtype)
            step = torch.finfo(o.dtype).eps if o.dtype != torch.float64 else 1e-12
            step = max(step, 0 if torch.float64 in (*kinds, o.dtype) else 2e-7)
            torch.testing.assert_close(o.double(), rounded.double(), rtol=step, atol=4 * step)


def test_float64_anywhere_means_float64_sums() -> None:
    one, tiny = torch.ones(5), torch.full((5,), 1e-9, dtype=torch.float64)
    for inputs, weights in (([one, tiny], None), ([one, one], [None, tiny.clone()[None][:1]])):
        if weights is not None:
            weights[1] = tiny[0].expand(5)
        wide = torch.empty(5, dtype=torch.float64)
        px.ops.lincomb(inputs, (1.0, 1.0), weights=weights, out=[wide])
        torch.testing.assert_close(wide, torch.full_like(wide, 1 + 1e-9), rtol=0, atol=1e-15)


def test_a_float32_state_and_its_copy_for_the_model() -> None:
    x, m = randn(2, 4, 33), randn(2, 4, 33, dtype=torch.bfloat16)
    copy = torch.empty_like(m)
    expected = 0.75 * x + 0.25 * m.float()
    px.ops.lincomb([x, m], (0.75, 0.25, 0.75, 0.25), out=[x, copy])
    torch.testing.assert_close(x, expected)
    assert torch.equal(copy, x.to(torch.bfloat16))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("outputs", [1, 3])
def test_bfloat16_rounds_as_torch_does(isa: str, outputs: int) -> None:
    """All bit patterns, in blocks with and without NaN and infinity."""
    px.set_isa(isa)
    x = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)
    shuffled = x[torch.from_numpy(np.random.default_rng(1).permutation(len(x)))]
    for a in (x, shuffled, x[1:-3]):
        c = tuple(0.7712345 + 0.1 * j for j in range(outputs))
        done = px.ops.lincomb([a], c, out=[torch.empty_like(a) for _ in c])
        for factor, y in zip(c, done, strict=True):
            expected = (a.float() * np.float32(factor)).to(torch.bfloat16)
            assert torch.equal(y.isnan(), expected.isnan())
            kept = ~expected.isnan()
            assert torch.equal(y[kept].view(torch.int16), expected[kept].view(torch.int16))
            assert (y[~kept].view(torch.int16) & 0x40).all()  # a quiet NaN


def test_a_copy_keeps_every_bit() -> None:
    for dtype in DTYPES:
        x = randn(3, 41, dtype=dtype)
        x[0, :4] = torch.tensor([0.0, -0.0, torch.inf, -torch.inf], dtype=dtype)
        [y] = px.ops.lincomb([x], [[1.0]])
        assert torch.equal(x.view(torch.uint8), y.view(torch.uint8))


@pytest.mark.parametrize("isa", ISAS)
def test_layouts_give_the_same_bits(isa: str) -> None:
    """Rows that merge differently: slices, a batch of one, trailing axes of one, columns."""
    px.set_isa(isa)
    base = randn(4, 6, 8, 10)
    views = [
        base[1:3], base[:, 2:5], base[:, :, 1:7], base[..., 3:8], base[::2, ::3],
        base[:, :, ::2, :1], base[:, 1, 2, 3, None, None], base[2:3, :, 3:4], base[0, 0, 0, 0],
    ]  # fmt: skip
    noise: dict[str, Any] = {"noise_scale": [0.5], "seed": 5, "first_element": 6}
    for v in views:
        [a] = px.ops.lincomb([v, v], (0.5, 0.25), **noise)
        [b] = px.ops.lincomb([v.contiguous(), v.contiguous()], (0.5, 0.25), **noise)
        assert torch.equal(a, b)
        target = (
            torch.zeros(4, 6, 8, 12)[tuple(slice(0, n) for n in v.shape)] if v.dim() == 4 else a
        )
        [c] = px.ops.lincomb([v.contiguous(), v], (0.5, 0.25), out=[target], **noise)
        assert torch.equal(a, c)


@pytest.mark.parametrize("isa", ISAS)
def test_a_part_of_a_batch_gets_the_noise_of_the_whole(isa: str) -> None:
    px.set_isa(isa)
    x = randn(5, 3, 67)
    c = np.random.default_rng(1).standard_normal((5, 1, 1))
    s = np.random.default_rng(2).standard_normal((5, 1)).astype(np.float32)
    args: dict[str, Any] = {"seed": 9, "offset": 4}
    c, s = torch.from_numpy(c), torch.from_numpy(s)
    [whole] = px.ops.lincomb([x], c, noise_scale=s, **args)
    for b in range(5):
        [part] = px.ops.lincomb(
            [x[b : b + 1]], c[b : b + 1], noise_scale=s[b : b + 1], first_element=b * 3 * 67, **args
        )
        assert torch.equal(part[0], whole[b])
    noise = px.ops.random_normal((5, 3, 67), like=x, **args)
    [only] = px.ops.lincomb([x], (0.0,), noise_scale=(1.0,), **args)
    assert torch.equal(only, noise)


def test_noise_of_scale_zero_is_not_drawn() -> None:
    x = randn(3, 5)
    [y] = px.ops.lincomb([x], (1.0,), noise_scale=(0.0,), seed=1)
    assert torch.equal(x, y)
    [y] = px.ops.lincomb([x], (1.0,), noise_scale=(torch.nan,), seed=1)
    assert y.isnan().all()


def test_coefficients_in_any_form() -> None:
    x, y = randn(2, 9), randn(2, 9).flip(1)
    want = px.ops.lincomb([x, y], [[0.5, 2.0], [1.0, -1.0]])
    for c in (
        ((0.5, 2.0), (1.0, -1.0)), (0.5, 2, 1, -1.0), [0.5, 2.0, 1.0, -1.0],
        np.array([[0.5, 2], [1, -1]]), np.array([0.5, 2, 1, -1], np.float32),
        torch.tensor([[0.5, 2], [1, -1]]), [np.float32(0.5), 2, 1, -1],
        torch.tensor([[[0.5, 2], [1, -1]]]).expand(2, 2, 2),
    ):  # fmt: skip
        got = px.ops.lincomb([x, y], c)
        assert len(got) == 2 and all(map(torch.equal, got, want))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"coefficients": (1.0, 2.0, 3.0)}, "'coefficients' expected 1 x 2 numbers, got 3"),
        ({"coefficients": 3.0}, "'coefficients' expected .m, n. numbers"),
        ({"coefficients": "ab"}, "expected a number, got str"),
        ({"coefficients": None}, "'coefficients' expected .m, n. numbers"),
        ({"coefficients": np.ones((3, 1, 2))}, r"sample_coefficients' expected shape \(2, 1, 2\)"),
        ({"coefficients": np.ones((2, 1, 2), "f2")}, "sample_coefficients' expected dtype float32"),
        ({"noise_scale": np.ones((2, 3))}, r"sample_noise_scale' expected shape \(2, 1\)"),
        ({"noise_scale": 1.0}, "'noise_scale' expected m numbers"),
        ({"noise_scale": (1.0, 1.0)}, "'noise_scale' expected 1 numbers, got 2"),
        ({"weights": [None]}, "'weights' expected 2 entries, got 1"),
        ({"weights": [None, np.ones((2, 4), "f4")]}, r"'weights' expected shape \(5,\) or "),
        ({"weights": [None, np.ones((2,), "f4")]}, r"'weights' expected shape \(5,\) or "),
        ({"weights": [None, np.ones(10, "f4")[::2]]}, "stride 1 or 0 in the last dimension"),
        ({"weights": [None, np.ones(5, "i8")]}, "'weights' expected dtype float32"),
        ({"weights": np.ones((2, 5), "f4")}, "'weights' expected a list of arrays"),
        ({"first_element": -1}, "'first_element' expected a number >= 0, got -1"),
        ({"clamp": -1.0}, "'clamp' expected a limit >= 0"),
        ({"out": [np.empty((2, 5), "f4")] * 5, "coefficients": [[1.0, 1.0]] * 5}, "1 to 4 arrays"),
        ({"out": [np.empty((2, 5), "i4")]}, "'out' expected dtype float32"),
    ],
)
def test_messages(kwargs: dict[str, Any], message: str) -> None:
    x = np.ones((2, 5), np.float32)
    kwargs = {"coefficients": (1.0, 1.0), **kwargs}
    with pytest.raises((ValueError, TypeError), match=f"lincomb: .*{message}"):
        px.ops.lincomb([x, x], kwargs.pop("coefficients"), **kwargs)


def test_weights_and_tables_may_not_be_written_to() -> None:
    x = torch.ones(2, 5)
    w = torch.ones(5)
    with pytest.raises(ValueError, match="memory apart from 'weights'"):
        px.ops.lincomb([x[:1]], (1.0,), weights=[w], out=[w[None]])
    table = torch.ones(2, 1, 1)
    with pytest.raises(ValueError, match="memory apart from 'sample_coefficients'"):
        px.ops.lincomb([torch.ones(2)], table, out=[table[:, 0, 0]])
    scalar = torch.ones(())
    with pytest.raises(ValueError, match="no axis of samples"):
        px.ops.lincomb([scalar], torch.ones(1, 1, 1))


def test_compiled_with_every_argument() -> None:
    def step(x: torch.Tensor, m: torch.Tensor, c: torch.Tensor, w: torch.Tensor) -> Any:
        a = px.ops.lincomb([x, m], c, weights=[None, w], noise_scale=[0.5], seed=3)
        b = px.ops.lincomb([a[0], m], (0.5, 0.25), clamp=1.0)
        return b[0] + 1

    x, m, w = randn(3, 4, 5), randn(3, 4, 5, dtype=torch.bfloat16), randn(4, 5)
    c = randn(3, 1, 2)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(step, fullgraph=True)(x, m, c, w), step(x, m, c, w))
