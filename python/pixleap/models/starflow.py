"""STARFlow (Gu et al. 2025, arXiv:2506.06276): TarFlow on latents with one deep text-conditioned
block and several shallow ones.

Parameter names and arithmetic are those of apple/ml-starflow (transformer_flow.py), whose code
differs from TarFlow's in this: a learnt start token gives the first token parameters too; scales
are softplus(a + c) with softplus(c) = 1 in the place of exp(a), and outputs are clipped softly,
s tanh(x / s); positions are rotary, in raster order whatever way the block reads; text embeddings
go before the image tokens, causal like them; a patch holds its channels last; guidance blends
Gaussians (see `guide`). Weights alone do not tell all of a model: see `load_starflow`.

Not here: video, Gemma top blocks, local attention windows, the learnt denoiser, VAE, text encoder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checkpoint import check_state_dict, load_checkpoint, load_state
from .starflow_layers import RMSNorm, Rope, RowCache, StarAttention, StarLayer, StarMLP, rotary

_INVERSE_SOFTPLUS_1 = math.log(math.e - 1)
# Of the published state dicts: never read there, made anew or not needed here.
_UNUSED = ("var", "attn_mask", "feat_rope.freqs_cos", "feat_rope.freqs_sin")


class StarFlowCache:
    """What a block keeps while an image is made: angles, and keys and values of every layer; the
    first rows are the text's."""

    def __init__(self, rope: Rope, text: int, layers: list[RowCache]) -> None:
        self.rope, self.text, self.layers = rope, text, layers

    @property
    def length(self) -> int:
        """Image rows held."""
        return self.layers[0].length - self.text

    def rollback(self, length: int) -> None:
        """Forgets all image rows after the first `length`."""
        if not 0 <= length <= self.length:
            raise ValueError(
                f"StarFlowCache.rollback: argument 'length' expected 0 to {self.length}, "
                f"got {length}"
            )
        for layer in self.layers:
            layer.length = self.text + length


