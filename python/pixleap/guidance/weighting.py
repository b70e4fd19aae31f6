"""What stands between the two passes of a rule: per-sample sums in, per-sample weights out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import ops
from .._arrays import Array, empty, is_torch, shape
from ..ops.guidance_weights import weight_count

TINY = 1e-24  # square of the 1e-12 below which torch.nn.functional.normalize divides by 1e-12
FEW = 4  # up to so many samples plain Python numbers are faster than NumPy's vectors

Number = Any  # a float, or one number per sample: (B,) float64


def sums(a: Array, b: Array) -> Array:
    """`px.ops.moments`, (B, 6) float64: NumPy for arrays of the host, else on their device."""
    if is_torch(a) and a.device.type == "cpu":
        return ops.moments(a, b, out=np.empty((shape(a, "guidance", "output")[0], 6)))
    return ops.moments(a, b)


def weigh(cond: Array, uncond: Array | None, scale: Number, **rule: Any) -> Array:
    """Weights of `px.ops.guidance_weights`, (B, k) float64, NumPy for arrays of the host; the new
    average takes the place of the old one."""
    average = rule.get("average")
    if not isinstance(scale, float):
        rule["sample_scale"], scale = scale, 1.0
    count = weight_count(uncond, average, rule.get("base", "cond"))
    size = (shape(cond, "guidance_weights", "cond")[0], count)
    on_host = not is_torch(cond) or cond.device.type == "cpu"
    weights = np.empty(size) if on_host else empty(cond, size, "float64")
    out = weights if average is None or uncond is None else (weights, average)
    ops.guidance_weights(cond, uncond, scale, out=out, **rule)
    return weights


def root(x: Number) -> Number:
    if isinstance(x, float):
        return math.sqrt(x)
    return np.sqrt(x) if isinstance(x, np.ndarray) else x.sqrt()


def at_least(x: Number, limit: float) -> Number:
    if isinstance(x, float):
        return max(x, limit)
    return np.maximum(x, limit) if isinstance(x, np.ndarray) else x.clamp(min=limit)


def cosine(aa: Number, bb: Number, ab: Number) -> Number:
    return ab / at_least(root(aa) * root(bb), TINY)


def per_sample(rule: Callable[..., tuple[Number, ...]], table: Array, *numbers: Number) -> Array:
    """(B, k) float64 weights: `rule` on the columns of the sums (B, 6) and on `numbers`.

    The rule uses +, -, *, / and the functions above, so that it runs on floats and on vectors with
    the same bits.
    """
    batch = len(table)
    if isinstance(table, np.ndarray) and 0 < batch <= FEW:
        more = [[n] * batch if isinstance(n, float) else n.tolist() for n in numbers]
        rows = [rule(*row, *own) for row, *own in zip(table.tolist(), *more, strict=True)]
        return np.array(rows)
    return columns(rule(*table.T, *(match(n, table) for n in numbers)), batch, table)


def columns(values: Sequence[Number], batch: int, like: Array) -> Array:
    """(B, k) float64 on the device of `like`, where every value is a number or (B,)."""
    if isinstance(like, np.ndarray) or like.device.type == "cpu":
        weights = np.empty((batch, len(values)))
    else:
        weights = empty(like, (batch, len(values)), "float64")
    for i, value in enumerate(values):
        weights[:, i] = match(value, weights)
    return weights


def match(x: Number, like: Array) -> Number:
    """A number per sample on the device of `like`; floats stay."""
    if isinstance(x, float) or isinstance(like, np.ndarray) or is_torch(x):
        return x
    return like.new_tensor(x)


def combination(arrays: Sequence[Array], weights: Any, out: Array | None = None) -> Array:
    """sum_i weights[i] * arrays[i] in one pass; weights: numbers, or (B, n) of each sample."""
    if out is None:
        out = empty(arrays[0], shape(arrays[0], "guidance", "output"))
    if isinstance(weights, np.ndarray):  # one sample: plain numbers take lincomb's faster way
        coefficients = weights[:, None] if len(weights) != 1 else weights[0].tolist()
    else:
        coefficients = weights if isinstance(weights, (list, tuple)) else weights[:, None]
    return ops.lincomb(arrays, coefficients, out=[out])[0]


def batch_of(x: Array) -> int:
    return shape(x, "guidance", "output")[0]


def check_number(value: Any, where: str, name: str, low: float, high: float = math.inf) -> float:
    """A finite number in [low, high], or the error that says so."""
    if type(value) is float and low <= value <= high and math.isfinite(value):
        return value
    try:
        if isinstance(value, str):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(
            f"{where}: argument '{name}' expected a number, got {type(value).__name__}"
        ) from None
    if not (low <= number <= high and math.isfinite(number)):
        limits = f"in [{low:g}, {high:g}]" if math.isfinite(high) else f">= {low:g} and finite"
        limits = "finite" if low == -math.inf else limits
        raise ValueError(f"{where}: argument '{name}' expected a number {limits}, got {value}")
    return number


def scale_of(scale: Any, where: str, name: str = "scale") -> Number:
    """A guidance scale: a finite number as a float, or one per sample as (B,) float64."""
    if getattr(scale, "ndim", 0) == 0:
        return check_number(scale, where, name, -math.inf)
    if scale.ndim != 1:
        raise ValueError(
            f"{where}: argument '{name}' expected a number or shape (B,), "
            f"got shape {tuple(scale.shape)}"
        )
    if is_torch(scale):
        scale = scale.detach().double()
        return scale.numpy() if scale.device.type == "cpu" else scale
    return np.asarray(scale, np.float64)


def check_scale(scale: Number, array: Array, where: str, name: str = "scale") -> None:
    """That a scale per sample fits the batch."""
    if not isinstance(scale, float) and len(scale) != batch_of(array):
        raise ValueError(
            f"{where}: argument '{name}' expected {batch_of(array)} numbers, one per sample, "
            f"got {len(scale)}"
        )
