from __future__ import annotations

from .. import _native
from .._arrays import Array, empty, shape


def layer_norm(
    x: Array,
    *,
    weight: Array | None = None,
    bias: Array | None = None,
    scale: Array | None = None,
    shift: Array | None = None,
    eps: float = 1e-6,
    out: Array | None = None,
) -> Array:
    """Layer norm over the last axis, with affine map and adaLN modulation in one pass:
    (LN(x) * weight + bias) * (1 + scale[b]) + shift[b].

    Args:
        x: (B, L, C) float32, bfloat16 or float16, unit last stride.
        weight, bias: (C,), float32 or x's dtype.
        scale, shift: (B, C), float32 or x's dtype.
        eps: added to the variance.
        out: (B, L, C) float32, bfloat16 or float16 to write, unit last stride; by default of x's
            dtype. May be `x`.

    Returns:
        `out`.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit.

    Mean and variance are computed in float32 in two passes, the second around the mean of the
    first, so that a mean far above the deviation does no harm. The modulation is that of
    Peebles and Xie, "Scalable diffusion models with transformers" (ICCV 2023).
    """
    if out is None:
        out = empty(x, shape(x, "layer_norm", "x", 3))
    _native.layer_norm(out, x, weight, bias, scale, shift, eps)
    return out
