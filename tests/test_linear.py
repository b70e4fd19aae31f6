"""What the cases of `linear` and `layer_norm` do not show: strides, dtypes apart from x's, in-place
use, and that the rows of a call do not change each other's bits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

import pixleap as px

ISAS = px.available_isas()
PACKED = ("float32", "bfloat16", "int8")


def pack(weight: torch.Tensor, dtype: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Panels, and what `linear` must be told besides."""
    packed = px.ops.linear_pack(weight, dtype=dtype)
    return (packed[0], {"scales": packed[1]}) if dtype == "int8" else (packed, {})


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = px.isa()
    px.set_isa(request.param)
    yield request.param
    px.set_isa(before)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("packed", PACKED)
def test_rows_do_not_change_each_other(isa: str, packed: str) -> None:
    x, weight = normal(1, 131, 300), normal(70, 300)
    panels, scales = pack(weight, packed)
    whole = px.ops.linear(x, panels, 70, activation="gelu", **scales)
    for first, last in ((0, 1), (1, 3), (17, 18), (30, 37), (60, 131)):
        part = px.ops.linear(x[:, first:last], panels, 70, activation="gelu", **scales)
        assert torch.equal(part, whole[:, first:last])


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("out_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_strides_and_dtypes_of_linear(isa: str, packed: str, out_dtype: torch.dtype) -> None:
    x = normal(9, 3, 40)[..., :37].transpose(0, 1).bfloat16()
    weight = normal(41, 45)[:, 3:40]
    big = torch.full((3, 11, 60), 5.0, dtype=out_dtype)
    out = big[:, 1:10, 7:48]
    bias, gate = normal(41), normal(3, 50)[:, 2:43].bfloat16()
    panels, scales = pack(weight, packed)
    expected = px.reference.linear(
        x.double().numpy(),
        panels.double().numpy(),
        41,
        scales=scales["scales"].double().numpy() if scales else None,
        bias=bias.double().numpy(),
        gate=gate.double().numpy(),
        residual=out.double().numpy(),
    )
    px.ops.linear(x, panels, 41, bias=bias, gate=gate, residual=out, out=out, **scales)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}[out_dtype]
    scale = np.abs(expected).max()
    np.testing.assert_allclose(out.double() / scale, expected / scale, rtol=0, atol=tolerance)
    out.fill_(5.0)
    assert (big == 5.0).all()


def test_float32_weights_to_bfloat16(isa: str) -> None:
    weight = normal(37, 19)
    weight[0, :3] = torch.tensor([1.00390625, 1.01171875, -1.00390625])  # ties
    packed = px.ops.linear_pack(weight, dtype="bfloat16")
    assert packed.dtype == torch.bfloat16
    expected = px.reference.linear_pack(weight.double().numpy(), dtype="bfloat16")
    np.testing.assert_array_equal(packed.double(), expected)
    given = torch.empty_like(packed)
    assert px.ops.linear_pack(weight.numpy(), out=given) is given
    assert torch.equal(given, packed)
    assert px.ops.linear_pack(weight.bfloat16()).dtype == torch.bfloat16
    assert px.ops.linear_pack(weight.half()).dtype == torch.float32


def test_weights_to_int8(isa: str) -> None:
    weight = normal(37, 19)
    packed, scales = px.ops.linear_pack(weight, dtype="int8")
    assert packed.dtype == torch.int8 and scales.dtype == torch.float32
    torch.testing.assert_close(scales, weight.abs().amax(1) / 127, rtol=0, atol=0)
    back = packed.permute(0, 2, 1, 3).reshape(48, 20)
    assert int(back[37:].abs().max()) == int(back[:, 19:].abs().max()) == 0
    error = (back[:37, :19] * scales[:, None] - weight).abs()
    assert (error <= 0.5001 * scales[:, None]).all()
    given = torch.empty_like(packed), torch.empty_like(scales)
    assert all(a is b for a, b in zip(px.ops.linear_pack(weight, out=given), given, strict=True))
    arrays = px.ops.linear_pack(weight.numpy(), dtype="int8")
    for a, b, c in zip(given, (packed, scales), arrays, strict=True):
        assert torch.equal(a, b)
        np.testing.assert_array_equal(b, c)


def test_int8_row_that_is_not_finite_gives_nan(isa: str) -> None:
    x, weight = normal(1, 20, 30), normal(40, 30)
    weight[7, 3], weight[9, 29] = torch.nan, -torch.inf
    weight[8] = 0
    panels, scales = pack(weight, "int8")
    y = px.ops.linear(x, panels, 40, **scales)
    assert y[..., [7, 9]].isnan().all() and (y[..., 8] == 0).all()
    assert int(y.isnan().sum()) == 40


