from __future__ import annotations

import math
from collections.abc import Sequence

from .. import _native
from .._arrays import Array, empty, shape


def lincomb(
    inputs: Sequence[Array],
    coefficients: Sequence[Sequence[float]],
    *,
    out: Sequence[Array] | None = None,
    clamp: float | None = None,
    noise_scale: Sequence[float] | None = None,
    seed: int = 0,
    offset: int = 0,
) -> list[Array]:
    """Linear combinations of n arrays into m arrays, in one pass over memory.

    out[j] = clamp(sum_i coefficients[j][i] * inputs[i] + noise_scale[j] * normal)

    Args:
        inputs: 1 to 16 arrays of one shape, dtype (float32, bfloat16, float16, float64) and device.
        coefficients: (m, n) numbers on the host, m at most 3. Accumulation is in float32
            (float64 for float64 arrays).
        out: m arrays to write; may be among the inputs.
        clamp: limits every output to [-clamp, clamp].
        noise_scale: m numbers; the normal noise is one Philox4x32-10 stream keyed by (seed, offset)
            and the position in the array, shared by all outputs.

    Returns:
        `out`.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit.

    This is the step of every diffusion and flow sampler that is affine in sample, model outputs and
    noise (DDIM, DPM-Solver++, UniPC, Euler, ...).
    """
    if not inputs:
        raise ValueError("lincomb: argument 'inputs' expected 1 to 16 arrays, got 0")
    if out is None:
        size = shape(inputs[0], "lincomb", "inputs")
        out = [empty(inputs[0], size) for _ in coefficients]
    flat = [c for row in coefficients for c in row]
    limit = math.inf if clamp is None else clamp
    _native.lincomb(out, inputs, flat, limit, noise_scale or (), seed, offset)
    return list(out)
