"""A VAR with weights rounded to few bits, as a draft for speculative decoding."""

from __future__ import annotations

import torch
from torch import Tensor

from .var import VAR
from .var_load import _build_var

_ROUNDED = (".mat_qkv.weight", ".proj.weight", ".fc1.weight", ".fc2.weight")


def _round(weight: Tensor, bits: int) -> Tensor:
    """Rows (N, K) to 2^bits - 1 levels, symmetric about 0, one step size per row."""
    levels = 2 ** (bits - 1) - 1
    step = weight.abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / levels
    return (weight / step).round_() * step


def emulate_quantised_weights(model: VAR, bits: int) -> VAR:
    """EMULATES integer weights: the copy has the rounding error, but float32 storage and speed.

    It tells how often a draft of so few bits would be right (`decode.SpeculativeDecoder`). For 8
    bits there are kernels: `decode.NextScaleDecoder(model, "int8")`. The matrices of the blocks and
    the head are rounded (symmetric, round to nearest, per output channel); embeddings, modulation
    and biases are shared with `model`, as the tokeniser is.

    Args:
        bits: 2 to 8.

    Raises:
        ValueError: other bits.
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"emulate_quantised_weights: argument 'bits' expected 2 to 8, got {bits}")
    state = {
        name: _round(x.float(), bits) if name.endswith(_ROUNDED) or name == "head.weight" else x
        for name, x in model.state_dict().items()
    }
    return _build_var(model.vae, model.config, state)
