"""What the token decoders share: draws from the outputs of a model, and arrays of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import ops
from .._arrays import Array, is_torch, shape
from ..reference.philox import philox


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


def uniforms(shape: tuple[int, int], seed: int, offset: int, first_sample: int) -> np.ndarray:
    """(B, L) float64 in (0, 1): 52 bits of the words 2e and 2e + 1 of the Philox stream, e the
    element's index in the whole batch."""
    batch, length = shape
    first, count = first_sample * length, batch * length
    groups = np.arange(first // 2, (first + count + 1) // 2, dtype=np.uint64)
    pairs = philox(groups, seed, offset).astype(np.uint64).reshape(-1, 2)[first % 2 :][:count]
    bits = (pairs[:, 0] << np.uint64(20)) | (pairs[:, 1] >> np.uint64(12))
    return ((bits.astype(np.float64) + 0.5) * 2.0**-52).reshape(shape)


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


def check_floats(function: str, name: str, x: Array, ndim: int) -> tuple[int, ...]:
    """float32 with `ndim` dimensions; returns the shape."""
    kind = str(getattr(x, "dtype", type(x).__name__)).removeprefix("torch.")
    if kind != "float32":
        raise TypeError(f"{function}: argument '{name}' expected a float32 array, got {kind}")
    return shape(x, function, name, ndim)
