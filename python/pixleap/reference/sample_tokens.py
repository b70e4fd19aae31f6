from __future__ import annotations

from typing import Any

import numpy as np

from .philox import philox, uniform_open


def guided(logits: np.ndarray, uncond: np.ndarray | None, guidance_scale: float) -> np.ndarray:
    """(B, L, V) float64 logits in use; NaN is -inf."""
    x = np.asarray(logits, np.float64)
    with np.errstate(invalid="ignore"):
        if uncond is not None:
            x = guidance_scale * x + (1 - guidance_scale) * np.asarray(uncond, np.float64)
    return np.where(np.isnan(x), -np.inf, x)


def filtered(x: np.ndarray, temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """Which tokens of a row of logits may be drawn."""
    keep = x > -np.inf
    if temperature == 0 or not np.isfinite(x.max()):
        return np.arange(len(x)) == x.argmax()
    if top_k > 0:
        keep &= x >= np.sort(x)[-top_k]
    if top_p < 1:
        weights = np.where(keep, np.exp((x - x.max()) / temperature), 0.0)
        order = np.argsort(np.where(keep, x, -np.inf), kind="stable")
        removed = np.cumsum(weights[order]) <= (1 - top_p) * weights.sum()
        removed[-1] = False
        keep[order[removed]] = False
    return keep


def log_softmax(x: np.ndarray, keep: np.ndarray, temperature: float) -> np.ndarray:
    """Of the kept values of a row over the temperature; -inf elsewhere."""
    if keep.sum() == 1:
        return np.where(keep, 0.0, -np.inf)
    with np.errstate(invalid="ignore"):
        y = np.where(keep, (x - x[keep].max()) / temperature, -np.inf)
    with np.errstate(divide="ignore"):
        return y - np.log(np.exp(y).sum())


def row_gumbel(
    row: int, vocabulary: int, seed: int, offset: int, noise_dtype: str = "float32"
) -> np.ndarray:
    """Gumbel noise of the tokens of one row."""
    first = row * vocabulary
    groups = np.arange(first // 4, (first + vocabulary + 3) // 4, dtype=np.uint64)
    words = philox(groups, seed, offset).reshape(-1)[first % 4 :][:vocabulary]
    if noise_dtype == "float32":
        return -np.log(-np.log(uniform_open(words)))
    low = philox(groups + np.uint64(2**63), seed, offset).reshape(-1)[first % 4 :][:vocabulary]
    bits = (words.astype(np.uint64) << np.uint64(20)) | (low >> np.uint32(12)).astype(np.uint64)
    return -np.log(-np.log((bits.astype(np.float64) + 0.5) * 2.0**-52))


def stream(b: int, seed: int, first_sample: int, seeds: np.ndarray | None) -> tuple[int, int]:
    """Index of sample b in the stream that it draws from, and the seed of that."""
    if seeds is None:
        return first_sample + b, seed
    row = np.atleast_1d(seeds[b])
    return first_sample + (int(row[1]) if len(row) > 1 else 0), int(row[0])


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
    first_position: int = 0,
    length: int = 0,
    noise_dtype: str = "float32",
    seeds: np.ndarray | None = None,
    return_log_prob: bool = False,
    return_probabilities: bool = False,
) -> Any:
    """One token per position; see `pixleap.ops.sample_tokens`."""
    x = guided(logits, uncond, guidance_scale)
    vocabulary = x.shape[2]
    tokens = np.zeros(x.shape[:2], np.int64)
    log_prob, probabilities = np.zeros(x.shape[:2]), np.zeros(x.shape)
    for b, l in np.ndindex(*x.shape[:2]):  # noqa: E741
        keep = filtered(x[b, l], temperature, top_k, top_p)
        distribution = log_softmax(x[b, l], keep, temperature)
        sample, key = stream(b, seed, first_sample, seeds)
        row = sample * (length or x.shape[1]) + first_position + l
        gumbel = row_gumbel(row, vocabulary, key, offset, noise_dtype)
        tokens[b, l] = (distribution + gumbel).argmax()
        log_prob[b, l] = distribution[tokens[b, l]]
        probabilities[b, l] = np.exp(distribution)
    if not (return_log_prob or return_probabilities):
        return tokens
    return (
        tokens,
        *([log_prob] if return_log_prob else []),
        *([probabilities] if return_probabilities else []),
    )
