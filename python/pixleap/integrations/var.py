"""The official VAR (github.com/FoundationVision/VAR) with native sampling; needs torch.

var = px.integrations.var.accelerate(var)
var.autoregressive_infer_cfg(B=8, label_B=207, cfg=4, top_k=900, top_p=0.95, g_seed=0)

`accelerate` takes over the whole sampling loop. `patch` fuses the attention layers only and leaves
everything else, loop, draws and training, to the model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..decode import NextScaleDecoder
from ..models.var import class_labels
from ..models.var_load import var_from_states
from .var_attention import patch, unpatch

__all__ = ["AcceleratedVAR", "accelerate", "patch", "unpatch"]


def _tokeniser(model: nn.Module) -> nn.Module:
    """The VQVAE of a VAR: `vae_proxy`, a tuple in the official code, or `vae`."""
    for name in ("vae_proxy", "vae"):
        vae = getattr(model, name, None)
        if isinstance(vae, (tuple, list)) and vae:
            vae = vae[0]
        if isinstance(vae, nn.Module):
            return vae
    raise ValueError(
        "accelerate: argument 'model' expected a VAR with its tokeniser as vae_proxy or vae, got "
        f"{type(model).__name__} with neither"
    )


def _tokeniser_config(vae: nn.Module) -> dict[str, Any]:
    """What the names and shapes of a tokeniser's weights do not tell."""
    config: dict[str, Any] = {}
    groups = {m.num_groups for m in vae.modules() if isinstance(m, nn.GroupNorm)}
    if len(groups) == 1:
        config["norm_groups"] = groups.pop()
    quantizer: Any = getattr(vae, "quantize", None)
    if hasattr(quantizer, "using_znorm"):
        config["using_znorm"] = bool(quantizer.using_znorm)
    for module in quantizer.modules() if isinstance(quantizer, nn.Module) else ():
        ratio = getattr(module, "resi_ratio", getattr(module, "ratio", None))
        if isinstance(module, nn.Conv2d) and ratio is not None:
            config["quant_resi"] = float(ratio)
    return config


class AcceleratedVAR:
    """Stands in for an official VAR: sampling is native, all other attributes are the model's.

    Attributes:
        official: the model given.
        decoder: `pixleap.decode.NextScaleDecoder` of its weights.
    """

    def __init__(self, official: nn.Module, decoder: NextScaleDecoder) -> None:
        self.official, self.decoder = official, decoder

    def __getattr__(self, name: str) -> Any:
        if name in ("official", "decoder"):  # not set yet, as while unpickling
            raise AttributeError(name)
        return getattr(self.official, name)

    @torch.no_grad()
    def autoregressive_infer_cfg(
        self,
        B: int,
        label_B: int | Tensor | None,
        g_seed: int | None = None,
        cfg: float = 1.5,
        top_k: int = 0,
        top_p: float = 0.0,
        more_smooth: bool = False,
    ) -> Tensor:
        """Images (B, 3, height, width) in [0, 1]; arguments as in the official code.

        label_B: one label, (B,) labels, or None for random ones; negative means none. g_seed None
        draws a fresh seed from torch's global generator. top_k and top_p 0 switch a filter off.
        The law is the official one; the noise is pixleap's, so that pictures of a seed differ.

        Raises:
            ValueError, TypeError: labels or options that do not fit.
        """
        if not 0.0 <= top_p <= 1.0:
            raise ValueError(
                f"autoregressive_infer_cfg: argument 'top_p' expected a number in [0, 1], got "
                f"{top_p}"
            )
        seed = int(torch.randint(2**62, ())) if g_seed is None else int(g_seed)
        packed, generator = self.decoder.packed, torch.Generator().manual_seed(seed)
        labels = class_labels(B, label_B, packed.num_classes, generator)
        return self.decoder(
            labels, cfg=cfg, top_k=min(top_k, packed.vocabulary), top_p=top_p or 1.0, seed=seed,
            more_smooth=more_smooth,
        )  # fmt: skip


def accelerate(model: nn.Module, weights: str = "float32") -> AcceleratedVAR:
    """Packs the weights of an official VAR for native sampling.

    Args:
        model: any module with the official parameter names and a tokeniser (`vae_proxy` or `vae`),
            on the CPU. It is not changed; later changes of its weights are not seen.
        weights: "float32"; "bfloat16" or "int8" for half or a quarter of the weight traffic.

    Returns:
        An `AcceleratedVAR` with the model's `autoregressive_infer_cfg`.

    Raises:
        ValueError: no tokeniser, not on the CPU, parameters that are not VAR's, or other weights.
    """
    vae = _tokeniser(model)
    state, vae_state = model.state_dict(), vae.state_dict()
    for name, tensor in [*state.items(), *vae_state.items()]:
        if tensor.device.type != "cpu":
            raise ValueError(
                f"accelerate: argument 'model' expected parameters on the CPU, got {name!r} on "
                f"{tensor.device}"
            )
    own = [k for k in state if k.startswith(("vae.", "vae_proxy."))]  # a registered submodule
    state = {k: v for k, v in state.items() if k not in own}
    config: dict[str, Any] = {}
    for name in ("patch_nums", "num_heads"):
        if hasattr(model, name):
            config[name] = getattr(model, name)
    for name, module in model.named_modules():
        if name == "blocks.0.ln_wo_grad" and isinstance(module, nn.LayerNorm):
            config["norm_eps"] = module.eps
    packed = var_from_states(state, vae_state, config, _tokeniser_config(vae))
    return AcceleratedVAR(model, NextScaleDecoder(packed, weights))
