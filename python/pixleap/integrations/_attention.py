"""Native attention in the place of torch's, for the models of other people."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from .. import _native, masks, ops

T = TypeVar("T")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_MAX_DIM = 256
_without_kernel: set[str] = set()  # ops that this build lacks for CUDA


def native(op: str, device: torch.device, call: Callable[[], T]) -> T | None:
    """What `call` returns; None where the op has no kernel for the device."""
    if device.type == "cpu":
        return call()
    if device.type != "cuda" or not _native.built_with_cuda or op in _without_kernel:
        return None
    try:
        return call()
    except RuntimeError as error:
        if "no CUDA kernel" not in str(error):
            raise
        _without_kernel.add(op)
        return None


def inference(*tensors: Tensor | None) -> bool:
    """Whether the native ops may take these: plain tensors, and no gradient is asked for."""
    grad = torch.is_grad_enabled()
    for x in tensors:
        if x is not None and not (
            type(x) in (Tensor, torch.nn.Parameter)
            and x.device.type in ("cpu", "cuda")
            and not (grad and x.requires_grad)
        ):
            return False
    return True


def autocast_dtype(device: str) -> torch.dtype | None:
    """What autocast makes of floating arguments here, or None."""
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor | None:
    """A mask that is added to scores: True becomes 0 and False -inf. None: of no usable dtype."""
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(
            ~mask, -torch.inf
        )
    return mask if mask.dtype in (dtype, torch.float32) else None


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    mask: Any = None,
) -> Tensor | None:
    """As torch's function of this name, or None for a call that `pixleap.ops.attention` does not
    cover: gradients, dropout, other dtypes or devices, heads wider than 256, other ranks.

    mask: one of `pixleap.masks`, or an array to add, in the place of `attn_mask`.

    Returns:
        (B, H, L, D) whose memory is laid out as (B, L, H, D): joining the heads copies nothing.
    """
    if not inference(query, key, value, attn_mask) or dropout_p > 0.0:
        return None
    dtype = autocast_dtype(query.device.type)
    if dtype is not None:
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        if attn_mask is not None and attn_mask.is_floating_point():
            attn_mask = attn_mask.to(dtype)
    if not (
        query.dtype in _DTYPES
        and query.dtype == key.dtype == value.dtype
        and query.ndim == key.ndim == 4
        and key.shape == value.shape
        and query.shape[0] == key.shape[0]
        and query.shape[3] == key.shape[3] <= _MAX_DIM
        and (query.shape[1] == key.shape[1] or (enable_gqa and query.shape[1] % key.shape[1] == 0))
        and query.numel()
        and key.numel()
    ):
        return None
    if attn_mask is not None:
        if is_causal or mask is not None or attn_mask.ndim > 4:
            return None
        mask = additive(attn_mask, query.dtype)
        if mask is None:
            return None
    elif is_causal:
        if query.shape[2] != key.shape[2] or mask is not None:
            return None  # torch aligns the triangle at the first key
        mask = masks.causal()
    q, k, v = (x if x.stride(3) == 1 else x.contiguous() for x in (query, key, value))
    batch, heads, length, dim = q.shape
    out = q.new_empty(batch, length, heads, dim).transpose(1, 2)
    return native(
        "attention", q.device, lambda: ops.attention(q, k, v, mask=mask, scale=scale, out=out)
    )


class Cache:
    """Keys and values of one layer, written in place. Models keep them as the tensors that their
    own code would make by `torch.cat`; these are views here, and carry the cache with them."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.length = capacity, 0
        self.buffers: tuple[Tensor, Tensor] | None = None

    @staticmethod
    def of(keys: Tensor, values: Tensor) -> Cache | None:
        """The cache whose latest views these are."""
        cache: Cache | None = getattr(keys, "_pixleap_cache", None)
        if cache is None:
            return None
        same = getattr(values, "_pixleap_cache", None) is cache
        return cache if same and getattr(keys, "_pixleap_length", -1) == cache.length else None

    def attend(
        self, qkv: Tensor, q_scale: Tensor | None, mask: Any, scale: float
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """Takes in qkv (B, L, 3, H, D), see `pixleap.ops.kv_append`, and attends to all tokens.

        Returns:
            the result (B, L, H * D), keys and values (B, H, length, D); None, and nothing is
            changed, where the ops have no kernel for the device.
        """
        return native("attention", qkv.device, lambda: self._attend(qkv, q_scale, mask, scale))

    def _attend(
        self, qkv: Tensor, q_scale: Tensor | None, mask: Any, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, count, _, heads, dim = qkv.shape
        end = self.length + count
        k, v = self._room(qkv, end)
        q, _, _ = ops.kv_append(qkv, k, v, self.length, q_scale=q_scale)
        keys, values = k[:, :, :end], v[:, :, :end]
        joined = qkv.new_empty(batch, count, heads * dim)
        out = joined.view(batch, count, heads, dim).transpose(1, 2)
        ops.attention(q, keys, values, mask=mask, scale=scale, out=out)
        self.length = end
        return joined, keys, values

    def tag(self, *views: Tensor) -> None:
        """Lets views of the present tokens carry the cache."""
        for view in views:
            view._pixleap_cache = self  # type: ignore[attr-defined]
            view._pixleap_length = self.length  # type: ignore[attr-defined]

    def _room(self, qkv: Tensor, end: int) -> tuple[Tensor, Tensor]:
        """Buffers for `end` tokens: as many as were asked for, then by doubling."""
        old = self.buffers
        if old is not None and end <= old[0].shape[2]:
            return old
        capacity = max(self.capacity, end if old is None else max(end, 2 * old[0].shape[2]))
        batch, _, _, heads, dim = qkv.shape
        k, v = (qkv.new_empty(batch, heads, capacity, dim) for _ in range(2))
        if old is not None:
            for new, x in ((k, old[0]), (v, old[1])):
                new[:, :, : self.length] = x[:, :, : self.length]
        self.buffers = k, v
        return k, v


class Patched:
    """One attention module of somebody's model with `forward` replaced; subclasses say by what.

    `fused` returns None for what it does not cover: the module's own forward takes that."""

    def __init__(self, module: torch.nn.Module, capacity: int) -> None:
        self.module: Any = module
        self.capacity = capacity
        self.original = module.forward
        self.had_own = "forward" in vars(module)
        module.forward = self.forward  # type: ignore[method-assign]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = None if torch.compiler.is_compiling() else self.fused(*args, **kwargs)
        return self.original(*args, **kwargs) if out is None else out

    def fused(self, *args: Any, **kwargs: Any) -> Tensor | None:
        raise NotImplementedError

    def restore(self) -> None:
        if self.had_own:
            self.module.forward = self.original
        else:
            del self.module.forward


def unpatch(model: torch.nn.Module) -> None:
    """Gives all patched modules their own forward back."""
    for module in model.modules():
        patched = getattr(vars(module).get("forward"), "__self__", None)
        if isinstance(patched, Patched):
            patched.restore()