class StarFlowBlock(nn.Module):
    """One flow step: an affine autoregressive map of (B, T, P), P values per patch.

    Row i of the transformer's input holds the token before output `first_output` + i in the block's
    order; `rows` makes them, `step` evaluates any window of them.
    """

    attn_blocks: Sequence[StarLayer]  # a ModuleList, said to mypy as what it holds

    def __init__(
        self, patch_dim: int, channels: int, num_layers: int, *, backwards: bool, side: int,
        text_model: bool, txt_dim: int, head_dim: int, num_kv_heads: int | None, expansion: float,
        sos: bool, softplus: bool, soft_clip: float, swiglu: bool, qk_norm: bool, post_norm: bool,
        final_norm: bool, bias: bool, norm_type: str,
    ) -> None:  # fmt: skip
        super().__init__()
        self.backwards, self.side, self.text_model = backwards, side, text_model
        self.head_dim, self.softplus, self.soft_clip = head_dim, softplus, soft_clip
        self.txt_dim, self.first_output = txt_dim, 0 if sos else 1
        self.proj_in = nn.Linear(patch_dim, channels)
        self.proj_out = nn.Linear(channels, 2 * patch_dim)
        nn.init.zeros_(self.proj_out.weight)
        self.sos_embed = nn.Parameter(torch.randn(1, 1, patch_dim)) if sos else None
        self.proj_txt = nn.Linear(txt_dim, channels) if txt_dim else None
        kv_heads = num_kv_heads or channels // head_dim
        layers = [
            StarLayer(
                StarAttention(channels, head_dim, kv_heads, norm_type, qk_norm, post_norm, bias),
                StarMLP(channels, expansion, swiglu, norm_type, post_norm, bias),
            )
            for _ in range(num_layers)
        ]
        self.attn_blocks = cast(Sequence[StarLayer], nn.ModuleList(layers))
        self.final_norm = RMSNorm(channels) if final_norm else None

    def order(self, x: Tensor, dim: int = 1) -> Tensor:
        """Patches in the order this block reads them, and back (it is its own inverse)."""
        return x.flip(dim) if self.backwards else x

    def rows(self, x: Tensor) -> Tensor:
        """Inputs of the transformer for tokens x (B, T, P) in the block's order: (B, T, P) with a
        start token, (B, T - 1, P) without."""
        if self.sos_embed is None:
            return x[:, :-1]
        return torch.cat((self.sos_embed.expand(len(x), -1, -1), x[:, :-1]), 1)

    def text_rows(self, y: Tensor | None) -> Tensor | None:
        """Text embeddings (B, L, txt_dim) as rows (B, L, C); None for a block without text."""
        if self.proj_txt is None:
            return None
        if y is None or y.dim() != 3 or y.shape[-1] != self.txt_dim:
            got = None if y is None else tuple(y.shape)
            raise ValueError(
                f"StarFlow: argument 'y' expected text embeddings (B, L, {self.txt_dim}), got {got}"
            )
        return self.proj_txt(y)

    def rope(self, height: int, width: int, text: int, like: Tensor) -> Rope:
        cos, sin = rotary(height, width, text, self.head_dim, self.side, self.text_model)
        return cos.to(like), sin.to(like)

    def affine(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """(scale, shift) of the outputs of hidden rows h (B, L, C); scale > 0."""
        out = self.proj_out(h if self.final_norm is None else self.final_norm(h))
        if self.soft_clip > 0:
            out = self.soft_clip * torch.tanh(out / self.soft_clip)
        a, shift = out.chunk(2, dim=-1)
        return (F.softplus(a + _INVERSE_SOFTPLUS_1) if self.softplus else a.exp()), shift

    def forward(
        self, x: Tensor, height: int, width: int, y: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """x (B, T, P), T = height * width in raster order, -> z (B, T, P) and log|det dz/dx| per
        dimension (B,)."""
        x = self.order(x)
        h, text = self.proj_in(self.rows(x)), self.text_rows(y)
        before = 0 if text is None else text.shape[1]
        cos, sin = self.rope(height, width, before, h)
        h = h if text is None else torch.cat((text, h), 1)
        for layer in self.attn_blocks:
            h = layer(h, (cos[: h.shape[1]], sin[: h.shape[1]]), None, 1.0)
        scale, shift = self.affine(h[:, before:])
        if self.first_output:  # the first token passes unchanged
            scale, shift = F.pad(scale, (0, 0, 1, 0), value=1.0), F.pad(shift, (0, 0, 1, 0))
        return self.order((x - shift) / scale), -scale.log().mean(dim=(1, 2))

    def start(
        self, batch: int, height: int, width: int, y: Tensor | None = None, temp: float = 1.0
    ) -> StarFlowCache:
        """Caches for height x width tokens, with the text of y (batch, L, txt_dim) in them."""
        text, like = self.text_rows(y), self.proj_in.weight
        before = 0 if text is None else text.shape[1]
        rope = self.rope(height, width, before, like)
        heads = self.attn_blocks[0].attention.kv_heads
        size = (batch, heads, before + height * width, self.head_dim)
        cache = StarFlowCache(rope, before, [RowCache(*size, like) for _ in self.attn_blocks])
        if text is not None:
            self._run(text, 0, cache, temp)
        return cache

    def step(
        self, rows: Tensor, first: int, cache: StarFlowCache, temp: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Rows number first .. first + m - 1, (B, m, P), behind the `first` rows that the cache
        holds (later ones are forgotten): (scale, shift) of the outputs first_output + first ..,
        each (B, m, P). temp divides the attention logits."""
        cache.rollback(first)
        return self.affine(self._run(self.proj_in(rows), cache.text + first, cache, temp))

    def _run(self, h: Tensor, at: int, cache: StarFlowCache, temp: float) -> Tensor:
        cos, sin = (part[at : at + h.shape[1]] for part in cache.rope)
        for layer, kept in zip(self.attn_blocks, cache.layers, strict=True):
            h = layer(h, (cos, sin), kept, temp)
        return h

    def reverse(
        self, z: Tensor, height: int, width: int, y: Tensor | None = None,
        uncond: Tensor | None = None, guidance: float = 0.0, attn_temp: float = 1.0,
        tick: Callable[[], None] | None = None,
    ) -> Tensor:  # fmt: skip
        """Invert `forward` token by token: z (B, T, P) -> x (B, T, P)."""
        z = self.order(z)
        x = z.clone()
        caches = [self.start(len(z), height, width, y, attn_temp)]
        if guidance > 0:
            caches.append(self.start(len(z), height, width, uncond, attn_temp))
        for t in range(self.first_output, z.shape[1]):
            i = t - self.first_output
            row = self.rows(x[:, : t + 1])[:, i : i + 1]
            params = [self.step(row, i, cache, attn_temp) for cache in caches]
            scale, shift = params[0] if guidance <= 0 else guide(params[0], params[1], guidance)
            x[:, t] = z[:, t] * scale[:, 0] + shift[:, 0]
            if tick:
                tick()
        return self.order(x)


def guide(
    cond: tuple[Tensor, Tensor], uncond: tuple[Tensor, Tensor], guidance: float
) -> tuple[Tensor, Tensor]:
    """Scale and shift of the Gaussian p_c^(1 + w) / p_u^w, with the unconditional one no narrower
    than the conditional (Gu et al. 2025)."""
    (scale, shift), (free_scale, free_shift) = cond, uncond
    s = guidance * (scale / free_scale).clamp(max=1.0).square()
    precision = 1 + guidance - s
    return scale / precision.sqrt(), ((1 + guidance) * shift - s * free_shift) / precision


class StarFlow(nn.Module):
    """STARFlow for latents (B, in_channels, H, W); H and W are multiples of patch_size.

    Args:
        layers_per_block: of the blocks in the order of the forward pass, the deep one last.
        pt_seq_len: side in patches of the images of the training, which scales the positions.
        txt_dim: width of the text embeddings; 0 for none. cond_top_only: only the last block reads
            them. top_block_channels: width of the last block if it is another one.
        seq_order: "L2R" has the last block read in raster order, "R2L" backwards (with an even
            number of blocks); the others alternate.
        sos, softplus, soft_clip, swiglu, qk_norm, post_norm, final_norm, bias, norm_type,
        num_kv_heads, expansion: see the module and its layers; by default those of the published
            text-to-image model.
    """

    blocks: Sequence[StarFlowBlock]  # a ModuleList, as above

    def __init__(
        self, in_channels: int, patch_size: int, channels: int, layers_per_block: Sequence[int],
        pt_seq_len: int, *, txt_dim: int = 0, cond_top_only: bool = True,
        top_block_channels: int | None = None, seq_order: str = "L2R", head_dim: int = 64,
        num_kv_heads: int | None = None, expansion: float = 4, sos: bool = True,
        softplus: bool = True, soft_clip: float = 4.0, swiglu: bool = False, qk_norm: bool = False,
        post_norm: bool = False, final_norm: bool = True, bias: bool = True,
        norm_type: str = "layer_norm",
    ) -> None:  # fmt: skip
        super().__init__()
        if seq_order not in ("L2R", "R2L"):
            raise ValueError(f"StarFlow: seq_order expected 'L2R' or 'R2L', got {seq_order!r}")
        if not layers_per_block or min(layers_per_block) < 1:
            raise ValueError(
                f"StarFlow: layers_per_block expected numbers >= 1, got {list(layers_per_block)}"
            )
        self.in_channels, self.patch_size = in_channels, patch_size
        self.patch_dim, self.txt_dim = in_channels * patch_size**2, txt_dim
        self.cond_top_only = cond_top_only
        shift, top = int(seq_order == "L2R"), len(layers_per_block) - 1
        blocks = [
            StarFlowBlock(
                self.patch_dim, (top_block_channels or channels) if i == top else channels, layers,
                backwards=(i + shift) % 2 == 1, side=pt_seq_len, text_model=txt_dim > 0,
                txt_dim=txt_dim if i == top or not cond_top_only else 0, head_dim=head_dim,
                num_kv_heads=num_kv_heads, expansion=expansion, sos=sos, softplus=softplus,
                soft_clip=soft_clip, swiglu=swiglu, qk_norm=qk_norm, post_norm=post_norm,
                final_norm=final_norm, bias=bias, norm_type=norm_type,
            )
            for i, layers in enumerate(layers_per_block)
        ]  # fmt: skip
        self.blocks = cast(Sequence[StarFlowBlock], nn.ModuleList(blocks))

    def patchify(self, x: Tensor) -> Tensor:
        """Latent (B, C, H, W) -> patches (B, T, patch_size**2 * C), channel last inside a patch."""
        p = self.patch_size
        if x.dim() != 4 or x.shape[1] != self.in_channels or x.shape[2] % p or x.shape[3] % p:
            raise ValueError(
                f"StarFlow: expected latents (B, {self.in_channels}, H, W) with H and W multiples "
                f"of {p}, got {tuple(x.shape)}"
            )
        return (
            x.unflatten(3, (-1, p))
            .unflatten(2, (-1, p))
            .permute(0, 2, 4, 3, 5, 1)
            .flatten(3)
            .flatten(1, 2)
        )

    def unpatchify(self, x: Tensor, height: int, width: int) -> Tensor:
        """Patches (B, T, patch_size**2 * C) of height x width patches -> latent (B, C, H, W)."""
        p = self.patch_size
        x = x.unflatten(1, (height, width)).unflatten(3, (p, p, -1))
        return x.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)

    def forward(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, list[Tensor], Tensor]:
        """Latent (B, C, H, W) and text (B, L, txt_dim) -> z (B, C, H, W), every block's output
        (B, T, P), and log|det| per dimension (B,)."""
        height, width = (n // self.patch_size for n in x.shape[-2:])
        x = self.patchify(x)
        outputs, logdet = [], x.new_zeros(x.shape[0])
        for block in self.blocks:
            x, block_logdet = block(x, height, width, y)
            logdet = logdet + block_logdet
            outputs.append(x)
        return self.unpatchify(x, height, width), outputs, logdet

    @torch.no_grad()
    def reverse(
        self, z: Tensor, y: Tensor | None = None, uncond: Tensor | None = None,
        guidance: float = 0.0, attn_temp: float = 1.0,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:  # fmt: skip
        """Noise z (B, C, H, W) -> latent (B, C, H, W), one token after the other in every block.

        y, uncond: text embeddings (B, L, txt_dim), those of the prompt and of none for guidance.
        guidance: w of `guide`, for the blocks that read text; 0 for none. attn_temp divides all
        attention logits. `progress(done, total)` is called after every token.

        Raises ValueError for latents or text of another shape, and guidance without text."""
        height, width = (n // self.patch_size for n in z.shape[-2:])
        x = self.patchify(z)
        if guidance > 0 and not self.txt_dim:
            raise ValueError("StarFlow.reverse: argument 'guidance' expected 0 without text, got "
                             f"{guidance}")  # fmt: skip
        steps = [x.shape[1] - block.first_output for block in self.blocks]
        done = 0

        def tick() -> None:
            nonlocal done
            done += 1
            if progress:
                progress(done, sum(steps))

        for block in reversed(self.blocks):
            w = guidance if block.txt_dim else 0.0
            x = block.reverse(x, height, width, y, uncond, w, attn_temp, tick)
        return self.unpatchify(x, height, width)


def load_starflow(path: str | Path, **overrides: Any) -> StarFlow:
    """A StarFlow in eval mode with the weights of `path`: a .npz of `save_checkpoint`, or a state
    dict of apple/ml-starflow.

    Shapes tell the rest, but not patch_size (1 unless given; in_channels follows), head_dim (64),
    softplus (True), soft_clip (4), seq_order ("L2R") and pt_seq_len (32): those of the published
    text-to-image model, to be given for others. Buffers that its code never reads are left out.

    Raises ValueError with every missing, unexpected or misshapen key."""
    if str(path).endswith(".npz"):
        config, state = load_checkpoint(path)
        config.update(overrides)
    else:
        state = load_state(path)
        state = {k: v for k, v in state.items() if not k.endswith(_UNUSED)}
        config = _config(state, overrides)
    model = StarFlow(**config)
    check_state_dict(model, state)
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)


def _config(state: Mapping[str, Tensor], given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `StarFlow` that fit `state`, unless `given` says otherwise."""
    first, layer = "blocks.0.", "blocks.0.attn_blocks.0."
    needed = [f"{first}proj_in.weight", f"{layer}attention.qkv.weight"]
    missing = [k for k in needed if k not in state]
    if missing:
        raise ValueError(f"not a StarFlow state dict: missing {', '.join(missing)}")
    channels, patch_dim = state[needed[0]].shape
    count = len({k.split(".")[1] for k in state if k.startswith("blocks.")})
    depths = [
        len({k.split(".")[3] for k in state if k.startswith(f"blocks.{i}.attn_blocks.")})
        for i in range(count)
    ]
    swiglu, head_dim = f"{layer}mlp.gate_proj.weight" in state, given.get("head_dim", 64)
    hidden = state.get(f"{layer}mlp.{'gate_proj' if swiglu else 'main.0'}.weight")
    text = state.get(f"blocks.{count - 1}.proj_txt.weight")
    top = state.get(f"blocks.{count - 1}.proj_in.weight")
    patch = given.get("patch_size", 1)
    found: dict[str, Any] = {
        "in_channels": patch_dim // patch**2,
        "patch_size": patch,
        "channels": channels,
        "layers_per_block": depths,
        "pt_seq_len": 32,
        "txt_dim": 0 if text is None else text.shape[1],
        "cond_top_only": f"{first}proj_txt.weight" not in state or count == 1,
        "top_block_channels": channels if top is None else top.shape[0],
        "num_kv_heads": (state[needed[1]].shape[0] - channels) // (2 * head_dim),
        "expansion": 4 if hidden is None else hidden.shape[0] / channels,
        "sos": f"{first}sos_embed" in state,
        "swiglu": swiglu,
        "qk_norm": f"{layer}attention.query_norm.weight" in state,
        "post_norm": f"{layer}attention.post_norm.weight" in state,
        "final_norm": f"{first}final_norm.weight" in state,
        "bias": f"{layer}attention.qkv.bias" in state,
        "norm_type": "layer_norm" if f"{layer}attention.norm.bias" in state else "rms_norm",
    }
    if found["num_kv_heads"] == channels // head_dim:
        found["num_kv_heads"] = None  # as many as for queries, in a wider last block too
    return {**found, **given}
