from __future__ import annotations

from typing import Any

from .. import _native
from .._arrays import Array, empty, shape


def dynamic_threshold(
    x: Array,
    *,
    ratio: float = 0.995,
    max_value: float = 1.0,
    min_value: float = 1.0,
    out: Array | None = None,
    return_scale: bool = False,
) -> Any:
    """Clamps every sample to a quantile of its magnitudes and divides by it.

    s = clamp(quantile(|x|, ratio), min_value, max_value) per sample, out = clamp(x, -s, s) / s

    Args:
        x: (B, ...) float32, bfloat16 or float16; each sample contiguous and not empty.
        ratio: in [0, 1]. The quantile over all but the first axis is exact, with linear
            interpolation between neighbours, for any number of elements.
        max_value: limits s; at least min_value. diffusers calls it sample_max_value.
        min_value: limits s from below; above 0.
        out: like x, may be x.
        return_scale: whether to return s as well.

    Returns:
        `out`, or (out, s) with s (B,) float32.

    Raises:
        ValueError, TypeError: values, shapes, dtypes or devices that do not fit.

    A sample with a NaN becomes NaN throughout, as torch.quantile has it. The operation is that of
    diffusers' `_threshold_sample`, which computes the rank in float32 instead of float64.

    Source: Saharia et al., "Photorealistic text-to-image diffusion models with deep language
    understanding" (Imagen, 2022), section 2.3.
    """
    size = shape(x, "dynamic_threshold", "x")
    if out is None:
        out = empty(x, size)
    scale = empty(x, size[:1], "float32")
    _native.dynamic_threshold(out, scale, x, ratio, max_value, min_value)
    return (out, scale) if return_scale else out
