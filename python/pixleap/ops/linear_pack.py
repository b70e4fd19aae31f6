from __future__ import annotations

from .. import _native
from .._arrays import Array, empty, shape

PANEL = 16  # output features per panel


def linear_pack(weight: Array, *, dtype: str | None = None, out: Array | None = None) -> Array:
    """Packs the weights of a linear layer for `linear`, once.

    Args:
        weight: (N, K) float32, bfloat16 or float16, unit last stride.
        dtype: "float32" or "bfloat16"; None is that of `out`, else "bfloat16" for bfloat16 weights
            and "float32" for the others. NumPy has no bfloat16: pass `out` there.
        out: packed array to write, contiguous.

    Returns:
        Panels of P = ceil(N / 16) times 16 output features, zero padded, in one layout for every
        machine: (P, K, 16) float32, or (P, ceil(K / 2), 16, 2) bfloat16, where
        packed[p, k2, n, j] = weight[16 p + n, 2 k2 + j].

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit.
    """
    name = dtype or ""
    if out is None:
        n, k = shape(weight, "linear_pack", "weight", 2)
        if dtype is None:
            name = "bfloat16" if str(weight.dtype).endswith("bfloat16") else "float32"
        panels = -(-n // PANEL)
        if name == "bfloat16":
            out = empty(weight, (panels, -(-k // 2), PANEL, 2), name)
        else:
            out = empty(weight, (panels, k, PANEL), "float32")
    _native.linear_pack(out, weight, name)
    return out
