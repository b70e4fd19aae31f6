from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .. import _native
from .._arrays import Array, empty, shape


def lincomb(
    inputs: Sequence[Array],
    coefficients: Sequence[Sequence[float]] | Sequence[float] | Array,
    *,
    weights: Sequence[Array | None] | None = None,
    out: Sequence[Array] | None = None,
    clamp: float | None = None,
    noise_scale: Sequence[float] | Array | None = None,
    seed: int = 0,
    offset: int = 0,
    first_element: int = 0,
) -> list[Array]:
    """Linear combinations of n arrays into m arrays, in one pass over memory.

    out[j] = clamp(sum_i coefficients[j][i] * weights[i] * inputs[i] + noise_scale[j] * normal)

    Args:
        inputs: 1 to 16 arrays of one shape and device, each float32, bfloat16, float16 or float64.
        coefficients: (m, n) numbers on the host, m at most 4; or the same m * n numbers as a flat
            list or tuple, row after row, which costs a call the least; or a (B, m, n) float32 or
            float64 array on the device of the inputs, with coefficients of each sample (axis 0).
        weights: None, or for each input None or an array that multiplies it elementwise, with the
            shape of one sample, inputs[i].shape[1:], or of the inputs (expanded views are welcome).
        out: m arrays to write, each of any of these dtypes; may be among the inputs. None allocates
            them like inputs[0].
        clamp: limits every output to [-clamp, clamp].
        noise_scale: m numbers, or a (B, m) array as for coefficients. The normal noise is one
            Philox4x32-10 stream keyed by (seed, offset) and the position in the array, shared by
            all outputs. None or zeros draw none.
        seed, offset: key of the noise stream.
        first_element: position of the first element in the noise stream, so that a part of a batch
            gets the noise that it has in the whole.

    Returns:
        `out`.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit.

    Sums are in float32; in float64 where any input, output or weight is float64. This is the step
    of every diffusion and flow sampler that is affine in sample, model outputs and noise (DDIM,
    DPM-Solver++, UniPC, Euler, ...); elementwise weights serve DPM-Solver-v3.
    """
    if not inputs:
        raise ValueError("lincomb: argument 'inputs' expected 1 to 16 arrays, got 0")
    table = noise_table = None
    flat: Sequence[Any]
    if isinstance(coefficients, (tuple, list)) and coefficients and type(coefficients[0]) is float:
        flat = coefficients
    else:
        flat, table = _coefficients(coefficients)
    if out is None:
        size = shape(inputs[0], "lincomb", "inputs")
        count = table.shape[1] if table is not None else _rows(coefficients, flat, len(inputs))
        out = [empty(inputs[0], size) for _ in range(count)]
    if noise_scale is None:
        noise_scale = ()
    elif not isinstance(noise_scale, (tuple, list)):
        noise_scale, noise_table = _noise_scale(noise_scale)
    limit = math.inf if clamp is None else clamp
    _native.lincomb(
        out, inputs, flat, table, () if weights is None else weights, limit, noise_scale,
        noise_table, seed, offset, first_element,
    )  # fmt: skip
    return out if isinstance(out, list) else list(out)


def _coefficients(c: Any) -> tuple[Sequence[Any], Array | None]:
    """(flat numbers, None) or ((), array with numbers of each sample)."""
    if len(getattr(c, "shape", ())) == 3:
        return (), c
    try:
        if getattr(c[0], "ndim", 0) == 0 and not isinstance(c[0], (tuple, list)):
            return list(c), None
        return [x for row in c for x in row], None
    except (TypeError, IndexError, KeyError):
        raise TypeError(
            "lincomb: argument 'coefficients' expected (m, n) numbers, m * n numbers or a "
            f"(B, m, n) array, got {type(c).__name__}"
        ) from None


def _rows(coefficients: Any, flat: Sequence[Any], n: int) -> int:
    """How many outputs the coefficients are for."""
    return max(1, len(flat) // n) if len(flat) == len(coefficients) else len(coefficients)


def _noise_scale(s: Any) -> tuple[Sequence[Any], Array | None]:
    """As _coefficients."""
    if len(getattr(s, "shape", ())) == 2:
        return (), s
    try:
        return list(s), None
    except TypeError:
        raise TypeError(
            "lincomb: argument 'noise_scale' expected m numbers or a (B, m) array, "
            f"got {type(s).__name__}"
        ) from None
