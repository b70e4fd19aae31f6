"""What the cases of the CUDA kernels of linear cannot say: the bits of a row alone and among
others, rows that are not aligned. In a build that emulates CUDA."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import pixleap as px
from pixleap import _native

pytestmark = [
    pytest.mark.cuda_emulated,
    pytest.mark.skipif(
        not hasattr(_native, "emulate_cuda"),
        reason="this build does not emulate CUDA (cmake -DPIXLEAP_CUDA_EMULATE=ON)",
    ),
]


@pytest.fixture(autouse=True)
def emulated() -> Iterator[None]:
    _native.emulate_cuda("shuffle", 5)
    before = _native.emulated_launches()
    yield
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
