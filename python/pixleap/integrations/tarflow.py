"""The official TarFlow (github.com/apple/ml-tarflow) with native attention; needs torch.

px.integrations.tarflow.patch(model)
model.reverse(noise, y, guidance)
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from ._attention import (
    Cache,
    Patched,
    additive,
    inference,
    scaled_dot_product_attention,
    unpatch,
)

__all__ = ["patch", "unpatch"]

_ATTRIBUTES = ("norm", "qkv", "proj", "num_heads", "sqrt_scale", "sample", "k_cache", "v_cache")


class _FusedAttention(Patched):
    """`Attention`: the lists `k_cache[which]` and `v_cache[which]` hold one tensor each."""

    causal: tuple[Any, int, bool] | None = None  # of the mask seen last

    def fused(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        temp: float = 1.0,
        which_cache: str = "cond",
    ) -> Tensor | None:
        m = self.module
        if (
            not getattr(m, "USE_SPDA", True)
            or not inference(x, mask, m.norm.weight, m.qkv.weight, m.qkv.bias, m.proj.weight)
            or x.dtype not in (torch.float32, torch.bfloat16, torch.float16)
            or x.numel() == 0
        ):
            return None
        batch, length, width = x.shape
        scale = m.sqrt_scale**2 / temp
        cache: Cache | None = None
        if m.sample:
            k_list, v_list = m.k_cache[which_cache], m.v_cache[which_cache]
            if not k_list:
                cache = Cache(self.capacity)
            elif len(k_list) == 1:
                cache = Cache.of(k_list[0], v_list[0])
            if cache is None or width // m.num_heads > 256:  # tokens put there by somebody else
                return None
        y = m.norm(x.float()).type(x.dtype)
        qkv = m.qkv(y).view(batch, length, 3, m.num_heads, width // m.num_heads)
        if cache is None:
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            causal = mask is not None and self.is_causal(mask)
            seen = None if mask is None or causal else mask.bool()
            out = scaled_dot_product_attention(q, k, v, seen, is_causal=causal, scale=scale)
            if out is None:
                return None
            joined = out.transpose(1, 2).reshape(batch, length, width)
        else:
            added = None if mask is None else additive(mask.bool(), qkv.dtype)
            done = cache.attend(qkv, None, added, scale)
            if done is None:
                return None
            joined, keys, values = done
            cache.tag(keys, values)
            k_list[:], v_list[:] = [keys], [values]
        result: Tensor = m.proj(joined)
        return result

    def is_causal(self, mask: Tensor) -> bool:
        """Whether a mask (T, T) is the triangle, of which the op skips half."""
        if mask.ndim != 2 or mask.shape[0] != mask.shape[1]:
            return False
        if self.causal is not None and not mask.is_inference():
            known, version, answer = self.causal
            if known() is mask and version == mask._version:
                return answer
        answer = torch.equal(mask.bool(), torch.ones_like(mask, dtype=torch.bool).tril())
        if not mask.is_inference():
            self.causal = weakref.ref(mask), mask._version, answer
        return answer


def patch(model: nn.Module, max_length: int | None = None) -> nn.Module:
    """Fuses the attention layers of an official TarFlow (transformer_flow.py: `Attention`), in
    place.

    Args:
        model: any module that holds them. They are known by their attributes (norm, qkv, proj,
            num_heads, sqrt_scale, sample, k_cache, v_cache).
        max_length: tokens that the caches make room for at once; by default the side of the
            `attn_mask` of the block that a layer belongs to. Without it, and beyond it, caches grow
            by doubling.

    Returns:
        `model`. `unpatch` undoes it.

    Raises:
        ValueError: no such module.

    In sample mode a step appends keys and values in place, where the official one joins a list of
    all tokens by `torch.cat`; the lists of `k_cache` and `v_cache` then hold one (B, H, T, D) view.
    Whole sequences use a causal mask, which skips half of the scores. Parameters stay as they are.
    With gradients, under torch.compile, with USE_SPDA = False, in float64 and on devices without
    kernels the module's own forward runs.
    """
    blocks = [
        model,
        *(b for b in model.modules() if isinstance(getattr(b, "attn_mask", 0), Tensor)),
    ]
    found: dict[nn.Module, int] = {}
    for block in blocks:
        known = getattr(block, "attn_mask", None)
        length = max_length or (int(known.shape[-1]) if isinstance(known, Tensor) else 0)
        for module in block.modules():
            if all(hasattr(module, name) for name in _ATTRIBUTES):
                found[module] = length
    if not found:
        raise ValueError(
            "patch: argument 'model' expected Attention modules of TarFlow, got none in "
            f"{type(model).__name__}"
        )
    unpatch(model)
    for module, length in found.items():
        _FusedAttention(module, length)
    return model
