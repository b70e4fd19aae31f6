"""Blocks in the manner of M-VAR (arXiv:2411.10433): attention inside each scale, and a Mamba layer
(arXiv:2312.00752) over the flattened scales in place of attention to the coarser ones.

Between scales only the layer's state is carried, of the same size however many tokens came before:
no keys and values are kept, and each scale costs its own tokens. Small, for tests and as a pattern;
no checkpoint has these names.

Shape letters: B batch, l tokens of a call, C width, E inner width, N states, K taps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from .var_layers import FFN


@dataclass(frozen=True)
class MixerState:
    """What a layer knows of the tokens so far: the last K - 1 inputs of its convolution
    (B, K - 1, E) and the state of its scan (B, E, N) float32."""

    taps: Tensor
    scan: Tensor


class InterScaleMamba(nn.Module):
    """(B, l, C) -> (B, l, C): Mamba's layer on `pixleap.ops.selective_scan`; without gradients."""

    def __init__(self, width: int, states: int = 16, expand: int = 2, taps: int = 4) -> None:
        super().__init__()
        inner, self.rank, self.states = expand * width, max(1, width // 16), states
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.conv = nn.Conv1d(inner, inner, taps, groups=inner)
        self.x_proj = nn.Linear(inner, self.rank + 2 * states, bias=False)
        self.dt_proj = nn.Linear(self.rank, inner)
        self.a_log = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(inner, 1))
        self.d = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, width, bias=False)

    @torch.no_grad()
    def forward(self, x: Tensor, state: MixerState | None = None) -> tuple[Tensor, MixerState]:
        """The output, and the state after these tokens; `state` None begins a sequence."""
        inner, z = self.in_proj(x).chunk(2, dim=-1)
        missing = self.conv.kernel_size[0] - 1
        before = inner.new_zeros(len(x), missing, inner.shape[2]) if state is None else state.taps
        window = torch.cat((before, inner), dim=1)
        u = F.silu(self.conv(window.transpose(1, 2))).transpose(1, 2).contiguous()
        dt, b, c = self.x_proj(u).split((self.rank, self.states, self.states), dim=-1)
        y, scan = ops.selective_scan(
            u,
            F.linear(dt, self.dt_proj.weight),
            -self.a_log.float().exp(),
            b,
            c,
            self.d.float(),
            z=z,
            delta_bias=self.dt_proj.bias.float(),
            delta_softplus=True,
            state=None if state is None else state.scan,
        )
        return self.out_proj(y), MixerState(window[:, window.shape[1] - missing :], scan)


class IntraScaleAttention(nn.Module):
    """(B, l, C) -> (B, l, C): every token of a scale attends to all of that scale alone."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(
                f"IntraScaleAttention: argument 'heads' expected a divisor of {width}, got {heads}"
            )
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    @torch.no_grad()
    def forward(self, x: Tensor, lengths: Sequence[int]) -> Tensor:
        """lengths: tokens of each scale, together l."""
        outputs = []
        for part in self.qkv(x).split(list(lengths), dim=1):
            q, k, v = part.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            outputs.append(ops.attention(q, k, v).transpose(1, 2).flatten(2))
        return self.proj(torch.cat(outputs, dim=1))


class MVARBlock(nn.Module):
    """Attention inside the scales, Mamba across them, a feed-forward layer; each after a norm and
    added to what came in."""

    def __init__(self, width: int, heads: int, states: int = 16) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.attention = IntraScaleAttention(width, heads)
        self.mamba = InterScaleMamba(width, states)
        self.ffn = FFN(width, 4 * width)

    @torch.no_grad()
    def forward(
        self, x: Tensor, lengths: Sequence[int], state: MixerState | None = None
    ) -> tuple[Tensor, MixerState]:
        x = x + self.attention(self.norms[0](x), lengths)
        mixed, state = self.mamba(self.norms[1](x), state)
        x = x + mixed
        return x + self.ffn(self.norms[2](x)), state


class MVARMixer(nn.Module):
    """A stack of `MVARBlock`s over the scales of an image, whole or one after the other.

    The two ways agree but for rounding. A scale sees the coarser scales, and of itself what
    attention shows; the scan inside a scale is causal in raster order.
    """

    def __init__(self, width: int, depth: int, heads: int, states: int = 16) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(MVARBlock(width, heads, states) for _ in range(depth))

    @torch.no_grad()
    def forward(
        self, x: Tensor, lengths: Sequence[int], states: Sequence[MixerState] | None = None
    ) -> tuple[Tensor, list[MixerState]]:
        """Some scales, after those that gave `states`.

        Args:
            x: (B, l, C), the tokens of the scales side by side.
            lengths: tokens of each scale, such as (1, 4, 9), together l.
            states: what the call for the coarser scales returned; None at the first scale.

        Returns:
            The output (B, l, C), and a state per block for the next call.

        Raises:
            ValueError: lengths that do not add up, states of another number.
        """
        if sum(lengths) != x.shape[1] or min(lengths, default=0) < 0:
            raise ValueError(
                f"MVARMixer: argument 'lengths' expected numbers that add up to {x.shape[1]} "
                f"tokens, got {tuple(lengths)}"
            )
        if states is not None and len(states) != len(self.blocks):
            raise ValueError(
                f"MVARMixer: argument 'states' expected {len(self.blocks)}, one per block, "
                f"got {len(states)}"
            )
        after = []
        for i, block in enumerate(self.blocks):
            x, state = block(x, lengths, None if states is None else states[i])
            after.append(state)
        return x, after
