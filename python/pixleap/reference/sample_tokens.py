from __future__ import annotations

import numpy as np

from .philox import philox, uniform_open


def _filter(x: np.ndarray, temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """Which tokens of a row of logits may be drawn."""
    keep = x > -np.inf
    if top_k > 0:
        keep &= x >= np.sort(x)[-top_k]
    if top_p < 1:
        weights = np.where(keep, np.exp((x - x.max()) / temperature), 0.0)
        order = np.argsort(np.where(keep, x, -np.inf), kind="stable")
        removed = np.cumsum(weights[order]) <= (1 - top_p) * weights.sum()
        removed[-1] = False
        keep[order[removed]] = False
    return keep


def sample_tokens(
    logits: np.ndarray,
    *,
    uncond: np.ndarray | None = None,
    guidance_scale: float = 1.0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    offset: int = 0,
    first_sample: int = 0,
) -> np.ndarray:
    """One token per position; see `pixleap.ops.sample_tokens`."""
    x = np.asarray(logits, np.float64)
    with np.errstate(invalid="ignore"):
        if uncond is not None:
            x = guidance_scale * x + (1 - guidance_scale) * np.asarray(uncond, np.float64)
    x = np.where(np.isnan(x), -np.inf, x)
    batch, length, vocabulary = x.shape
    tokens = np.zeros((batch, length), np.int64)
    for b, l in np.ndindex(batch, length):  # noqa: E741
        row = x[b, l]
        top = row.max()
        if temperature == 0 or not np.isfinite(top):
            tokens[b, l] = row.argmax()
            continue
        first = ((first_sample + b) * length + l) * vocabulary
        groups = np.arange(first // 4, (first + vocabulary + 3) // 4, dtype=np.uint64)
        words = philox(groups, seed, offset).reshape(-1)[first % 4 :][:vocabulary]
        gumbel = -np.log(-np.log(uniform_open(words)))
        keep = _filter(row, temperature, top_k, top_p)
        score = np.where(keep, (row - top) / temperature + gumbel, -np.inf)
        tokens[b, l] = score.argmax()
    return tokens
