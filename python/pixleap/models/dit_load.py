"""Loading a DiT: the embedded digit model, own .npz files, and checkpoints of facebookresearch/DiT.

The published files (`DiT-XL-2-256x256.pt`, `DiT-XL-2-512x512.pt`) hold bare state dicts; those of
its training script hold {"model": ..., "ema": ...}. The architecture is read off the shapes.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoint import _bare, check_state_dict, load_checkpoint
from .dit import DiT

EMBEDDED = Path(__file__).with_name("weights") / "dit_digits.npz"
_HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}  # width -> heads of DiT-S, B, L, XL


def infer_dit_config(
    state: Mapping[str, Tensor], given: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Arguments of `DiT` that fit `state`, unless `given` says otherwise.

    Shapes do not tell num_heads, which is known for the official widths, nor whether the last row
    of the label table means "no label", which is assumed unless class_dropout_prob=0 is given.
    """
    given = dict(given or {})
    names = ("x_embedder.proj.weight", "pos_embed", "y_embedder.embedding_table.weight",
             "blocks.0.mlp.fc1.weight", "final_layer.linear.weight")  # fmt: skip
    missing = [name for name in names if name not in state]
    if missing:
        raise ValueError(
            f"load_dit: not a DiT state dict: missing {', '.join(missing)}; its first names: "
            f"{', '.join(sorted(state)[:4]) or 'none'}"
        )
    proj, positions, labels, fc1, final = (state[name].shape for name in names)
    width, channels, patch = proj[0], proj[1], proj[-1]
    outputs, odd = divmod(final[0], patch * patch * channels)
    if odd or outputs not in (1, 2):
        raise ValueError(
            f"load_dit: final_layer.linear.weight must have {patch * patch * channels} rows, or "
            f"twice as many with learn_sigma, got {final[0]}"
        )
    side = math.isqrt(positions[1])
    if side * side != positions[1]:
        raise ValueError(f"load_dit: pos_embed must hold a square of tokens, got {positions[1]}")
    if "num_heads" not in given and width not in _HEADS:
        raise ValueError(
            f"load_dit: num_heads is not in the file, and width {width} is none of the official "
            f"ones ({', '.join(map(str, _HEADS))}): give num_heads=..."
        )
    dropout = given.get("class_dropout_prob", 0.1)
    numbers = {k.split(".")[1] for k in state if k.startswith("blocks.")}
    return {
        "input_size": side * patch, "patch_size": patch, "in_channels": channels,
        "hidden_size": width, "depth": len(numbers), "num_heads": _HEADS.get(width),
        "mlp_ratio": fc1[0] / width, "class_dropout_prob": dropout,
        "num_classes": labels[0] - (dropout > 0), "learn_sigma": outputs == 2, **given,
    }  # fmt: skip


def _unwrap(loaded: Any, name: str) -> dict[str, Tensor]:
    """The tensors of a state dict, alone or as the "ema" (preferred) or "model" of a mapping."""
    for key in ("ema", "model", "state_dict"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
            break
    if not isinstance(loaded, Mapping) or not any(isinstance(v, Tensor) for v in loaded.values()):
        raise ValueError(f"load_dit: {name} holds no state dict, got {type(loaded).__name__}")
    return {_bare(str(k)): v for k, v in loaded.items() if isinstance(v, Tensor)}


def load_dit(source: str | PathLike[str] | Mapping[str, Any], **overrides: Any) -> DiT:
    """A DiT ready to sample (float32, eval mode, no gradients).

    Args:
        source: own .npz, a torch file of facebookresearch/DiT, or a state dict. No pickled code is
            run. Of a training checkpoint the "ema" weights are taken.
        overrides: arguments of `DiT` that shapes do not tell or that are to be changed.

    Raises:
        ValueError: names or shapes do not fit; lists missing, unexpected and misshapen ones.
        FileNotFoundError: no such file.
    """
    config: dict[str, Any] = {}
    if isinstance(source, Mapping):
        state = _unwrap(source, "the mapping")
    elif str(source).endswith(".npz"):
        config, state = load_checkpoint(Path(source))
    else:
        with torch.serialization.safe_globals([argparse.Namespace]):  # "args" of training files
            state = _unwrap(torch.load(source, weights_only=True, map_location="cpu"), str(source))
    settings = {**config, **overrides} if config else infer_dit_config(state, overrides)
    with torch.device("meta"):
        model = DiT(**settings)
    check_state_dict(model, state)
    model.load_state_dict({k: v.float() for k, v in state.items()}, assign=True)
    return model.eval().requires_grad_(False)


def load_digits_dit() -> DiT:
    """The embedded digit model: 10 classes, 28 x 28 pixels in [-1, 1], label 10 for "no label".

    Trained by models/train/train_dit.py; see `DiT.diffusion` for its schedule and prediction.
    """
    return load_dit(EMBEDDED)
