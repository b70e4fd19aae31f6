"""What the token decoders share: draws from the outputs of a model, and arrays of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import ops
from .._arrays import Array, is_torch


@dataclass(frozen=True)
class TokenSampling:
    """Guidance and filters, as in `pixleap.ops.sample_tokens`. A model's output is its logits, or
    with guidance the pair (logits, logits without the condition).

    noise_dtype: "float64" by default here: many small draws add up (arXiv:2409.02908).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance_scale: float = 1.0
    noise_dtype: str = "float64"

    def _filters(self, output: Any) -> tuple[Array, dict[str, Any]]:
        logits, uncond = output if isinstance(output, tuple) else (output, None)
        filters = {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
        return logits, {**filters, "uncond": uncond, "guidance_scale": self.guidance_scale}

    def draw(self, output: Any, **options: Any) -> Any:
        """Tokens (B, L), with whatever else the options of `sample_tokens` ask for."""
        logits, filters = self._filters(output)
        return ops.sample_tokens(logits, noise_dtype=self.noise_dtype, **filters, **options)

    def probabilities(self, output: Any) -> Array:
        """(B, L, V) float32 of what `draw` draws from."""
        logits, filters = self._filters(output)
        return ops.token_probabilities(logits, **filters)


def rows_of(output: Any, index: Any) -> Any:
    """output[index] of logits or of a pair of them."""
    return tuple(x[index] for x in output) if isinstance(output, tuple) else output[index]


def to_numpy(x: Array) -> np.ndarray:
    """On the host."""
    return x.detach().cpu().numpy() if is_torch(x) else np.asarray(x)


def as_array(x: np.ndarray, like: Array) -> Array:
    """In the framework and on the device of `like`."""
    if not is_torch(like):
        return x
    import torch

    return torch.as_tensor(x, device=like.device)


def copy_of(x: Array) -> Array:
    return x.clone() if is_torch(x) else np.array(x)


def check_tokens(function: str, name: str, tokens: Array) -> tuple[int, int]:
    """(B, L) int64; returns its shape."""
    kind = str(getattr(tokens, "dtype", type(tokens).__name__)).removeprefix("torch.")
    if kind != "int64":
        raise TypeError(f"{function}: argument '{name}' expected an int64 array, got {kind}")
    if len(tokens.shape) != 2:
        raise ValueError(
            f"{function}: argument '{name}' expected shape (B, L), got {tuple(tokens.shape)}"
        )
    return int(tokens.shape[0]), int(tokens.shape[1])
