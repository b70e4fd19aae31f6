"""Reading and writing of weights: small pickle-free .npz files, and torch files of others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_WRAPPERS = ("model", "state_dict", "model_state_dict", "module", "trainer")
_PREFIXES = ("module.", "_orig_mod.")  # left by DistributedDataParallel and torch.compile


def save_checkpoint(path: str | Path, config: dict[str, Any], state: Mapping[str, Tensor]) -> None:
    """Write `state` (floats as fp16, integers as they are) and `config` (JSON) to a .npz file.

    Raises ValueError for a weight that is finite but too large for fp16.
    """
    arrays: dict[str, Any] = {}
    for name, value in state.items():
        value = value.detach().cpu()
        stored = value.half() if value.is_floating_point() else value
        if not torch.equal(stored.isfinite(), value.isfinite()):
            raise ValueError(f"{name}: {value.abs().max():.3g} is too large for fp16")
        arrays[name] = stored.numpy()
    if "config" in arrays:
        raise ValueError("a tensor may not be called 'config': the entry holds the configuration")
    np.savez_compressed(path, config=np.array(json.dumps(config)), **arrays)


def load_checkpoint(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what `save_checkpoint` wrote: the config, and the state with floats as float32."""
    with np.load(path, allow_pickle=False) as file:
        if "config" not in file.files:
            raise ValueError(f"{path}: not a pixleap checkpoint (no 'config' entry)")
        config = json.loads(str(file["config"]))
        state = {name: torch.from_numpy(file[name]) for name in file.files if name != "config"}
    return config, {k: v.float() if v.is_floating_point() else v for k, v in state.items()}


def load_state(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from a .npz of ours or a torch file, without running pickled code.

    Wrappers such as {"model": ...} are opened; leading "module." and "_orig_mod." are dropped.
    """
    if str(path).endswith(".npz"):
        return load_checkpoint(path)[1]
    state = torch.load(path, weights_only=True, map_location="cpu")
    while isinstance(state, Mapping) and not any(isinstance(v, Tensor) for v in state.values()):
        inner = [state[k] for k in _WRAPPERS if isinstance(state.get(k), Mapping)]
        if not inner:
            break
        state = inner[0]
    if not isinstance(state, Mapping):
        raise ValueError(f"{path}: expected a state dict, got {type(state).__name__}")
    tensors = {_bare(str(k)): v for k, v in state.items() if isinstance(v, Tensor)}
    if not tensors:
        raise ValueError(f"{path}: no tensors found; top-level keys: {list(state)[:8]}")
    return tensors


def _bare(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def check_state_dict(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Raise ValueError naming every key that is missing, unexpected or of the wrong shape.

    Call it before `model.load_state_dict(state)`, so that nothing is ever half loaded.
    """
    own = model.state_dict()
    problems = [f"missing: {k}" for k in own if k not in state]
    problems += [f"unexpected: {k}" for k in state if k not in own]
    problems += [
        f"wrong shape: {k}: expected {tuple(own[k].shape)}, got {tuple(state[k].shape)}"
        for k in own
        if k in state and own[k].shape != state[k].shape
    ]
    if problems:
        raise ValueError(
            f"state dict does not fit {type(model).__name__}:\n  " + "\n  ".join(problems)
        )
