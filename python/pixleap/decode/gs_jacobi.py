"""Inversion of TarFlow-like flows: sequential, or by Gauss-Seidel-Jacobi sweeps over a window.

Every block is a triangular system x_{t+1} = z_{t+1} exp(a_t) + b_t with (a_t, b_t) a function of
x_0 .. x_t. A sweep evaluates tokens f .. f + W - 1 at once, from the exact prefix and the present
guess of the rest. Token f + 1 is exact after it, so the frontier f advances by at least one per
sweep, and by as many more as the sweep left unchanged up to `tol`; their keys and values stay in
the cache, the others are rolled back. It ends without a cap or a clamp. With W = 1 it is the
sequential loop. (Parallel decoding of TarFlow by Gauss-Seidel-Jacobi: Liu & Qin 2025,
arXiv:2505.12849; the window with an exact frontier is pixleap's.)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import masks, ops
from ..kv_cache import KVCache
from .layers import Norm, PackedLinear, Scratch, attend, check_labels, float_tensor

if TYPE_CHECKING:
    from ..models.tarflow import AttentionBlock, MetaBlock, TarFlow

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Frontier:
    """Sweep a window beyond the exact prefix.

    tol: a guess that moved by no more counts as converged. 0 asks for a fixed point.
    window: tokens per sweep, or "auto" (see `first_window` and `next_window`).
    overhead: cost of a sweep besides its rows (tokens times samples, twice with guidance), in rows.
        Measured on the embedded model: 0.35 ms for 2 rows, 1.4 ms for 96.

    "auto" follows counts, not clocks: the same sweeps, so the same numbers, on every machine.
    """

    tol: float = 1e-4
    window: int | str = "auto"
    overhead: float = 30.0

    def __post_init__(self) -> None:
        if not (isinstance(self.window, int) and self.window >= 1) and self.window != "auto":
            raise ValueError(
                f"Frontier: window expected an integer >= 1 or 'auto', got {self.window!r}"
            )
        if not self.tol >= 0:
            raise ValueError(f"Frontier: tol expected a number >= 0, got {self.tol}")

    def first_window(self, rows: int) -> int:
        """As many tokens as make the rows of a sweep cost 1.5 times its overhead; rows: per token.
        One, the sequential loop, where a single token's rows already do."""
        if isinstance(self.window, int):
            return self.window
        return max(1, round(1.5 * self.overhead / rows))

    def next_window(
        self, window: int, advanced: int, rows: int, spent: float, sequential: float
    ) -> int:
        """Twice the window when all of it converged and a sweep is not yet all rows; one token
        while the block has cost 2.5 times what the sequential loop would have so far."""
        if isinstance(self.window, int):
            return self.window
        if spent > 2.5 * sequential:
            return 1
        wider = advanced >= window and rows * window < 2 * self.overhead
        return 2 * window if wider else window


def Sequential() -> Frontier:
    """One token at a time: the exact loop with preallocated caches."""
    return Frontier(tol=0.0, window=1)


@dataclass
class FlowResult:
    """images (B, ch, h, w); per block in sampling order: sweeps, token evaluations per sample, the
    largest change in the window after each sweep; the images after each block if asked for."""

    images: Tensor
    sweeps: list[int] = field(default_factory=list)
    evaluations: list[int] = field(default_factory=list)
    residuals: list[list[float]] = field(default_factory=list)
    sequence: list[Tensor] = field(default_factory=list)
    seconds: float = 0.0


