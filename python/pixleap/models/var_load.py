"""Loading VAR and its tokeniser: embedded digit checkpoints, own .npz files, official .pth files.

The official files (huggingface.co/FoundationVision/var: `vae_ch160v4096z32.pth`, `var_d16.pth` ...
`var_d36.pth`) hold bare state dicts; the architecture is read off names and shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .checkpoint import check_state_dict, load_checkpoint, load_state
from .quantizer import PATCH_NUMS_256, PATCH_NUMS_512
from .var import VAR
from .vqvae import VQVAE

StrPath = str | PathLike[str]
State = Mapping[str, Tensor]
Model = TypeVar("Model", bound=nn.Module)

OFFICIAL_VAE = "vae_ch160v4096z32.pth"
_PATCH_NUMS = {sum(n * n for n in p): p for p in (PATCH_NUMS_256, PATCH_NUMS_512)}
# Buffers of the official files that follow from the architecture, or serve training only.
_DERIVED = ("zero_k_bias", "lvl_1L", "attn_bias_for_masking", "ema_vocab_hit_SV")


def _embedded(name: str) -> Path:
    return Path(str(files(__package__) / "weights" / name))


def _read(path: StrPath) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config ({} for foreign files) and state dict without derived buffers, in float32."""
    if str(path).endswith(".npz"):
        config, state = load_checkpoint(Path(path))
    else:
        config, state = {}, load_state(Path(path))
    return config, _kept(state)


def _kept(state: State) -> dict[str, Tensor]:
    """Without derived buffers, in float32."""
    return {k: v.float() for k, v in state.items() if k.rpartition(".")[2] not in _DERIVED}


def _fill(model: Model, state: State) -> Model:
    """Give a model built on the meta device its weights; all or (ValueError) nothing."""
    check_state_dict(model, state)
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


def _shape(state: State, name: str, what: str) -> torch.Size:
    if name not in state:
        raise ValueError(f"{what}: no {name!r} in this file; is it another model's checkpoint? "
                         f"Its first names: {', '.join(sorted(state)[:4]) or 'none'}")  # fmt: skip
    return state[name].shape


def _count(state: State, prefix: str) -> int:
    """How many numbered children `prefix`0., `prefix`1., ... the names show."""
    numbers = {k[len(prefix) :].partition(".")[0] for k in state if k.startswith(prefix)}
    return len([n for n in numbers if n.isdigit()])


