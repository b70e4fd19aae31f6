from __future__ import annotations

from .. import _native
from .._arrays import Array, empty, shape


def next_scale_update(
    tokens: Array,
    codebook: Array,
    phi_weight: Array,
    phi_bias: Array,
    f_hat: Array,
    next_size: int,
    *,
    phi_ratio: float = 0.5,
    out: tuple[Array, Array] | None = None,
) -> tuple[Array, Array]:
    """Adds one scale's tokens to the feature map and reads off the next scale's input.

    h = codebook[tokens] as an (n, n) map, upsampled to (H, H) by bicubic interpolation (PyTorch's:
    A = -0.75, borders clamped, align_corners=False) unless n == H, then
    (1 - phi_ratio) * h + phi_ratio * conv3x3(h) with zero padding. f_hat grows by it, and is
    averaged over areas (adaptive average pooling) to next_size.

    Args:
        tokens: (B, n * n) int64, n from 1 to H, row by row.
        codebook: (V, C) float32, unit last stride.
        phi_weight, phi_bias: (C, C, 3, 3) and (C,) float32, contiguous.
        f_hat: (B, C, H, H) float32, unit last stride.
        next_size: side m of the next scale, 0 to H; 0 for the last scale.
        phi_ratio: share of the convolution.
        out: (f_hat_new, next_input) to write; f_hat_new may be `f_hat`.

    Returns:
        f_hat_new (B, C, H, H) and next_input (B, m * m, C).

    Raises:
        ValueError: a token that is no row of the codebook (nothing is written), shapes or strides
            that do not fit.
        TypeError: dtypes or devices that do not fit.

    This is one step of VAR's multi-scale residual quantiser (Tian et al., 2024).
    """
    if out is None:
        size = shape(f_hat, "next_scale_update", "f_hat", 4)
        out = (empty(f_hat, size), empty(f_hat, (size[0], next_size * next_size, size[1])))
    f_hat_new, next_input = out
    _native.next_scale_update(
        f_hat_new,
        next_input,
        tokens,
        codebook,
        phi_weight,
        phi_bias,
        f_hat,
        next_size,
        phi_ratio,
    )
    return f_hat_new, next_input