class _Layer:
    def __init__(self, layer: AttentionBlock, dtype: str) -> None:
        attention, mlp = layer.attention, layer.mlp
        main: Any = mlp.main
        self.head_dim = attention.head_dim
        self.norm1, self.norm2 = Norm(attention.norm), Norm(mlp.norm)
        self.qkv = PackedLinear.of(attention.qkv, dtype)
        self.proj = PackedLinear.of(attention.proj, dtype)
        self.fc1 = PackedLinear.of(main[0], dtype)
        self.fc2 = PackedLinear.of(main[2], dtype)

    def __call__(self, x: Tensor, cache: KVCache, scratch: Scratch, temps: list[float]) -> None:
        """x (B, W, C) in place. temps: attention temperature of each equal part of the batch."""
        batch, length, width = x.shape
        heads = width // self.head_dim
        hidden = scratch.get("hidden", batch, length, width)
        self.norm1(x, hidden)
        qkv = self.qkv(hidden, out=scratch.get("qkv", batch, length, 3 * width))
        q = cache.append(
            qkv.view(batch, length, 3, heads, self.head_dim),
            out=scratch.get("q", batch, heads, length, self.head_dim),
        )
        if len(set(temps)) == 1:
            scale = self.head_dim**-0.5 / temps[0]
            attend(q, cache, hidden, mask=masks.causal(), scale=scale)
        else:
            part = batch // len(temps)
            for i, temp in enumerate(temps):
                rows = slice(i * part, (i + 1) * part)
                out = hidden[rows].view(part, length, heads, self.head_dim).transpose(1, 2)
                ops.attention(
                    q[rows],
                    cache.keys[rows],
                    cache.values[rows],
                    mask=masks.causal(),
                    scale=self.head_dim**-0.5 / temp,
                    out=out,
                )
        self.proj(hidden, residual=x, out=x)
        self.norm2(x, hidden)
        wide = scratch.get("wide", batch, length, self.fc1.out_features)
        self.fc1(hidden, activation="gelu", out=wide)
        self.fc2(wide, residual=x, out=x)


class _Block:
    """One flow block with packed weights."""

    def __init__(self, block: MetaBlock, dtype: str) -> None:
        self.block = block
        self.proj_in, self.proj_out = (
            PackedLinear.of(block.proj_in),
            PackedLinear.of(block.proj_out),
        )
        self.layers = [_Layer(layer, dtype) for layer in block.attn_blocks]
        self.positions = float_tensor(block.order(block.pos_embed, dim=0))

    def embedding(self, labels: Tensor | None, batch: int) -> Tensor:
        """Position plus class embedding, (B, T, C)."""
        condition = self.block.condition(labels)
        both = self.positions if condition is None else self.positions + condition
        return both.expand(batch, -1, -1)


