"""Features of samples, as every sample-set metric takes them."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import ops
from .._arrays import is_torch

Array = Any  # a NumPy array or torch tensor


def to_numpy(function: str, name: str, x: Array) -> np.ndarray:
    """A torch tensor or anything array-like as NumPy, on the host; bfloat16 as float32."""
    if is_torch(x):
        x = x.detach().cpu()
        x = (x.float() if str(x.dtype) == "torch.bfloat16" else x).numpy()
    try:
        x = np.asarray(x)
    except ValueError:
        x = np.empty(0, object)
    if x.dtype.kind not in "fiu":
        raise TypeError(f"{function}: argument '{name}' expected numbers, got dtype {x.dtype}")
    return x


def check_features(function: str, name: str, x: Array, at_least: int = 1) -> np.ndarray:
    """(N, d) finite features of at least `at_least` rows, float16 or float32 (other dtypes are
    cast to float32), rows contiguous."""
    values = to_numpy(function, name, x)
    if values.ndim != 2:
        raise ValueError(
            f"{function}: argument '{name}' expected features of shape (N, d), "
            f"got shape {values.shape}"
        )
    if values.shape[0] < at_least or values.shape[1] < 1:
        raise ValueError(
            f"{function}: argument '{name}' expected at least {at_least} samples and 1 feature, "
            f"got shape {values.shape}"
        )
    if values.dtype not in (np.float32, np.float16) or not values.dtype.isnative:
        with np.errstate(over="ignore"):  # reported below
            values = values.astype(np.float32)
    if values.shape[1] > 1 and values.strides[1] != values.itemsize:
        values = np.ascontiguousarray(values)
    # The squares of a row that is not finite do not sum to a finite number; large rows neither.
    suspect = np.flatnonzero(~np.isfinite(ops.moments(values, values)[:, 2]))
    bad = suspect[~np.isfinite(values[suspect]).all(axis=1)]
    if len(bad):
        raise ValueError(
            f"{function}: argument '{name}' expected finite float32 features, "
            f"got NaN or infinity in row {bad[0]}"
        )
    return values


def check_pair(
    function: str, x: Array, y: Array, at_least: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of features of one dimension and dtype."""
    a, b = check_features(function, "x", x, at_least), check_features(function, "y", y, at_least)
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"{function}: argument 'y' expected {a.shape[1]} features as 'x', got {b.shape[1]}"
        )
    if a.dtype != b.dtype:
        a, b = a.astype(np.float32), b.astype(np.float32)
    return a, b


def check_number(
    function: str, name: str, value: Any, low: float, high: float = np.inf, *, whole: bool = False
) -> None:
    """`low` to `high`; for real numbers `low` itself is excluded."""
    kinds = (int, np.integer) if whole else (int, float, np.integer, np.floating)
    ok = isinstance(value, kinds) and not isinstance(value, bool)
    if ok and (low <= value if whole else low < value) and value <= high and np.isfinite(value):
        return
    bound = f"an integer >= {low}" if whole else f"a finite number > {low:g}"
    if np.isfinite(high):
        bound += f" and <= {high}"
    raise ValueError(f"{function}: argument '{name}' expected {bound}, got {value!r}")


def mean_and_covariance(x: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (d,) and unbiased covariance (d, d) of some rows, in float64, in blocks."""
    blocks = [rows[i : i + 4096] for i in range(0, len(rows), 4096)]
    mean = np.sum([x[b].sum(axis=0, dtype=np.float64) for b in blocks], axis=0) / len(rows)
    scatter = np.zeros((x.shape[1], x.shape[1]))
    for block in blocks:
        centred = x[block].astype(np.float64) - mean
        scatter += centred.T @ centred
    return mean, scatter / (len(rows) - 1)
