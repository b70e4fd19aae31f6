from __future__ import annotations

from typing import Any

from .. import _native
from .._arrays import Array, empty, shape

PANEL = 16  # output features per panel
STEPS = {"bfloat16": 2, "int8": 4}  # of K that lie side by side


def linear_pack(weight: Array, *, dtype: str | None = None, out: Any = None) -> Any:
    """Packs the weights of a linear layer for `linear`, once.

    Args:
        weight: (N, K) float32, bfloat16 or float16, unit last stride.
        dtype: "float32", "bfloat16" or "int8"; None is that of `out`, else "bfloat16" for bfloat16
            weights and "float32" for the others. NumPy has no bfloat16: pass `out` there.
        out: packed array to write, contiguous; for int8 the pair (packed, scales).

    Returns:
        Panels of P = ceil(N / 16) times 16 output features, zero padded, in one layout for every
        machine: (P, K, 16) float32, or (P, ceil(K / 2), 16, 2) bfloat16, where
        packed[p, k2, n, j] = weight[16 p + n, 2 k2 + j].

        For int8 the pair (packed, scales): (P, ceil(K / 4), 16, 4) int8, where packed[p, k4, n, j]
        is of weight[16 p + n, 4 k4 + j], and (N,) float32. scales[n] = max over k of
        |weight[n, k]| / 127; the integers are weight[n, k] / scales[n] (a float32 division) to the
        nearest, ties to even, in [-127, 127]. A row of zeros has scale 0; one with NaN or infinity
        has zeros and scale NaN.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit.

    int8 is weight-only quantisation, symmetric, per output feature: the "vector-wise" weights of
    LLM.int8() (Dettmers et al., 2022), with activations left as they are.
    """
    name = dtype or ""
    if out is None:
        n, k = shape(weight, "linear_pack", "weight", 2)
        if dtype is None:
            name = "bfloat16" if str(weight.dtype).endswith("bfloat16") else "float32"
        panels, steps = -(-n // PANEL), STEPS.get(name)
        if steps is None:
            out = empty(weight, (panels, k, PANEL), "float32")
        else:
            out = empty(weight, (panels, -(-k // steps), PANEL, steps), name)
        if name == "int8":
            out = (out, empty(weight, (n,), "float32"))
    packed, *scales = (list(out) or [None]) if isinstance(out, (list, tuple)) else [out]
    _native.linear_pack(packed, scales, weight, name)
    return (packed, *scales) if isinstance(out, (list, tuple)) else packed
