from __future__ import annotations

import numpy as np

from .sample_tokens import filtered, guided, log_softmax


def token_probabilities(
    logits: np.ndarray,
    *,
    tokens: np.ndarray | None = None,
    uncond: np.ndarray | None = None,
    guidance_scale: float = 1.0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    log: bool = False,
) -> np.ndarray:
    """What `sample_tokens` draws from; see `pixleap.ops.token_probabilities`."""
    x = guided(logits, uncond, guidance_scale)
    result = np.zeros(x.shape)
    for b, l in np.ndindex(*x.shape[:2]):  # noqa: E741
        keep = filtered(x[b, l], temperature, top_k, top_p)
        result[b, l] = log_softmax(x[b, l], keep, temperature)
    if tokens is not None:
        result = np.take_along_axis(result, tokens[..., None], axis=-1)[..., 0]
    return result if log else np.exp(result)
