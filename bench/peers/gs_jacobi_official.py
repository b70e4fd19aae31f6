"""The GS-Jacobi sampler of encoreus/GS-Jacobi_for_TarFlow (Liu & Qin 2025, arXiv:2505.12849), with
what its code does and not what one would wish, re-implemented in plain torch. Facts below are from
GS_Jacobi_sampling.py at commit f28319b unless another file is named.

Strategies
- `Model.reverse` takes num_GS_list, max_jacobi_list and guess_list, one entry per block in SAMPLING
  order: entry 0 is the last block of the forward pass. Defaults 0, 1, 0: the sequential loop.
- README.md writes [Stack-GS-J-Else]: the blocks in Stack (FORWARD numbers, several with "/") get GS
  modules and at most J sweeps in each, all others one module and at most Else sweeps. GS and J may
  hold one number per block of Stack ("[0/7-256/8-1/13-6]"; 256 = T modules is the loop). The
  guesses are given beside it. See `strategy_lists`.
- fewer than 1 or T modules: the loop of apple/ml-tarflow, without clamp. 1: Jacobi over all tokens.
  Otherwise GS-Jacobi with modules of T // GS tokens.
- guess 0: x = z. Anything else: the first token of z, then zeros.

Sweeps
- x_{t+1} = clamp(z_{t+1} exp(a_t) + c_t, -3, 3). With one module the clamp meets all tokens, even
  the first, which the flow passes unchanged; with several the first is left alone.
- A sweep replaces all tokens of the module at once (Jacobi) and evaluates all, exact or not.
- `while sweeps < max_jacobi and diff > ebound`, diff = ||x_new - x_old||_F / (B C): the norm over
  batch, tokens and values together, C values per token, no T in it. ebound is 1e-6 (the 1e-8 of
  `MetaBlock.reverse` is never used). A NaN ends the loop, as it compares false.
- One module: no cache, every sweep runs all T tokens with a (T, T) mask. Several: per layer a list
  of the keys and values of each finished module; in every layer of every sweep they are
  concatenated, then concatenated with those of the sweep. Kept are the keys and values of the last
  sweep, from its inputs and not from its result: one sweep behind where max_jacobi ended it.
- The last module is counted from the end: outputs T - J + 1 .. T - 1, J = T // GS. With r = T % GS
  > 0 the outputs (GS - 1) J + 1 .. (GS - 1) J + r are never computed: they stay the guess, and
  later tokens do not attend to r of the tokens before them. No error.
- J = 1 (T / 2 < GS < T) and GS > T end in errors of shapes; here in a ValueError that says so.
- At that commit `incre1` makes the first module of the 8th block in sampling order compute its
  first token J times and no other (a loop over j reads index i). Not in the paper and not here.

Guidance
- guide_what "ac" (apple/ml-tarflow: "ab"). Labelled and unlabelled pass, each with its caches; the
  unlabelled one's logits are divided by attn_temp. a += g (a - a_u), c likewise, then exp, then
  clamp; annealed: g (t + 1) / (T - 1) for input token t. evaluate_fid.py always anneals, under
  bfloat16 autocast. Here float32.
- A label below 0 is the last class there; here it means no label.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from pixleap.models import TarFlow
from pixleap.models.tarflow import MetaBlock
from pixleap.models.tarflow_layers import Attention

CLAMP = 3.0
EBOUND = 1e-6


@dataclass
class OfficialResult:
    """images (B, C, H, W); per block in sampling order the sweeps of each module (T - 1 steps of
    one token for the loop) and the tokens evaluated per sample and guidance pass."""

    images: Tensor
    sweeps: list[list[int]] = field(default_factory=list)
    evaluations: list[int] = field(default_factory=list)


def strategy_lists(
    strategy: str, num_blocks: int, guess: Sequence[int] | None = None
) -> tuple[list[int], list[int], list[int]]:
    """num_GS_list, max_jacobi_list, guess_list of "[Stack-GS-J-Else]" in sampling order.

    guess: 0 (z) or 1 (zeros) per block in sampling order; all 0 by default. ValueError for anything
    else than four fields, or blocks that are not there."""
    match = re.fullmatch(r"\[?([\d/]+)-([\d/]+)-([\d/]+)-(\d+)\]?", strategy)
    if not match:
        raise ValueError(
            f"strategy_lists: argument 'strategy' expected '[Stack-GS-J-Else]', got {strategy!r}"
        )
    stack, modules, sweeps = ([int(n) for n in part.split("/")] for part in match.groups()[:3])
    if max(stack) >= num_blocks:
        raise ValueError(
            f"strategy_lists: argument 'strategy' expected blocks below {num_blocks}, got "
            f"{strategy!r}"
        )
    for part in (modules, sweeps):
        if len(part) == 1:
            part *= len(stack)
        if len(part) != len(stack):
            raise ValueError(
                f"strategy_lists: argument 'strategy' expected 1 or {len(stack)} numbers in GS and "
                f"J, got {strategy!r}"
            )
    num_gs, max_jacobi = [1] * num_blocks, [int(match[4])] * num_blocks
    for block, count, most in zip(stack, modules, sweeps, strict=True):
        num_gs[num_blocks - 1 - block], max_jacobi[num_blocks - 1 - block] = count, most
    guesses = [0] * num_blocks if guess is None else list(guess)
    if len(guesses) != num_blocks:
        raise ValueError(
            f"strategy_lists: argument 'guess' expected {num_blocks} numbers, got {len(guesses)}"
        )
    return num_gs, max_jacobi, guesses


class _LayerCache:
    """Keys and values of finished modules or tokens, and those of the sweep in progress."""

    def __init__(self) -> None:
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.sweep: tuple[Tensor, Tensor] | None = None

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self.keys.append(k)
        self.values.append(v)
        return torch.cat(self.keys, dim=2), torch.cat(self.values, dim=2)

    def beside(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self.sweep = k, v
        if not self.keys:
            return k, v
        before = torch.cat(self.keys, dim=2), torch.cat(self.values, dim=2)
        return torch.cat((before[0], k), dim=2), torch.cat((before[1], v), dim=2)

    def keep(self) -> None:
        assert self.sweep is not None
        self.keys.append(self.sweep[0])
        self.values.append(self.sweep[1])


class _Pass:
    """One way through the layers of a block: with label or without, in one of the three modes."""

    def __init__(self, block: MetaBlock, y: Tensor | None, temp: float, mode: str) -> None:
        self.block, self.temp, self.mode = block, temp, mode
        self.embed = block.condition(y)
        self.caches = [_LayerCache() for _ in block.attn_blocks]

    def attend(
        self, layer: Attention, x: Tensor, mask: Tensor | None, cache: _LayerCache
    ) -> Tensor:
        q, k, v = layer._heads(x)
        if self.mode == "GS":
            k, v = cache.append(k, v)
        elif self.mode == "GSJ":
            k, v = cache.beside(k, v)
        scale = layer.head_dim**-0.5 / self.temp
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        return layer.proj(out.transpose(1, 2).flatten(2))

    def __call__(self, h: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Embedded tokens (B, n, C) -> log-scales and shifts (B, n, P) of the tokens after them."""
        if self.embed is not None:
            h = h + self.embed
        for layer, cache in zip(self.block.attn_blocks, self.caches, strict=True):
            h = h + self.attend(layer.attention, h, mask, cache)
            h = h + layer.mlp(h)
        return self.block.affine(h)

    def keep(self) -> None:
        for cache in self.caches:
            cache.keep()


