"""A ring of raw features and their forecast in one pass."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import numpy as np

from .._arrays import Array, empty, is_torch, shape
from ..ops import lincomb
from .weights import FORMULAS

MAX_ORDER = 4


class FeatureRing:
    """The last order + 1 features with their times; forecasts the feature at another time.

    A push does no arithmetic: it swaps a pointer, or copies into buffers allocated once. A
    forecast is one `pixleap.ops.lincomb` per array. TaylorSeer's factors take the same memory, but
    `order` differences per update and 3 (order + 1) passes per forecast.

    A feature is an array, or a tuple of arrays of any shapes for blocks of several streams: torch
    tensors or NumPy arrays, float32, bfloat16, float16 or float64, unit stride along the last axis.

    Args:
        order: 0 (the newest feature is reused) to 4. While fewer than order + 1 features are held,
            the forecast has the order that they allow.
        formula: "lagrange" (`lagrange_weights`) or "taylor" (`taylor_weights`, TaylorSeer's).
        copy: False keeps a reference to what is pushed, which must then not be written to later;
            True copies it.
        max_amplification: the order of a forecast is lowered until the magnitudes of its weights
            add up to no more than this: the factor by which rounding errors of the features can
            grow. It matters where a forecast reaches far compared with the spacing of the features:
            steps 0, 1, 2 carried to step 6 weigh 10, -24, 15. On an even spacing a reach of one
            interval takes 2^(order + 1) - 1. None for no limit.

    Raises:
        ValueError: an order or formula that is none, a limit below 1.
    """

    def __init__(
        self,
        order: int,
        *,
        formula: str = "lagrange",
        copy: bool = False,
        max_amplification: float | None = None,
    ) -> None:
        if not isinstance(order, int) or isinstance(order, bool) or not 0 <= order <= MAX_ORDER:
            raise ValueError(
                f"FeatureRing: argument 'order' expected an integer from 0 to {MAX_ORDER}, "
                f"got {order!r}"
            )
        if formula not in FORMULAS:
            raise ValueError(
                f"FeatureRing: argument 'formula' expected one of {sorted(FORMULAS)}, "
                f"got {formula!r}"
            )
        if max_amplification is not None and not max_amplification >= 1:
            raise ValueError(
                "FeatureRing: argument 'max_amplification' expected a number >= 1 or None, "
                f"got {max_amplification!r}"
            )
        self.order = order
        self.formula = formula
        self.max_amplification = max_amplification
        self._copy = copy
        self._times: deque[float] = deque()
        self._features: deque[tuple[Array, ...]] = deque()
        self._owned: deque[bool] = deque()  # whether the ring may write into the feature
        self._reserved: tuple[Array, ...] | None = None
        self._layout: tuple[Any, ...] | None = None
        self._is_tuple = False

    def __len__(self) -> int:
        return len(self._times)

    @property
    def times(self) -> tuple[float, ...]:
        """Times of the features held, oldest first."""
        return tuple(self._times)

    @property
    def features(self) -> list[Any]:
        """The features held, oldest first, as they were pushed (or their copies)."""
        return [f if self._is_tuple else f[0] for f in self._features]

    def clear(self) -> None:
        """Forgets all features, and their shapes."""
        self._times.clear()
        self._features.clear()
        self._owned.clear()
        self._reserved = self._layout = None

    def push(self, time: float, feature: Any) -> None:
        """Adds the feature at `time`; the oldest goes when the ring is full.

        Raises:
            ValueError: a time that is not finite or is held already; shapes, dtypes, devices or a
                number of arrays other than before (`clear` first).
            TypeError: something that is no array.
        """
        now = _time("push", time)
        if now in self._times:
            raise ValueError(
                f"FeatureRing.push: argument 'time' expected a time other than {self.times}, "
                f"got {now}: each feature needs its own"
            )
        arrays = self._arrays(feature)
        reserved, self._reserved = self._reserved, None
        own = reserved is not None and all(a is b for a, b in zip(arrays, reserved, strict=True))
        if self._copy and not own:
            arrays, own = _copied(arrays, reserved or self._take_buffers(arrays)), True
        elif len(self._times) > self.order:
            self._drop()
        self._times.append(now)
        self._features.append(arrays)
        self._owned.append(own)

    def reserve(self, feature: Any) -> Any:
        """Buffers of the shapes of `feature` to compute the next feature into.

        The next push of exactly these stores them without a copy. Where the ring is full, its
        oldest feature is given up for them at once.
        """
        arrays = self._arrays(feature)
        if self._reserved is None:
            self._reserved = self._take_buffers(arrays)
        return self._reserved if self._is_tuple else self._reserved[0]

    def weights(self, time: float) -> np.ndarray:
        """Weights of the forecast at `time`, one per feature held; zeros where the order is lowered
        by `max_amplification`."""
        weights = self._weights(_time("weights", time))
        return np.array([0.0] * (len(self) - len(weights)) + weights)

    def forecast(self, time: float, out: Any = None, *, base: Any = None) -> Any:
        """The feature at `time`: sum_i weights[i] * feature[i], in one pass.

        Args:
            time: in the units of the pushes.
            out: array (or tuple of arrays) to write; fresh ones where None.
            base: array (or tuple) to add: the forecast of a residual on top of its input.

        Raises:
            RuntimeError: nothing was pushed yet.
            ValueError, TypeError: `out` or `base` that do not fit, from `pixleap.ops.lincomb`.
        """
        weights = self._weights(_time("forecast", time))
        held = list(self._features)[-len(weights) :]
        outs = self._matching("out", out)
        bases = self._matching("base", base)
        coefficients = [weights if base is None else [*weights, 1.0]]
        results = []
        for i in range(len(held[0])):
            inputs = [arrays[i] for arrays in held]
            if bases is not None:
                inputs.append(bases[i])
            target = None if outs is None else [outs[i]]
            results += lincomb(inputs, coefficients, out=target)
        return tuple(results) if self._is_tuple else results[0]

    def _weights(self, time: float) -> list[float]:
        if not self._times:
            raise RuntimeError("FeatureRing.forecast: expected a push before it, got an empty ring")
        times, formula = list(self._times), FORMULAS[self.formula]
        while True:
            weights = formula(times, time)
            limit = self.max_amplification
            if limit is None or len(times) == 1 or sum(map(abs, weights)) <= limit:
                return weights
            del times[0]

    def _arrays(self, feature: Any) -> tuple[Array, ...]:
        """The arrays of a feature, after comparison with those before."""
        is_tuple = isinstance(feature, (tuple, list))
        arrays = tuple(feature) if is_tuple else (feature,)
        if not arrays:
            raise ValueError("FeatureRing.push: argument 'feature' expected arrays, got none")
        layout = tuple(
            (shape(a, "FeatureRing.push", "feature"), str(a.dtype), str(getattr(a, "device", "")))
            for a in arrays
        )
        if self._layout is None:
            self._layout, self._is_tuple = layout, is_tuple
        elif layout != self._layout or is_tuple != self._is_tuple:
            raise ValueError(
                f"FeatureRing.push: argument 'feature' expected {_describe(self._layout)} as "
                f"before, got {_describe(layout)}; clear the ring between runs"
            )
        return arrays

    def _matching(self, name: str, value: Any) -> tuple[Array, ...] | None:
        if value is None:
            return None
        arrays = tuple(value) if self._is_tuple and isinstance(value, (tuple, list)) else (value,)
        count = len(self._features[0])
        if len(arrays) != count or isinstance(value, (tuple, list)) != self._is_tuple:
            raise ValueError(
                f"FeatureRing.forecast: argument '{name}' expected "
                f"{f'a tuple of {count} arrays' if self._is_tuple else 'an array'}, as was pushed, "
                f"got {f'{len(value)} of them' if isinstance(value, (tuple, list)) else 'one'}"
            )
        return arrays

    def _drop(self) -> tuple[Array, ...] | None:
        """Gives up the oldest feature; its buffers where they are the ring's."""
        self._times.popleft()
        arrays = self._features.popleft()
        return arrays if self._owned.popleft() else None

    def _take_buffers(self, like: tuple[Array, ...]) -> tuple[Array, ...]:
        """Buffers of the ring: those of the oldest feature once it is full."""
        spare = self._drop() if len(self._times) > self.order else None
        return spare or tuple(empty(a, a.shape) for a in like)


def _time(method: str, time: float) -> float:
    try:
        value = float(time)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"FeatureRing.{method}: argument 'time' expected a real number, "
            f"got {type(time).__name__}"
        ) from error
    if not math.isfinite(value):
        raise ValueError(
            f"FeatureRing.{method}: argument 'time' expected a finite number, got {value}"
        )
    return value


def _copied(arrays: tuple[Array, ...], buffers: tuple[Array, ...]) -> tuple[Array, ...]:
    for source, buffer in zip(arrays, buffers, strict=True):
        if is_torch(buffer):
            buffer.copy_(source)
        else:
            buffer[...] = source
    return buffers


def _describe(layout: tuple[Any, ...]) -> str:
    return ", ".join(f"{dtype} {size} {device}".rstrip() for size, dtype, device in layout)
