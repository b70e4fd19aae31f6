"""Weights of a torch module, packed once, with its forward pass as native calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import ops
from .._arrays import Array

WEIGHTS = ("float32", "bfloat16", "int8")  # what decoders keep their matrices in


class PackedLinear:
    """`nn.Linear` with prepacked weights: calls take and return (B, L, features).

    Raises:
        ValueError: a dtype that is none of `WEIGHTS`; decoders pass their argument `weights` on.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: str) -> None:
        if dtype not in WEIGHTS:
            raise ValueError(
                f"decode: argument 'weights' expected one of {', '.join(WEIGHTS)}, got {dtype!r}"
            )
        self.out_features, self.in_features = weight.shape
        packed = ops.linear_pack(weight.detach(), dtype=dtype)
        self.scales: Tensor | None = None  # per output feature, of int8
        if dtype == "int8":
            packed, self.scales = packed
        self.packed = packed
        self.bias = None if bias is None else bias.detach()

    @classmethod
    def of(cls, linear: nn.Linear, dtype: str = "float32") -> PackedLinear:
        return cls(linear.weight, linear.bias, dtype)

    def __call__(self, x: Array, **epilogue: Any) -> Tensor:
        return ops.linear(
            x, self.packed, self.out_features, scales=self.scales, bias=self.bias, **epilogue
        )

    @property
    def weight_bytes(self) -> int:
        """Bytes of the packed weights, scales included."""
        tensors = [self.packed] if self.scales is None else [self.packed, self.scales]
        return sum(t.numel() * t.element_size() for t in tensors)


class Norm:
    """Parameters of `nn.LayerNorm` for the native op."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        self.weight = norm.weight.detach() if norm.elementwise_affine else None
        self.bias = norm.bias.detach() if norm.elementwise_affine else None
        self.eps = norm.eps

    def __call__(self, x: Tensor, out: Tensor, **modulation: Any) -> Tensor:
        return ops.layer_norm(
            x, weight=self.weight, bias=self.bias, eps=self.eps, out=out, **modulation
        )


@dataclass(frozen=True)
class Ragged:
    """Sequences with different caches in packed rows, for one call of each op per layer: int64
    arrays on the host as `pixleap.ops.kv_append_varlen` takes them. Sequence i has the rows
    offsets[i] .. offsets[i + 1] - 1, which are tokens positions[i] to lengths[i] - 1 of slots[i].
    """

    offsets: np.ndarray
    positions: np.ndarray
    lengths: np.ndarray
    slots: np.ndarray

    @classmethod
    def of(cls, positions: np.ndarray, counts: np.ndarray, slots: np.ndarray) -> Ragged:
        """Sequences of `counts` rows, one after the other."""
        offsets = np.zeros(len(counts) + 1, np.int64)
        np.cumsum(counts, out=offsets[1:])
        return cls(offsets, positions, positions + counts, slots)


class Scratch:
    """Named work buffers that grow and are reused: no allocation in steady state."""

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._buffers: dict[str, Tensor] = {}
        self._views: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    def get(self, name: str, *shape: int) -> Tensor:
        """An uninitialised contiguous tensor of this shape; the same memory at the next call, and
        for other shapes of the same name."""
        view = self._views.get((name, shape))
        if view is None:
            view = self._new_view(name, shape)
        return view

    def _new_view(self, name: str, shape: tuple[int, ...]) -> Tensor:
        count = 1
        for n in shape:
            count *= n
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < count:
            buffer = self._buffers[name] = self._like.new_empty(count)
            self._views.clear()  # of the old memory
        if len(self._views) >= 1024:
            self._views.clear()
        view = self._views[name, shape] = buffer[:count].view(shape)
        return view


def check_labels(decoder: str, labels: Tensor, batch: int, largest: int) -> None:
    """Class labels are integers (batch,) up to `largest`; negative ones mean no label."""
    if labels.is_floating_point() or tuple(labels.shape) != (batch,):
        raise ValueError(
            f"{decoder}: argument 'labels' expected shape ({batch},) of integers, got "
            f"{tuple(labels.shape)} of {labels.dtype}"
        )
    if batch and int(labels.max()) > largest:
        raise ValueError(
            f"{decoder}: argument 'labels' expected numbers below {largest + 1}, got "
            f"{int(labels.max())}"
        )


def float_tensor(x: Tensor) -> Tensor:
    """Detached contiguous float32."""
    return x.detach().to(torch.float32).contiguous()
