from __future__ import annotations

import numpy as np

from .sample_tokens import filtered, guided, log_softmax, row_gumbel, stream


def gumbel_softmax(
    logits: np.ndarray,
    *,
    uncond: np.ndarray | None = None,
    guidance_scale: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    logit_scale: float = 1.0,
    temperature: float = 1.0,
    seed: int = 0,
    offset: int = 0,
    first_sample: int = 0,
    seeds: np.ndarray | None = None,
) -> np.ndarray:
    """Weights of codes with the noise of a draw; see `pixleap.ops.gumbel_softmax`."""
    x = guided(logits, uncond, guidance_scale)
    length, vocabulary = x.shape[1:]
    weights = np.zeros(x.shape)
    for b, l in np.ndindex(*x.shape[:2]):  # noqa: E741
        keep = filtered(x[b, l], 1.0, top_k, top_p)
        scaled = np.where(keep, x[b, l], 0.0)
        if keep.sum() > 1:
            sample, key = stream(b, seed, first_sample, seeds)
            noise = row_gumbel(sample * length + l, vocabulary, key, offset)
            scaled = logit_scale * scaled + noise
        weights[b, l] = np.exp(log_softmax(scaled, keep, temperature))
    return weights