@pytest.mark.parametrize("packed", ["bfloat16", "int8"])
def test_amx_rounds_x_no_worse_than_bfloat16(isa: str, packed: str) -> None:
    x, weight = normal(1, 20, 1000), normal(40, 1000)
    panels, scales = pack(weight, packed)
    expected = px.reference.linear(
        x.double().numpy(),
        panels.double().numpy(),
        40,
        scales=scales["scales"].double().numpy() if scales else None,
    )
    actual = px.ops.linear(x, panels, 40, **scales).double().numpy()
    tolerance = 2.0**-8 if isa == "amx" else 4e-6
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "silu"])
def test_activations_over_their_range(isa: str, activation: str) -> None:
    x = torch.cat([torch.linspace(-100, 100, 40001), torch.tensor([1e-30, -1e-30, 0.0, 3e38])])
    one = px.ops.linear_pack(torch.ones(1, 1))
    y = px.ops.linear(x.view(1, -1, 1), one, 1, activation=activation).view(-1).double().numpy()
    with np.errstate(over="ignore"):
        expected = px.reference.linear(
            x.double().view(1, -1, 1).numpy(), one.double().numpy(), 1, activation=activation
        ).reshape(-1)
    np.testing.assert_allclose(y, expected, rtol=3e-7, atol=4e-7)
    odd = torch.tensor([torch.nan, torch.inf]).view(1, -1, 1)
    got = px.ops.linear(odd, one, 1, activation=activation).view(-1)
    assert got[0].isnan() and got[1] == torch.inf


def test_messages_of_linear() -> None:
    x, weight = normal(1, 2, 8), normal(20, 8)
    packed = px.ops.linear_pack(weight)
    with pytest.raises(ValueError, match="one of none, gelu, gelu_tanh, silu, got relu"):
        px.ops.linear(x, packed, 20, activation="relu")
    with pytest.raises(ValueError, match=r"'packed' expected shape \(3, 8, 16\), got \(2, 8, 16\)"):
        px.ops.linear(x, packed, 33)
    with pytest.raises(ValueError, match="'out_features' expected a number of features, got -1"):
        px.ops.linear(x, packed, -1)
    with pytest.raises(ValueError, match="'dtype' expected float32, bfloat16 or int8, got int4"):
        px.ops.linear_pack(weight, dtype="int4")
    with pytest.raises(TypeError, match="bfloat16"):
        px.ops.linear_pack(weight.numpy(), dtype="bfloat16")
    with pytest.raises(ValueError, match="'out' expected memory apart from 'residual'"):
        buffer = normal(1, 3, 20)
        px.ops.linear(x, packed, 20, residual=buffer[:, :2], out=buffer[:, 1:])


def test_messages_of_int8() -> None:
    x, weight = normal(1, 2, 9), normal(20, 9)
    packed, scales = px.ops.linear_pack(weight, dtype="int8")
    with pytest.raises(ValueError, match="'scales' expected the scales of int8 weights, got None"):
        px.ops.linear(x, packed, 20)
    with pytest.raises(ValueError, match="'scales' expected None, as only int8 weights have"):
        px.ops.linear(x, px.ops.linear_pack(weight), 20, scales=scales)
    with pytest.raises(ValueError, match=r"'scales' expected shape \(20,\), got \(19,\)"):
        px.ops.linear(x, packed, 20, scales=scales[:19])
    with pytest.raises(TypeError, match="'scales' expected dtype float32, got float64"):
        px.ops.linear(x, packed, 20, scales=scales.double())
    with pytest.raises(ValueError, match=r"'packed' expected shape \(2, 3, 16, 4\), got \(2, 2,"):
        px.ops.linear(x, packed[:, :2].contiguous(), 20, scales=scales)
    with pytest.raises(TypeError, match="'packed' expected dtype float32, bfloat16 or int8, got u"):
        px.ops.linear(x, packed.to(torch.uint8), 20, scales=scales)
    with pytest.raises(ValueError, match=r"'out' expected the pair \(packed, scales\) for int8"):
        px.ops.linear_pack(weight, out=packed)
    with pytest.raises(ValueError, match="'out' expected one array, as only int8 has scales"):
        px.ops.linear_pack(weight, out=(px.ops.linear_pack(weight), scales))
    with pytest.raises(ValueError, match="'scales' expected shape"):
        px.ops.linear_pack(weight, out=(packed, scales[:3]))
    with pytest.raises(TypeError, match="linear_pack: argument 'out' expected an array"):
        px.ops.linear_pack(weight, out=())
    with pytest.raises(ValueError, match="'scales' expected memory apart from 'out'"):
        px.ops.linear_pack(weight, out=(packed, packed.view(-1)[:80].view(torch.float32)))


def test_layer_norm_in_place_and_other_dtypes(isa: str) -> None:
    x, scale, shift = normal(3, 5, 70), normal(3, 70), normal(3, 70)
    expected = px.reference.layer_norm(
        x.double().numpy(), scale=scale.double().numpy(), shift=shift.double().numpy()
    )
    half = px.ops.layer_norm(
        x, scale=scale, shift=shift, out=torch.empty(3, 5, 70, dtype=torch.bfloat16)
    )
    np.testing.assert_allclose(half.double(), expected, rtol=0, atol=4e-3 * np.abs(expected).max())
    assert px.ops.layer_norm(x, scale=scale, shift=shift, out=x) is x
    np.testing.assert_allclose(x.double(), expected, rtol=0, atol=2e-6 * np.abs(expected).max())
    mixed = px.ops.layer_norm(x.bfloat16(), scale=scale, shift=shift.bfloat16())
    assert mixed.dtype == torch.bfloat16
