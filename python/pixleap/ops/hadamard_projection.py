from __future__ import annotations

from .. import _native
from .._arrays import Array, empty, shape, workspace


def hadamard_projection(x: Array, flips: Array, *, count: int, out: Array | None = None) -> Array:
    """Projections onto orthogonal directions that are close to uniform on the sphere.

    sqrt(D / d) (H S2 H S1 H S0 x)[:count] per row of x, padded with zeros to the next power of two
    D; H is the orthonormal Hadamard matrix, S_r flips signs. D log D steps instead of a product.

    Args:
        x: (N, d) float32, bfloat16 or float16; stride 1 along d.
        flips: (3, D) uint8, contiguous, random: where not 0, the sign is flipped.
        count: up to D projections.
        out: (count, N) float32; stride 1 along N.

    Returns:
        (count, N) float32. Directions have norm 1 where d is a power of two, else a squared norm of
        1 in the mean.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit.

    Source: Yu et al., "Orthogonal Random Features" (NeurIPS 2016).
    """
    rows, d = shape(x, "hadamard_projection", "x", 2)
    if out is None:
        out = empty(x, (max(count, 0), rows), "float32")
    # A GPU transforms rows of up to 8192 numbers in shared memory, longer ones in scratch.
    slots = min(rows, 264) if d > 8192 else 0
    scratch = workspace(x, slots << max(d - 1, 0).bit_length() >> 1)
    _native.hadamard_projection(out, scratch, x, flips, count)
    return out
