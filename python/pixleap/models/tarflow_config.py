"""What the shapes in a published TarFlow state dict say about the model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor


def config_from_shapes(state: Mapping[str, Tensor], given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `TarFlow` that fit `state`, unless `given` says otherwise."""
    first = "blocks.0."
    needed = [f"{first}{k}" for k in ("proj_in.weight", "pos_embed", "proj_out.weight")]
    needed.append(f"{first}attn_blocks.0.mlp.main.0.weight")
    missing = [k for k in needed if k not in state]
    if missing:
        raise ValueError(f"not a TarFlow state dict: missing {', '.join(missing)}")
    proj_in, pos_embed, proj_out, hidden = (state[k] for k in needed)
    channels, patch_dim = proj_in.shape
    embed = state.get(f"{first}class_embed")
    config: dict[str, Any] = {
        "channels": channels,
        "num_blocks": len({k.split(".")[1] for k in state if k.startswith("blocks.")}),
        "layers_per_block": len(
            {k.split(".")[3] for k in state if k.startswith(f"{first}attn_blocks.")}
        ),
        "expansion": hidden.shape[0] // channels,
        "nvp": proj_out.shape[0] == 2 * patch_dim,
        "num_classes": 0 if embed is None else embed.shape[0],
    }
    return {**config, **_image_shape(patch_dim, pos_embed.shape[0], given), **given}


def _image_shape(patch_dim: int, patches: int, given: Mapping[str, Any]) -> dict[str, int]:
    """in_channels, img_size, patch_size from what one patch holds and how many there are."""
    side = math.isqrt(patches)
    channels = given.get("in_channels")
    patch = given.get("patch_size")
    if patch is None and "img_size" in given:
        patch = given["img_size"] // side
    if patch is None:
        channels = channels or 3  # RGB is the only guess made
        patch = math.isqrt(patch_dim // channels)
    channels = channels or patch_dim // max(patch, 1) ** 2
    shape = {"in_channels": channels, "img_size": side * patch, "patch_size": patch}
    fits = all(given.get(k, v) == v for k, v in shape.items())
    if not fits or channels * patch**2 != patch_dim or side**2 != patches:
        told = {k: given[k] for k in shape if k in given} or "nothing"
        raise ValueError(
            f"cannot tell the image shape from {patches} patches of {patch_dim} values (given: "
            f"{told}): pass in_channels, img_size and patch_size, where in_channels * patch_size**2"
            f" = {patch_dim} and (img_size // patch_size)**2 = {patches}"
        )
    return shape
