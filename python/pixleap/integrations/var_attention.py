"""The attention layers of the official VAR, fused; see `pixleap.integrations.var.patch`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._attention import Cache, Patched, additive, inference, unpatch

__all__ = ["patch", "unpatch"]

_ATTRIBUTES = (
    "mat_qkv", "q_bias", "v_bias", "zero_k_bias", "proj", "proj_drop", "num_heads", "head_dim",
    "scale", "attn_l2_norm", "kv_caching",
)  # fmt: skip


class _FusedAttention(Patched):
    """`SelfAttention`: `cached_k` and `cached_v` stay what they are there."""

    def fused(self, x: Tensor, attn_bias: Tensor | None) -> Tensor | None:
        m = self.module
        scale_mul = m.scale_mul_1H11 if m.attn_l2_norm else None
        if (
            not inference(x, attn_bias, scale_mul, m.mat_qkv.weight, m.q_bias, m.proj.weight)
            or (m.training and m.attn_drop > 0)
            or x.dtype not in (torch.float32, torch.bfloat16, torch.float16)
            or x.numel() == 0
            or m.head_dim > 256
        ):
            return None
        # With packages that want it so, the official code keeps (B, L, H, D).
        swapped = getattr(m, "using_xform", False) or (
            getattr(m, "using_flash", False) and attn_bias is None and x.dtype != torch.float32
        )
        cache: Cache | None = Cache(self.capacity if m.caching else 0)
        if m.caching and m.cached_k is not None:
            cache = Cache.of(m.cached_k, m.cached_v)
        if cache is None:  # set by somebody else
            return None
        batch, length, _ = x.shape
        bias = torch.cat((m.q_bias, m.zero_k_bias, m.v_bias))
        qkv = F.linear(x, m.mat_qkv.weight, bias).view(batch, length, 3, m.num_heads, m.head_dim)
        mask = None
        if attn_bias is not None:
            mask = additive(attn_bias, qkv.dtype)
            if mask is None:
                return None
        q_scale = None
        if scale_mul is not None:
            q_scale = scale_mul.float().clamp_max(m.max_scale_mul).exp().view(m.num_heads)
        done = cache.attend(qkv, q_scale, mask, float(m.scale))
        if done is None:
            return None
        joined, *views = done
        if m.caching:
            if swapped:
                views = [view.transpose(1, 2) for view in views]
            m.cached_k, m.cached_v = views
            cache.tag(*views)
        out: Tensor = m.proj_drop(m.proj(joined))
        return out


def patch(model: nn.Module, max_length: int | None = None) -> nn.Module:
    """Fuses the attention layers of a model with the official VAR's `SelfAttention` modules
    (github.com/FoundationVision/VAR, models/basic_var.py), in place.

    Args:
        model: any module that holds them: the whole VAR, a block, or one of them. Modules are known
            by their attributes (mat_qkv, q_bias, zero_k_bias, v_bias, proj, kv_caching, ...).
        max_length: tokens that the caches make room for at once; by default `model.L`, which a
            VAR has. Without it, and beyond it, caches grow by doubling.

    Returns:
        `model`. `unpatch` undoes it.

    Raises:
        ValueError: no such module.

    A step is one pass that normalises and scales queries and keys and appends keys and values in
    place, one attention that writes (B, L, C), and the projections, which stay torch's. Parameters
    and state_dict stay as they are, and `cached_k`, `cached_v` show (B, H, L, D) as ever. With
    gradients, in training with dropout, under torch.compile, in float64 and on devices without
    kernels the module's own forward runs.
    """
    found = [m for m in model.modules() if all(hasattr(m, name) for name in _ATTRIBUTES)]
    if not found:
        raise ValueError(
            "patch: argument 'model' expected SelfAttention modules of VAR, got none in "
            f"{type(model).__name__}"
        )
    unpatch(model)
    for module in found:
        _FusedAttention(module, max_length or int(getattr(model, "L", 0)))
    return model