def infer_vqvae_config(state: State) -> dict[str, Any]:
    """Architecture of a VQVAE from its state dict (patch_nums and norm_groups are not in it)."""
    what = "load_vqvae"
    ch, in_channels = _shape(state, "encoder.conv_in.weight", what)[:2]
    vocab_size, z_channels = _shape(state, "quantize.embedding.weight", what)
    levels = _count(state, "encoder.down.")
    widths = [
        _shape(state, f"encoder.down.{i}.block.0.conv1.weight", what)[0] for i in range(levels)
    ]
    shared = _count(state, "quantize.quant_resi.qresi_ls.")
    if "quantize.quant_resi.qresi.weight" in state:
        shared = 1
    return {
        "ch": ch, "ch_mult": [w // ch for w in widths], "in_channels": in_channels,
        "num_res_blocks": _count(state, "encoder.down.0.block."),
        "vocab_size": vocab_size, "z_channels": z_channels, "share_quant_resi": shared,
    }  # fmt: skip


def infer_var_config(state: State) -> dict[str, Any]:
    """Architecture of a VAR from its state dict; patch_nums only for the two official sets."""
    what = "load_var"
    classes, width = _shape(state, "class_emb.weight", what)
    length = _shape(state, "pos_1LC", what)[1]
    l2_norm = "blocks.0.attn.scale_mul_1H11" in state
    config: dict[str, Any] = {
        "num_classes": classes - 1, "depth": _count(state, "blocks."), "embed_dim": width,
        "num_heads": state["blocks.0.attn.scale_mul_1H11"].shape[1] if l2_norm else width // 64,
        "mlp_ratio": _shape(state, "blocks.0.ffn.fc1.weight", what)[0] / width,
        "shared_aln": "shared_ada_lin.1.weight" in state, "attn_l2_norm": l2_norm,
    }  # fmt: skip
    if length in _PATCH_NUMS:
        config["patch_nums"] = list(_PATCH_NUMS[length])
    return config


def load_vqvae(path: StrPath | None = None, config: Mapping[str, Any] | None = None) -> VQVAE:
    """The tokeniser from a file, ready for inference (float32, eval mode, no gradients).

    Args:
        path: own .npz or official .pth; None for the embedded digit tokeniser.
        config: VQVAE arguments that override the stored or inferred ones, e.g. `patch_nums`
            (which official files do not hold; default: the 256 px set).

    Raises:
        ValueError: names or shapes do not fit; lists missing, unexpected and misshapen ones.
    """
    stored, state = _read(path if path is not None else _embedded("vqvae_digits.npz"))
    _shape(state, "quantize.embedding.weight", "load_vqvae")
    settings = {**(stored or infer_vqvae_config(state)), **(config or {})}
    with torch.device("meta"):
        model = VQVAE(**settings)
    return _fill(model, state)


def load_var(
    path: StrPath | None = None,
    vae_path: StrPath | None = None,
    config: Mapping[str, Any] | None = None,
) -> VAR:
    """A VAR with its tokeniser (`.vae`), ready for inference (float32, eval mode).

    Args:
        path: own .npz or official `var_d*.pth`; None for the embedded digit model (10 classes,
            28x28 pixels).
        vae_path: the tokeniser's file. None: for a .pth, `vae_ch160v4096z32.pth` in the same
            folder; otherwise the embedded digit tokeniser.
        config: VAR arguments that override the stored or inferred ones.

    Raises:
        ValueError: names or shapes do not fit; lists missing, unexpected and misshapen ones.
        FileNotFoundError: no such file.
    """
    stored, state = _read(path if path is not None else _embedded("var_digits.npz"))
    _shape(state, "class_emb.weight", "load_var")
    settings = {**(stored or infer_var_config(state)), **(config or {})}
    if "patch_nums" not in settings:
        raise ValueError(f"load_var: {state['pos_1LC'].shape[1]} tokens fit no official patch_nums "
                         f"({', '.join(map(str, _PATCH_NUMS))}); give config={{'patch_nums': ...}}"
                         )  # fmt: skip
    if vae_path is None and path is not None and not stored:
        vae_path = Path(path).with_name(OFFICIAL_VAE)
        if not vae_path.exists():
            raise FileNotFoundError(
                f"load_var: {path} needs its tokeniser: give vae_path, or put {OFFICIAL_VAE} "
                "beside it"
            )
    vae = load_vqvae(vae_path, {"patch_nums": settings["patch_nums"]})
    return _build_var(vae, settings, state)


def _build_var(vae: VQVAE, settings: Mapping[str, Any], state: State) -> VAR:
    with torch.device("meta"):
        model = VAR(vae, **settings)
    model = _fill(model, state)
    model.reset_buffers()
    return model


def var_from_states(
    state: State, vae_state: State, config: Mapping[str, Any], vae_config: Mapping[str, Any]
) -> VAR:
    """A VAR from state dicts under the official names, as those of a live model.

    Args:
        state, vae_state: of the transformer and its tokeniser; float32 tensors on the CPU are
            shared, not copied.
        config, vae_config: VAR and VQVAE arguments that override the inferred ones, e.g.
            `patch_nums`, `norm_groups`.

    Raises:
        ValueError: names or shapes do not fit; lists missing, unexpected and misshapen ones.
    """
    state, vae_state = _kept(state), _kept(vae_state)
    settings = {**infer_var_config(state), **config}
    with torch.device("meta"):
        vae = VQVAE(
            **{
                **infer_vqvae_config(vae_state),
                "patch_nums": settings["patch_nums"],
                **vae_config,
            }
        )
    return _build_var(_fill(vae, vae_state), settings, state)


def load_var_draft() -> VAR:
    """The embedded draft: a smaller VAR for the same digits and tokeniser as `load_var()`."""
    return load_var(_embedded("var_digits_draft.npz"))