class FlowDecoder:
    """A TarFlow model packed for native inversion; build once, call often.

    Args:
        model: a `pixleap.models.TarFlow` (official or embedded weights), on the CPU.
        weights: "float32" or "bfloat16".
    """

    def __init__(self, model: TarFlow, weights: str = "float32") -> None:
        self.model = model
        self.blocks = [_Block(block, weights) for block in model.blocks]
        self.scratch = Scratch(self.blocks[0].positions)

    @torch.no_grad()
    def __call__(
        self,
        z: Tensor,
        labels: Tensor | None = None,
        *,
        solver: Frontier | None = None,
        guidance: float = 0.0,
        guide_what: str = "ab",
        attn_temp: float = 1.0,
        annealed_guidance: bool = False,
        return_sequence: bool = False,
        progress: Progress | None = None,
    ) -> FlowResult:
        """Noise (B, T, c) to images; arguments as in `TarFlow.reverse`, and the solver.

        progress: called with (block, frontier). Raises ValueError for a z of another shape or with
        values that are not finite.
        """
        model = self.model
        expected = (model.num_patches, z.shape[-1] if z.dim() == 3 else -1)
        if z.dim() != 3 or z.shape[1:] != expected or z.shape[2] != model.var.shape[1]:
            raise ValueError(
                f"gs_jacobi: argument 'z' expected shape (*, {model.num_patches}, "
                f"{model.var.shape[1]}), got {tuple(z.shape)}"
            )
        if labels is not None:
            check_labels("gs_jacobi", labels, len(z), model.num_classes - 1)
        if not bool(torch.isfinite(z).all()):
            raise ValueError("gs_jacobi: argument 'z' expected finite values, got NaN or infinity")
        start = time.perf_counter()
        x = (z * model.var.sqrt()).to(torch.float32)
        result = FlowResult(x)
        if return_sequence:
            result.sequence.append(model.unpatchify(z))
        guided = guidance > 0 and bool(guide_what)
        for index, block in enumerate(reversed(self.blocks)):
            report = (lambda f, index=index: progress(index, f)) if progress else None
            x = self._invert(
                block, x, labels, solver or Frontier(), guidance if guided else 0.0, guide_what,
                attn_temp, annealed_guidance, result, report,
            )  # fmt: skip
            if return_sequence:
                result.sequence.append(model.unpatchify(x))
        result.images = model.unpatchify(x)
        result.seconds = time.perf_counter() - start
        return result

    def _invert(
        self, packed: _Block, z: Tensor, labels: Tensor | None, solver: Frontier, guidance: float,
        guide_what: str, attn_temp: float, annealed: bool, result: FlowResult,
        report: Callable[[int], None] | None,
    ) -> Tensor:  # fmt: skip
        block, scratch = packed.block, self.scratch
        z = block.order(z).contiguous()
        x = z.clone()  # the first guess
        batch, tokens, _ = z.shape
        last = tokens - 1  # inputs are tokens 0 .. last - 1, outputs 1 .. last
        halves = 2 if guidance > 0 else 1
        temps = [1.0, attn_temp][:halves]
        embeddings = [packed.embedding(labels, batch), packed.embedding(None, batch)][:halves]
        ramp = torch.arange(1, tokens) / max(last, 1) if annealed else torch.ones(last)
        strength = (ramp * guidance).to(torch.float32)
        caches = [
            KVCache(halves * batch, packed.positions.shape[1] // layer.head_dim, layer.head_dim,
                    tokens, like=x)
            for layer in packed.layers
        ]  # fmt: skip
        sweeps = evaluations = frontier = 0
        residuals: list[float] = []
        rows = halves * batch
        spent = 0.0
        window = solver.first_window(rows)
        while frontier < last:
            w = min(window, last - frontier)
            inputs = slice(frontier, frontier + w)
            outputs = slice(frontier + 1, frontier + 1 + w)
            h = scratch.get("x", halves * batch, w, packed.positions.shape[1])
            for i, embedding in enumerate(embeddings):
                half = h[i * batch : (i + 1) * batch]
                packed.proj_in(x[:, inputs], residual=embedding[:, inputs], out=half)
            for layer, cache in zip(packed.layers, caches, strict=True):
                cache.rollback(frontier)
                layer(h, cache, scratch, temps)
            params = packed.proj_out(
                h, out=scratch.get("params", halves * batch, w, packed.proj_out.out_features)
            )
            change = self._update(z, x, params, outputs, strength[inputs], guide_what, halves)
            moved = change.amax(dim=0)  # over the batch: (w,)
            settled = int((moved <= solver.tol).int().cumprod(0).sum())
            advanced = min(1 + settled, w)
            residuals.append(float(moved.max()))
            sweeps += 1
            evaluations += w
            frontier += advanced
            spent += solver.overhead + rows * w
            sequential = (solver.overhead + rows) * frontier
            window = solver.next_window(window, advanced, rows, spent, sequential)
            if report is not None:
                report(frontier)
        result.sweeps.append(sweeps)
        result.evaluations.append(evaluations)
        result.residuals.append(residuals)
        return block.order(x)

    def _update(
        self, z: Tensor, x: Tensor, params: Tensor, outputs: slice, strength: Tensor,
        guide_what: str, halves: int,
    ) -> Tensor:  # fmt: skip
        """x[outputs] from the log-scales and shifts in `params`; what moved, (B, w)."""
        batch, _, width = z.shape
        nvp = params.shape[-1] == 2 * width
        a = params[..., :width] if nvp else torch.zeros_like(params)
        b = params[..., width:] if nvp else params
        target = x[:, outputs]
        options = {}
        if halves == 2:
            options = {
                "uncond_a": a[batch:] if "a" in guide_what else None,
                "uncond_b": b[batch:] if "b" in guide_what else None,
                "guidance": strength,
            }
        change = self.scratch.get("change", batch, target.shape[1])
        ops.jacobi_update(
            z[:, outputs], a[:batch], b[:batch], target, out=(target, change), **options
        )
        return change


def gs_jacobi(
    model: TarFlow, z: Tensor, labels: Tensor | None = None, **options: object
) -> FlowResult:
    """Invert a TarFlow with native ops; see `FlowDecoder` (build one to sample more than once)."""
    return FlowDecoder(model)(z, labels, **options)  # type: ignore[arg-type]
