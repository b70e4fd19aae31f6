"""Next-scale autoregressive decoding (VAR, arXiv:2404.02905) on native ops.

The same model, guidance and filters as the official loop, with the work arranged otherwise: class
modulation is computed once per image instead of once per scale, weights are packed once, keys and
values are appended in place, GELU, gates and residuals ride in the linear ops, and tokens are
drawn without sorting the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import ops
from ..kv_cache import KVCache
from .layers import Norm, PackedLinear, Scratch, attend, check_labels, float_tensor

if TYPE_CHECKING:
    from ..models.var import VAR
    from ..models.var_layers import AdaLNSelfAttn

Progress = Callable[[int, Tensor], None]


class _Block:
    """One transformer block with packed weights."""

    def __init__(self, block: AdaLNSelfAttn, dtype: str) -> None:
        attn = block.attn
        self.heads, self.head_dim = attn.num_heads, attn.head_dim
        bias = torch.cat((attn.q_bias, torch.zeros_like(attn.q_bias), attn.v_bias))
        self.qkv = PackedLinear(attn.mat_qkv.weight, bias, dtype)
        self.proj = PackedLinear.of(attn.proj, dtype)
        self.fc1 = PackedLinear.of(block.ffn.fc1, dtype)
        self.fc2 = PackedLinear.of(block.ffn.fc2, dtype)
        self.norm = Norm(block.ln_wo_grad)
        self.scale = attn.scale
        self.q_scale = None
        if attn.l2_norm:
            self.q_scale = float_tensor(attn.scale_mul_1H11.clamp_max(attn.max_scale_mul).exp())
            self.q_scale = self.q_scale.view(-1)

    def __call__(self, x: Tensor, six: Sequence[Tensor], cache: KVCache, scratch: Scratch) -> None:
        """x (B, l, C) is updated in place."""
        batch, length, width = x.shape
        gain1, gain2, scale1, scale2, shift1, shift2 = six
        hidden = scratch.get("hidden", batch, length, width)
        self.norm(x, hidden, scale=scale1, shift=shift1)
        qkv = self.qkv(hidden, out=scratch.get("qkv", batch, length, 3 * width))
        q = cache.append(
            qkv.view(batch, length, 3, self.heads, self.head_dim),
            q_scale=self.q_scale,
            out=scratch.get("q", batch, self.heads, length, self.head_dim),
        )
        attend(q, cache, hidden, scale=self.scale)
        self.proj(hidden, gate=gain1, residual=x, out=x)
        self.norm(x, hidden, scale=scale2, shift=shift2)
        wide = scratch.get("wide", batch, length, self.fc1.out_features)
        self.fc1(hidden, activation="gelu_tanh", out=wide)
        self.fc2(wide, gate=gain2, residual=x, out=x)


def _phi(model: VAR, scale: int) -> tuple[Tensor, Tensor, float]:
    """Residual convolution of a scale; ratio 0 where the tokeniser has none."""
    phi: Any = model.vae.quantize.phi(scale)
    channels = model.Cvae
    if isinstance(phi, torch.nn.Identity):
        return torch.zeros(channels, channels, 3, 3), torch.zeros(channels), 0.0
    return float_tensor(phi.weight), float_tensor(phi.bias), float(phi.ratio)


class NextScaleDecoder:
    """A VAR model packed for native decoding; build once, call often.

    Args:
        model: a `pixleap.models.VAR` (official or embedded weights), on the CPU.
        weights: "float32", or "bfloat16" for half the weight traffic at bfloat16 precision.
    """

    def __init__(self, model: VAR, weights: str = "float32") -> None:
        self.model = model
        blocks: Any = model.blocks
        self.blocks = [_Block(block, weights) for block in blocks]
        self.head = PackedLinear.of(model.head, weights)
        self.head_norm = Norm(model.head_nm.ln_wo_grad)
        self.word_embed = PackedLinear.of(model.word_embed)
        positions = model.lvl_embed(model.lvl_1L) + model.pos_1LC
        self.positions = float_tensor(positions[0])
        self.codebook = float_tensor(model.vae.quantize.embedding.weight)
        self.phis = [_phi(model, scale) for scale in range(len(model.patch_nums))]
        self.scratch = Scratch(self.positions)

    def _modulation(self, condition: Tensor) -> tuple[list[list[Tensor]], list[Tensor]]:
        """Six vectors (2B, C) per block, and the head's scale and shift: once per image."""
        model = self.model
        shared = model.shared_ada_lin(condition)
        sixes = []
        blocks: Any = model.blocks
        for block in blocks:
            if block.shared_aln:
                six = (block.ada_gss + shared)[:, 0]
            else:
                six = block.ada_lin(condition).view(len(condition), 6, -1)
            sixes.append([t.contiguous() for t in six.unbind(1)])
        scale, shift = model.head_nm.ada_lin(condition).view(len(condition), 2, -1).unbind(1)
        return sixes, [scale.contiguous(), shift.contiguous()]

    @torch.no_grad()
    def tokens(
        self,
        labels: Tensor,
        *,
        cfg: float = 1.5,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        first_sample: int = 0,
        progress: Progress | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """Draws all scales.

        labels: (B,) int64; negative or num_classes means no label. Draws of sample b at scale k
        depend on (seed, k, first_sample + b) only, not on the batch. top_p 1 and top_k 0 filter
        nothing. progress is called after each scale with its index and the features so far.

        Returns:
            Tokens (B, n_k) int64 of every scale, and the features (B, Cv, h, w) for the decoder.
        """
        model, scratch = self.model, self.scratch
        check_labels("next_scale", labels, labels.numel(), model.num_classes)
        batch, scales = len(labels), len(model.patch_nums)
        given = torch.where(labels < 0, model.num_classes, labels)
        both = torch.cat((given, torch.full_like(given, model.num_classes)))
        condition = model.class_emb(both)
        sixes, head_six = self._modulation(condition)
        width, side_max = model.C, model.patch_nums[-1]
        caches = [
            KVCache(2 * batch, b.heads, b.head_dim, model.L, like=self.positions)
            for b in self.blocks
        ]
        f_hat = torch.zeros(batch, model.Cvae, side_max, side_max)
        drawn: list[Tensor] = []
        begin, first = 0, model.first_l
        x = scratch.get("x", 2 * batch, first, width)
        torch.add(condition[:, None] + model.pos_start, self.positions[:first], out=x)
        for scale, side in enumerate(model.patch_nums):
            length = side * side
            begin += length
            for block, six, cache in zip(self.blocks, sixes, caches, strict=True):
                block(x, six, cache, scratch)
            hidden = scratch.get("hidden", 2 * batch, length, width)
            self.head_norm(x, hidden, scale=head_six[0], shift=head_six[1])
            logits = self.head(hidden, out=scratch.get("logits", 2 * batch, length, model.V))
            t = cfg * scale / (scales - 1) if scales > 1 else 0.0
            tokens = ops.sample_tokens(
                logits[:batch],
                uncond=logits[batch:],
                guidance_scale=1 + t,
                top_k=top_k,
                top_p=top_p,
                seed=seed,
                offset=scale,
                first_sample=first_sample,
            )
            drawn.append(tokens)
            next_side = model.patch_nums[scale + 1] if scale + 1 < scales else 0
            phi_weight, phi_bias, phi_ratio = self.phis[scale]
            next_map = scratch.get("next_map", batch, next_side * next_side, model.Cvae)
            ops.next_scale_update(
                tokens,
                self.codebook,
                phi_weight,
                phi_bias,
                f_hat,
                next_side,
                phi_ratio=phi_ratio,
                out=(f_hat, next_map),
            )
            if progress is not None:
                progress(scale, f_hat)
            if next_side:
                count = next_side * next_side
                x = scratch.get("x", 2 * batch, count, width)
                position = self.positions[begin : begin + count].expand(batch, -1, -1)
                for half in (x[:batch], x[batch:]):
                    self.word_embed(next_map, residual=position, out=half)
        return drawn, f_hat

    @torch.no_grad()
    def __call__(self, labels: Tensor, **options: object) -> Tensor:
        """Images (B, channels, height, width) in [0, 1]; options as in `tokens`."""
        _, f_hat = self.tokens(labels, **options)  # type: ignore[arg-type]
        return self.model.vae.fhat_to_img(f_hat).add_(1).mul_(0.5)


def next_scale(model: VAR, labels: Tensor, **options: object) -> Tensor:
    """Sample images from a VAR model with native ops; see `NextScaleDecoder`.

    Packs the weights at every call: build a `NextScaleDecoder` to sample more than once.
    """
    return NextScaleDecoder(model)(labels, **options)