class _Block:
    """Inversion of one block."""

    def __init__(
        self, block: MetaBlock, y: Tensor | None, mode: str, guidance: float, guide_what: str,
        attn_temp: float, annealed: bool, tokens: int,
    ) -> None:  # fmt: skip
        self.block, self.guidance, self.guide_what = block, guidance, guide_what
        self.annealed, self.tokens = annealed, tokens
        self.positions = block.order(block.pos_embed, dim=0)
        self.passes = [_Pass(block, y, 1.0, mode)]
        if guidance > 0 and guide_what:
            self.passes.append(_Pass(block, None, attn_temp, mode))

    def affine(self, x: Tensor, first: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Guided log-scales and shifts after tokens x (B, n, P), the first being number `first`."""
        h = self.block.proj_in(x) + self.positions[first : first + x.shape[1]]
        a, c = self.passes[0](h, mask)
        if len(self.passes) > 1:
            free_a, free_c = self.passes[1](h, mask)
            g: float | Tensor = self.guidance
            if self.annealed and mask is None:
                g = (first + 1) / (self.tokens - 1) * self.guidance
            elif self.annealed:
                steps = torch.arange(first + 1, first + 1 + x.shape[1])
                g = (steps / (self.tokens - 1) * self.guidance).view(-1, 1)
            a = a + g * (a - free_a) if "a" in self.guide_what else a
            c = c + g * (c - free_c) if "c" in self.guide_what else c
        return a, c

    def loop(self, z: Tensor) -> Tensor:
        x = z.clone()
        for t in range(self.tokens - 1):
            a, c = self.affine(x[:, t : t + 1], t, None)
            x[:, t + 1] = z[:, t + 1] * a[:, 0].exp() + c[:, 0]
        return x

    def jacobi(
        self, z: Tensor, x: Tensor, max_jacobi: int, ebound: float, clamp: float | None
    ) -> tuple[Tensor, int]:
        mask = self.block.attn_mask.bool()
        sweeps, diff = 0, 1e6
        while sweeps < max_jacobi and diff > ebound:
            a, c = (F.pad(p[:, :-1], (0, 0, 1, 0)) for p in self.affine(x, 0, mask))
            new = _clamped(a.exp() * z + c, clamp)
            diff = _distance(new, x)
            sweeps, x = sweeps + 1, new
        return x, sweeps

    def modules(
        self, z: Tensor, x: Tensor, count: int, max_jacobi: int, ebound: float, clamp: float | None
    ) -> tuple[Tensor, list[int]]:
        size = self.tokens // count
        counts = []
        for i in range(count):
            n = size - 1 if i == count - 1 else size
            first = self.tokens - size if i == count - 1 else i * size
            mask = torch.ones(n, i * size + n, dtype=torch.bool).tril(i * size)
            outputs = slice(first + 1, first + 1 + n)
            old = x[:, outputs].clone()
            sweeps, diff = 0, 1e6
            while sweeps < max_jacobi and diff > ebound:
                a, c = self.affine(x[:, first : first + n].clone(), first, mask)
                new = _clamped(a.exp() * z[:, outputs] + c, clamp)
                x[:, outputs] = new
                diff = _distance(new, old)
                sweeps, old = sweeps + 1, new
            for way in self.passes:
                way.keep()
            counts.append(sweeps)
        return x, counts


def _clamped(x: Tensor, clamp: float | None) -> Tensor:
    return x if clamp is None else x.clamp(-clamp, clamp)


def _distance(new: Tensor, old: Tensor) -> float:
    """What the stopping rule compares with ebound: over the whole batch."""
    return float(torch.linalg.vector_norm(new - old)) / (new.shape[0] * new.shape[2])


@torch.no_grad()
def gs_jacobi_official(
    model: TarFlow,
    z: Tensor,
    y: Tensor | None = None,
    *,
    num_gs: Sequence[int],
    max_jacobi: Sequence[int],
    guess: Sequence[int],
    guidance: float = 0.0,
    guide_what: str = "ac",
    attn_temp: float = 1.0,
    annealed_guidance: bool = False,
    ebound: float = EBOUND,
    clamp: float | None = CLAMP,
) -> OfficialResult:
    """Noise z (B, T, P) to images, as the official sampler does it (see above).

    Args:
        num_gs, max_jacobi, guess: one number per block in sampling order; see `strategy_lists`.
        clamp: 3 is fixed in the official code; None leaves it out, which that code cannot.

    Raises ValueError for a model without log-scales, lists of another length, a number of modules
    between T / 2 and T or above T, and max_jacobi < 1 where it counts.
    """
    tokens, blocks = model.num_patches, list(reversed(model.blocks))
    for name, numbers in (("num_gs", num_gs), ("max_jacobi", max_jacobi), ("guess", guess)):
        if len(numbers) != len(blocks):
            raise ValueError(
                f"gs_jacobi_official: argument '{name}' expected {len(blocks)} numbers, "
                f"got {len(numbers)}"
            )
    if not all(block.nvp for block in blocks):
        raise ValueError("gs_jacobi_official: argument 'model' expected nvp=True, got nvp=False")
    for count, most in zip(num_gs, max_jacobi, strict=True):
        if count != tokens and count > 1 and tokens // count < 2:
            raise ValueError(
                f"gs_jacobi_official: argument 'num_gs' expected at most {tokens // 2} modules of "
                f"{tokens} tokens, or {tokens}, got {count}"
            )
        if most < 1 and 1 <= count != tokens:
            raise ValueError(
                f"gs_jacobi_official: argument 'max_jacobi' expected numbers >= 1, got {most}"
            )
    x = z * model.var.sqrt()
    result = OfficialResult(x)
    for block, count, most, zero in zip(blocks, num_gs, max_jacobi, guess, strict=True):
        mode = "GS" if count < 1 or count == tokens else "J" if count == 1 else "GSJ"
        inverse = _Block(block, y, mode, guidance, guide_what, attn_temp, annealed_guidance, tokens)
        z_block = block.order(x)
        start = F.pad(z_block[:, :1], (0, 0, 0, tokens - 1)) if zero else z_block.clone()
        if mode == "GS":
            x, sweeps, evaluations = inverse.loop(z_block), [tokens - 1], tokens - 1
        elif mode == "J":
            x, n = inverse.jacobi(z_block, start, most, ebound, clamp)
            sweeps, evaluations = [n], n * tokens
        else:
            x, sweeps = inverse.modules(z_block, start, count, most, ebound, clamp)
            size = tokens // count
            evaluations = size * sum(sweeps) - sweeps[-1]
        x = block.order(x)
        result.sweeps.append(sweeps)
        result.evaluations.append(evaluations)
    result.images = model.unpatchify(x)
    return result
