"""TarFlow (Zhai et al. 2024, arXiv 2412.06329): an autoregressive normalising flow on patches.

A stack of causal transformer blocks, each the affine map z_t = (x_t - b(x_<t)) exp(-a(x_<t)) of
the T patches; every other block reads the patches backwards. Parameter names are those of
apple/ml-tarflow, so its checkpoints load. `TarFlow.reverse` is the plain sequential inversion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from .checkpoint import check_state_dict, load_checkpoint, load_state
from .tarflow_config import config_from_shapes
from .tarflow_layers import AttentionBlock, LayerCache

if TYPE_CHECKING:
    from ..decode.flow import FlowDecoder
    from ..decode.flow_metrics import FlowMetrics
    from ..decode.triangular_solvers import Solver

EMBEDDED = Path(__file__).with_name("weights") / "tarflow_digits.npz"


class MetaBlock(nn.Module):
    """One flow step: an affine autoregressive map of (B, T, P), P values per patch."""

    attn_mask: Tensor
    class_embed: Tensor | None
    attn_blocks: Sequence[AttentionBlock]  # a ModuleList, said to mypy as what it holds

    def __init__(
        self,
        patch_dim: int,
        channels: int,
        num_patches: int,
        num_layers: int,
        *,
        backwards: bool,
        head_dim: int = 64,
        expansion: int = 4,
        nvp: bool = True,
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        self.backwards = backwards
        self.nvp = nvp
        self.proj_in = nn.Linear(patch_dim, channels)
        self.pos_embed = nn.Parameter(1e-2 * torch.randn(num_patches, channels))
        embed = 1e-2 * torch.randn(num_classes, 1, channels)
        self.class_embed = nn.Parameter(embed) if num_classes else None
        layers = [AttentionBlock(channels, head_dim, expansion) for _ in range(num_layers)]
        self.attn_blocks = cast(Sequence[AttentionBlock], nn.ModuleList(layers))
        self.proj_out = nn.Linear(channels, patch_dim * (2 if nvp else 1))
        nn.init.zeros_(self.proj_out.weight)
        # Part of the published state dicts; the causal kernel makes the mask itself.
        self.register_buffer("attn_mask", torch.ones(num_patches, num_patches).tril())

    def order(self, x: Tensor, dim: int = 1) -> Tensor:
        """Patches in the order this block reads them, and back (it is its own inverse)."""
        return x.flip(dim) if self.backwards else x

    def condition(self, y: Tensor | None) -> Tensor | None:
        """Class embedding (B or 1, 1, C); the mean of all of them for None and labels < 0."""
        if self.class_embed is None:
            return None
        mean = self.class_embed.mean(dim=0, keepdim=True)
        if y is None:
            return mean
        return torch.where((y < 0).view(-1, 1, 1), mean, self.class_embed[y.clamp(min=0)])

    def affine(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """(log-scale, shift) of the next patch from hidden states h (B, T, C)."""
        out = self.proj_out(h)
        if self.nvp:
            log_scale, shift = out.chunk(2, dim=-1)
            return log_scale, shift
        return torch.zeros_like(out), out

    def hidden(self, x: Tensor, y: Tensor | None) -> Tensor:
        """Hidden states (B, T, C) of all tokens x (B, T, P), which are in this block's order."""
        h = self.proj_in(x) + self.order(self.pos_embed, dim=0)
        embed = self.condition(y)
        if embed is not None:
            h = h + embed
        for block in self.attn_blocks:
            h = block(h)
        return h

    def forward(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (B, T, P) -> z (B, T, P) and log|det dz/dx| per dimension (B,)."""
        x = self.order(x)
        h = self.hidden(x, y)
        # What patch t reveals parametrises patch t + 1; the first patch passes unchanged.
        log_scale, shift = (F.pad(a[:, :-1], (0, 0, 1, 0)) for a in self.affine(h))
        z = (x - shift) * torch.exp(-log_scale)
        return self.order(z), -log_scale.mean(dim=(1, 2))

    def new_cache(self) -> list[LayerCache]:
        return [([], []) for _ in self.attn_blocks]

    def step(
        self,
        x: Tensor,
        position: Tensor,
        embed: Tensor | None,
        cache: list[LayerCache],
        temp: float,
    ) -> tuple[Tensor, Tensor]:
        """Feed one patch x (B, 1, P); (log-scale, shift) of the next one, each (B, P)."""
        h = self.proj_in(x) + position
        if embed is not None:
            h = h + embed
        for block, layer_cache in zip(self.attn_blocks, cache, strict=True):
            h = block.step(h, layer_cache, temp)
        log_scale, shift = self.affine(h)
        return log_scale[:, 0], shift[:, 0]

    def reverse(
        self,
        z: Tensor,
        y: Tensor | None = None,
        guidance: float = 0.0,
        guide_what: str = "ab",
        attn_temp: float = 1.0,
        annealed_guidance: bool = False,
        tick: Callable[[], None] | None = None,
    ) -> Tensor:
        """Invert `forward` patch by patch: z (B, T, P) -> x (B, T, P).

        With guidance w, log-scale ("a") and/or shift ("b"; "c" in published settings) become
        c + w (c - u), where u comes from a pass without label whose attention logits are divided by
        `attn_temp`.
        """
        x = self.order(z).clone()
        position = self.order(self.pos_embed, dim=0)
        guided = guidance > 0 and bool(guide_what)
        embed, no_label = self.condition(y), self.condition(None)
        cache, free_cache = self.new_cache(), self.new_cache()
        last = x.shape[1] - 1
        for t in range(last):
            patch = x[:, t : t + 1]
            a, b = self.step(patch, position[t], embed, cache, 1.0)
            if guided:
                free_a, free_b = self.step(patch, position[t], no_label, free_cache, attn_temp)
                w = guidance * (t + 1) / last if annealed_guidance else guidance
                a = a + w * (a - free_a) if "a" in guide_what else a
                b = b + w * (b - free_b) if set(guide_what) & {"b", "c"} else b
            x[:, t + 1] = x[:, t + 1] * a.exp() + b
            if tick:
                tick()
        return self.order(x)


class TarFlow(nn.Module):
    """TarFlow for images (B, in_channels, img_size, img_size) cut into T square patches."""

    var: Tensor
    blocks: Sequence[MetaBlock]  # a ModuleList, as above
    noise_std: float = 0.0  # of the noise the model was trained with; set by `load_tarflow`

    def __init__(
        self,
        in_channels: int,
        img_size: int,
        patch_size: int,
        channels: int,
        num_blocks: int,
        layers_per_block: int,
        *,
        head_dim: int = 64,
        expansion: int = 4,
        nvp: bool = True,
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        if img_size % patch_size:
            raise ValueError(f"img_size={img_size} is not a multiple of patch_size={patch_size}")
        self.config: dict[str, Any] = {
            "in_channels": in_channels,
            "img_size": img_size,
            "patch_size": patch_size,
            "channels": channels,
            "num_blocks": num_blocks,
            "layers_per_block": layers_per_block,
            "head_dim": head_dim,
            "expansion": expansion,
            "nvp": nvp,
            "num_classes": num_classes,
        }
        self.in_channels, self.img_size, self.patch_size = in_channels, img_size, patch_size
        self.num_classes = num_classes
        self.num_patches = (img_size // patch_size) ** 2
        self.patch_dim = in_channels * patch_size**2
        blocks = [
            MetaBlock(
                self.patch_dim,
                channels,
                self.num_patches,
                layers_per_block,
                backwards=i % 2 == 1,
                head_dim=head_dim,
                expansion=expansion,
                nvp=nvp,
                num_classes=num_classes,
            )
            for i in range(num_blocks)
        ]
        self.blocks = cast(Sequence[MetaBlock], nn.ModuleList(blocks))
        # Variance of the prior: ones with nvp, a running estimate (update_prior) without.
        self.register_buffer("var", torch.ones(self.num_patches, self.patch_dim))

    def patchify(self, x: Tensor) -> Tensor:
        """Image (B, C, H, W) -> patches (B, T, C * patch_size**2), channel first inside a patch."""
        return F.unfold(x, self.patch_size, stride=self.patch_size).transpose(1, 2)

    def unpatchify(self, x: Tensor) -> Tensor:
        """Patches (B, T, C * patch_size**2) -> image (B, C, H, W)."""
        size = (self.img_size, self.img_size)
        return F.fold(x.transpose(1, 2), size, self.patch_size, stride=self.patch_size)

    def forward(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, list[Tensor], Tensor]:
        """Image -> z (B, T, P), the output of every block, and log|det| per dimension (B,)."""
        x = self.patchify(x)
        outputs = []
        logdet = x.new_zeros(x.shape[0])
        for block in self.blocks:
            x, block_logdet = block(x, y)
            logdet = logdet + block_logdet
            outputs.append(x)
        return x, outputs, logdet

    def loss(self, z: Tensor, logdet: Tensor) -> Tensor:
        """Negative log-likelihood in nats per dimension, without the constant log(2 pi) / 2."""
        return 0.5 * z.square().mean() - logdet.mean()

    @torch.no_grad()
    def update_prior(self, z: Tensor, rate: float = 0.1) -> None:
        """Move the prior's variance towards that of a batch z (B, T, P); for nvp=False."""
        self.var.lerp_(z.square().mean(dim=0), rate)

    @overload
    def reverse(
        self,
        z: Tensor,
        y: Tensor | None = None,
        guidance: float = 0.0,
        guide_what: str = "ab",
        attn_temp: float = 1.0,
        annealed_guidance: bool = False,
        return_sequence: Literal[False] = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor: ...
    @overload
    def reverse(
        self,
        z: Tensor,
        y: Tensor | None = None,
        guidance: float = 0.0,
        guide_what: str = "ab",
        attn_temp: float = 1.0,
        annealed_guidance: bool = False,
        *,
        return_sequence: Literal[True],
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Tensor]: ...
    @torch.no_grad()
    def reverse(
        self,
        z: Tensor,
        y: Tensor | None = None,
        guidance: float = 0.0,
        guide_what: str = "ab",
        attn_temp: float = 1.0,
        annealed_guidance: bool = False,
        return_sequence: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor | list[Tensor]:
        """Noise z (B, T, P) -> image (B, C, H, W), one patch after the other in every block.

        `return_sequence` gives the image of z and of every block's output, in sampling order.
        `progress(done, total)` is called after every patch.
        """
        total = len(self.blocks) * (self.num_patches - 1)
        done = 0

        def tick() -> None:
            nonlocal done
            done += 1
            if progress:
                progress(done, total)

        sequence = [self.unpatchify(z)]
        x = z * self.var.sqrt()
        for block in reversed(self.blocks):
            x = block.reverse(x, y, guidance, guide_what, attn_temp, annealed_guidance, tick)
            sequence.append(self.unpatchify(x))
        return sequence if return_sequence else sequence[-1]

    def decoder(self, weights: str = "float32") -> FlowDecoder:
        """The native decoder, packed once and again when a parameter has changed."""
        from ..decode.flow import FlowDecoder

        state = [(p.data_ptr(), p._version) for p in self.parameters()]
        packed = self.__dict__.setdefault("_decoders", {})
        if packed.get(weights, (None,))[0] != state:
            packed[weights] = (state, FlowDecoder(self, weights))
        return cast("FlowDecoder", packed[weights][1])

    def sample(
        self,
        labels: Tensor | int,
        *,
        seed: int = 0,
        first_sample: int = 0,
        temperature: float = 1.0,
        solver: Solver | None = None,
        denoise: bool = True,
        weights: str = "float32",
        **options: Any,
    ) -> Tensor:
        """Images (B, C, H, W) by native ops; see `pixleap.decode.FlowDecoder`.

        Args:
            labels: (B,) int64, negative for no label; or how many samples without labels.
            seed, first_sample: the noise of sample b depends on (seed, first_sample + b) only.
            temperature: factor of the noise.
            solver: of `pixleap.decode.triangular_solvers`; by default as `FlowDecoder`.
            denoise: take the training noise out by the score (Tweedie) in the end, where
                `noise_std` is known.
            weights: "float32", "bfloat16" or "int8".
            options: guidance, guide_what, attn_temp, annealed_guidance, progress.

        Raises:
            ValueError: labels or options that do not fit.
        """
        given = torch.full((labels,), -1) if isinstance(labels, int) else labels
        given = given.to(self.var.device)
        skip = first_sample * self.num_patches * self.patch_dim
        z = ops.random_normal(
            (len(given), self.num_patches, self.patch_dim),
            seed=seed,
            first_element=skip,
            like=self.var,
        )
        result = self.decoder(weights)(temperature * z, given, solver=solver, **options)
        if not (denoise and self.noise_std):
            return result.images
        return self.denoise(result.images, given, self.noise_std)

    def metrics(self, images: Tensor, labels: Tensor | None = None, **options: Any) -> FlowMetrics:
        """How hard each block is to invert in parallel; see `pixleap.decode.flow_metrics`."""
        from ..decode.flow_metrics import flow_metrics

        return flow_metrics(self, images, labels, **options)

    def denoise(self, x: Tensor, y: Tensor | None, noise_std: float) -> Tensor:
        """Remove the training noise from samples: x + noise_std**2 * grad log p(x) (Tweedie)."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            z, _, logdet = self(x, y)
            dims = self.num_patches * self.patch_dim
            log_p = dims * logdet.sum() - 0.5 * z.square().sum()
            (score,) = torch.autograd.grad(log_p, x)
        return (x + noise_std**2 * score).detach()


def load_tarflow(path: str | Path | None = None, **overrides: Any) -> TarFlow:
    """A TarFlow ready to sample (eval mode), with the weights of `path`.

    `path` is None for the embedded digit model, a .npz of `save_checkpoint`, or a state dict saved
    by apple/ml-tarflow. What shapes tell is inferred; `overrides` are arguments of `TarFlow`.
    """
    source = Path(path) if path is not None else EMBEDDED
    if source.suffix == ".npz":
        config, state = load_checkpoint(source)
        config.update(overrides)
    else:
        state = load_state(source)
        config = config_from_shapes(state, overrides)
    noise_std = float(config.pop("noise_std", 0.0))
    model = TarFlow(**config)
    check_state_dict(model, state)
    model.load_state_dict(state)
    model.noise_std = noise_std
    return model.eval().requires_grad_(False)
