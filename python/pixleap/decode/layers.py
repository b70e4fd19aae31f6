"""Weights of a torch module, packed once, with its forward pass as native calls."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import ops


class PackedLinear:
    """`nn.Linear` with prepacked weights: calls take and return (B, L, features)."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: str) -> None:
        self.out_features, self.in_features = weight.shape
        self.packed = ops.linear_pack(weight.detach(), dtype=dtype)
        self.bias = None if bias is None else bias.detach()

    @classmethod
    def of(cls, linear: nn.Linear, dtype: str = "float32") -> PackedLinear:
        return cls(linear.weight, linear.bias, dtype)

    def __call__(self, x: Tensor, **epilogue: Any) -> Tensor:
        return ops.linear(x, self.packed, self.out_features, bias=self.bias, **epilogue)


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


class Scratch:
    """Named work buffers that grow and are reused: no allocation in steady state."""

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._buffers: dict[str, Tensor] = {}
        self._views: dict[str, tuple[tuple[int, ...], Tensor]] = {}  # what was last asked for

    def get(self, name: str, *shape: int) -> Tensor:
        """An uninitialised contiguous tensor of this shape; the same memory at the next call."""
        last = self._views.get(name)
        if last is not None and last[0] == shape:
            return last[1]
        count = 1
        for n in shape:
            count *= n
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < count:
            buffer = self._buffers[name] = self._like.new_empty(count)
        view = buffer[:count].view(shape)
        self._views[name] = (shape, view)
        return view


def attend(q: Tensor, cache: Any, out: Tensor, **options: Any) -> None:
    """Attention of q (B, H, L, D) over a KVCache into out (B, L, H * D)."""
    batch, heads, length, width = q.shape
    view = out.view(batch, length, heads, width).transpose(1, 2)
    ops.attention(q, cache.keys, cache.values, out=view, **options)


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
