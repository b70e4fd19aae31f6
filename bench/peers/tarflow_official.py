"""The sampling loop of apple/ml-tarflow (transformer_flow.py, `Model.reverse`).

`pixleap.models.TarFlow.reverse` is that loop in plain torch, so it is called here: one patch at a
time through every layer, keys and values appended to Python lists and concatenated in every layer
at every patch, a second pass without label for guidance with its logits divided by `attn_temp`,
guidance weight times (t + 1) / (T - 1) for patch t where annealed. It differs in two things only:
the class embedding is looked up once per block and not per patch, and a label below 0 means no
label, where the official loop takes the last class. No autocast: float32 throughout (the official
evaluation samples under bfloat16 autocast, with annealed guidance).

tests/test_flow_peers.py holds it bit for bit to the sequential mode of `gs_jacobi_official`, which
is written on its own: should `reverse` change, that test tells.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pixleap.models import TarFlow


@torch.no_grad()
def tarflow_official(model: TarFlow, z: Tensor, y: Tensor | None = None, **options: Any) -> Tensor:
    """Noise z (B, T, P), labels (B,) or None -> images (B, C, H, W).

    options: guidance, guide_what ("a", "b", "ab"), attn_temp, annealed_guidance, as in `reverse`.
    """
    return model.reverse(z, y, **options)
