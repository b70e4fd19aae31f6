from __future__ import annotations

from .. import _native
from .._arrays import Array, empty, shape


def jacobi_update(
    z: Array,
    a: Array,
    b: Array,
    previous: Array,
    *,
    uncond_a: Array | None = None,
    uncond_b: Array | None = None,
    guidance: Array | None = None,
    out: tuple[Array, Array] | None = None,
) -> tuple[Array, Array]:
    """The affine inverse step of a TarFlow-like flow, with what it changed.

    x = z * exp(a') + b' with a' = a + guidance[w] * (a - uncond_a) where uncond_a is given; b'
    likewise.

    Args:
        z, a, b, previous: (B, W, C) float32, bfloat16 or float16; stride 1 along C, else any.
        uncond_a, uncond_b: (B, W, C), the unconditional half of classifier-free guidance.
        guidance: (W,) float32, needed with either of them.
        out: (x, change); x may be `previous` itself.

    Returns:
        x (B, W, C), and change (B, W) float32: the largest |x - previous| of a token, as stored;
        infinite where x or previous is not finite.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit.

    Source: TarFlow (arXiv:2412.06329), its Gauss-Seidel-Jacobi sampling (arXiv:2505.12849).
    """
    if out is None:
        batch, tokens, _ = size = shape(z, "jacobi_update", "z", 3)
        out = empty(z, size), empty(z, (batch, tokens), "float32")
    x, change = out
    _native.jacobi_update(x, change, z, a, b, previous, uncond_a, uncond_b, guidance)
    return x, change
