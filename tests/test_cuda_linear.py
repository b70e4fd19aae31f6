"""What the cases of the CUDA kernels of linear cannot say: the bits of a row alone and among
others, rows that are not aligned, each shape of block. In a build that emulates CUDA."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import pixleap as px
from pixleap import _native

pytestmark = pytest.mark.cuda_emulated


@pytest.fixture(autouse=True, params=[8, 9])
def capability(request: pytest.FixtureRequest) -> Iterator[int]:
    """Of the emulated device: 9 takes warpgroup products where 8 takes those of a warp."""
    _native.emulate_cuda("shuffle", 5, request.param)
    before = _native.emulated_launches()
    yield request.param
    assert _native.emulated_launches() > before


@pytest.mark.parametrize("packed", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_row_has_the_bits_that_it_has_alone(dtype: torch.dtype, packed: str) -> None:
    rng = np.random.default_rng(4)
    numbers = rng.standard_normal((2, 41, 211)).astype(np.float32)
    wide = torch.from_numpy(numbers).to(dtype)
    x = wide[..., 3:203]  # K = 200, no row aligned
    weight = torch.from_numpy(rng.standard_normal((83, 200)).astype(np.float32) / 14)
    panels: Any = px.ops.linear_pack(weight, dtype=packed)
    options: dict[str, Any] = {}
    if packed == "int8":
        panels, options["scales"] = panels
    out = px.ops.linear(x, panels, 83, activation="gelu", **options)
    same = px.ops.linear(x.contiguous(), panels, 83, activation="gelu", **options)
    assert torch.equal(out, same)
    for b, row in ((0, 0), (0, 40), (1, 17)):
        few = px.ops.linear(x[b : b + 1, row : row + 1], panels, 83, activation="gelu", **options)
        assert torch.equal(few[0, 0], out[b, row])
    # A row that is not finite stays alone.
    broken = x.contiguous()
    broken[0, 5, 199] = torch.nan
    bad = px.ops.linear(broken, panels, 83, activation="gelu", **options).isnan()
    assert bad[0, 5].all() and int(bad.sum()) == 83


def pack(weight: torch.Tensor, packed: str) -> tuple[Any, dict[str, Any]]:
    panels: Any = px.ops.linear_pack(weight, dtype=packed)
    return (panels[0], {"scales": panels[1]}) if packed == "int8" else (panels, {})


def normal(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(sum(shape)).standard_normal(shape)).float()


def as_double(arrays: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.double().numpy() if torch.is_tensor(value) else value
        for name, value in arrays.items()
    }


TENSOR_CORES = [  # dtypes of x and weights that take them
    (torch.bfloat16, "bfloat16"),
    (torch.bfloat16, "int8"),
    (torch.float16, "int8"),
]


# K and N: one block, whole blocks, tails of 64 and 16, odd; more blocks than any buffers hold.
@pytest.mark.parametrize(("k", "n"), [(7, 3), (64, 128), (65, 129), (200, 82), (704, 64)])
@pytest.mark.parametrize("rows", [1, 7, 8, 16, 17, 63, 64, 65, 130])
@pytest.mark.parametrize(("dtype", "packed"), TENSOR_CORES)
def test_edges(dtype: torch.dtype, packed: str, rows: int, k: int, n: int) -> None:
    """Rows, K and N beside what a block has, against float64; with an activation and all else."""
    activation = ["none", "gelu", "gelu_tanh", "silu"][(rows + k) % 4]
    panels, options = pack(normal(n, k) / k**0.5, packed)
    x = normal(2, rows, 2 * k + 8).to(dtype)[..., k // 8 * 8 : k // 8 * 8 + k]  # strided
    options |= {"bias": normal(n), "gate": normal(2, n).to(dtype), "activation": activation}
    residual = normal(2, rows, n)
    want = px.reference.linear(
        x.double().numpy(),
        panels.double().numpy(),
        n,
        residual=residual.double().numpy(),
        **as_double(options),
    )
    out = torch.full((2, rows, n + 5), torch.nan)
    out[..., :n] = residual
    got = px.ops.linear(x, panels, n, residual=out[..., :n], out=out[..., :n], **options)
    assert got.data_ptr() == out.data_ptr() and out[..., n:].isnan().all()
    torch.testing.assert_close(got.double(), torch.from_numpy(want), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("dtype", "packed"), TENSOR_CORES)
def test_outputs_of_each_type(dtype: torch.dtype, packed: str) -> None:
    """Pairs of features are stored at once where they are aligned: the same bits where not."""
    panels, options = pack(normal(82, 96) / 10, packed)
    x, residual = normal(3, 9, 96).to(dtype), normal(3, 9, 84)
    exact = px.ops.linear(x, panels, 82, out=torch.empty(3, 9, 82), **options)
    for kind in (torch.float32, torch.bfloat16, torch.float16):
        add = residual.to(kind)
        want = (exact + add[..., :82].float()).to(kind)
        for shift in (0, 1):
            out = torch.empty(3, 9, 90, dtype=kind)[..., shift : shift + 82]
            for of in (0, 1):
                rest = add.roll(of, -1)[..., of : of + 82]
                px.ops.linear(x, panels, 82, residual=rest, out=out, **options)
                assert torch.equal(out, want)


@pytest.mark.parametrize(("dtype", "packed"), TENSOR_CORES)
def test_a_row_among_very_many(dtype: torch.dtype, packed: str, capability: int) -> None:
    """Where blocks of 128 rows and 128 features fill a GPU they are taken: the same bits."""
    k, n, rows = 272, 128 * 64 + 50, 131
    panels, options = pack(normal(n, k) / k**0.5, packed)
    options["bias"] = normal(n)
    x = normal(1, rows, k).to(dtype)
    out = px.ops.linear(x, panels, n, activation="silu", **options)
    for few in (slice(0, 1), slice(60, 100), slice(125, 131)):
        same = px.ops.linear(x[:, few].contiguous(), panels, n, activation="silu", **options)
        assert torch.equal(same, out[:, few])
    want = px.reference.linear(
        x[:, 120:].double().numpy(),
        panels.double().numpy(),
        n,
        activation="silu",
        **as_double(options),
    )
    tolerance = 2e-2 if dtype == torch.bfloat16 else 2e-3
    torch.testing.assert_close(
        out[:, 120:].double(), torch.from_numpy(want), atol=tolerance, rtol=tolerance
    )
