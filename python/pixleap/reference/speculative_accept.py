from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from .philox import philox
from .sample_tokens import stream

MASK = 2**64 - 1


def uniform_pair(group: int, seed: int, offset: int) -> tuple[float, float, int]:
    """Two uniform numbers in (0, 1) of one group, and its last two words as a key."""
    words = [int(w) for w in philox(np.array([group & MASK], np.uint64), seed, offset)[0]]
    high, low = (words[0] << 32) | words[1], (words[2] << 32) | words[3]
    return ((high >> 12) + 0.5) * 2.0**-52, ((low >> 12) + 0.5) * 2.0**-52, low


def draw(weights: np.ndarray, u: float) -> int:
    """The least index whose running weight exceeds u times the total."""
    sums = np.cumsum(weights)
    last = int(np.flatnonzero(weights)[-1])
    return min(int(np.searchsorted(sums, u * sums[-1], side="right")), last)


def draw_residual(p: np.ndarray, q: np.ndarray, u: float) -> int:
    """A draw from (p - q)+, or from p where that is zero."""
    residual = np.maximum(p - q, 0)
    return draw(residual if residual.any() else p, u)


def check_rows(op: str, name: str, rows: np.ndarray) -> np.ndarray:
    """Rows as distributions."""
    sums = rows.sum(axis=-1, keepdims=True)
    if not (np.isfinite(sums).all() and (rows >= 0).all() and (sums > 0).all()):
        raise ValueError(f"{op}: argument '{name}' expected rows of probabilities")
    return rows / sums


def log_ratio(p: np.ndarray, q: np.ndarray, tokens: np.ndarray) -> float:
    """log of prod_l p_l / q_l at the tokens."""
    at = np.arange(len(tokens)), tokens
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.where(p[at] > 0, np.log(p[at] / q[at]), -np.inf).sum())


def _tries(p: np.ndarray, key: int, sample: int) -> Iterator[tuple[np.ndarray, float]]:
    """Scales drawn from p, each with a uniform number."""
    t, slots = 0, len(p) + 1
    while True:
        u = [uniform_pair(t * slots + l, key, sample)[0] for l in range(slots)]  # noqa: E741
        yield np.array([draw(row, number) for row, number in zip(p, u, strict=False)]), u[-1]
        t += 1


def _joint(
    p: np.ndarray, q: np.ndarray, tokens: np.ndarray, words: tuple[float, float, int], sample: int
) -> tuple[np.ndarray, bool]:
    at = np.arange(len(tokens)), tokens
    possible = (p[at] > 0).all() and (q[at] > 0).all()
    if possible and np.log(words[0]) < log_ratio(p, q, tokens):
        return tokens, True
    bound = 1.0
    for t, (candidate, u) in enumerate(_tries(p, words[2], sample)):
        if t == 4:  # the largest value of 1 - Q / P, where it matters
            with np.errstate(divide="ignore", invalid="ignore"):
                most = np.log(np.where(p > 0, p / q, 0).max(axis=-1)).sum()
            if most < 1e-12:
                return candidate, False
            bound = -np.expm1(-most)
        if u * bound < -np.expm1(-log_ratio(p, q, candidate)):
            return candidate, False
    raise AssertionError("tries do not end")


def verify(
    p: np.ndarray,
    q: np.ndarray,
    tokens: np.ndarray,
    decide: Callable[[np.ndarray, np.ndarray, int, float], bool],
    chain: bool,
    seed: int,
    offset: int,
    first_sample: int,
    seeds: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Modes token and chain: each drafted token stays if decide(p, q, token, u), else the
    residual replaces it."""
    batch, length = tokens.shape
    result = np.full((batch, p.shape[1]), -1, np.int64)
    accepted = np.zeros((batch, length), bool)
    for b in range(batch):
        sample, key = stream(b, seed, first_sample, seeds)
        for l in range(p.shape[1]):  # noqa: E741
            u, v, _ = uniform_pair(sample * (length + 1) + l, key, offset)
            if l == length:
                result[b, l] = draw(p[b, l], v)
                break
            accepted[b, l] = decide(p[b, l], q[b, l], int(tokens[b, l]), u)
            result[b, l] = tokens[b, l] if accepted[b, l] else draw_residual(p[b, l], q[b, l], v)
            if chain and not accepted[b, l]:
                break
    return result, accepted, np.cumprod(accepted, axis=1).sum(axis=1).astype(np.int64)


def speculative_accept(
    target: np.ndarray,
    draft: np.ndarray,
    tokens: np.ndarray,
    *,
    mode: str = "token",
    seed: int = 0,
    offset: int = 0,
    first_sample: int = 0,
    seeds: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Exact verification of drafted tokens; see `pixleap.ops.speculative_accept`."""
    p = check_rows("speculative_accept", "target", np.asarray(target, np.float64))
    q = check_rows("speculative_accept", "draft", np.asarray(draft, np.float64))
    if mode != "joint":

        def decide(p: np.ndarray, q: np.ndarray, token: int, u: float) -> bool:
            return bool(q[token] > 0 and u * q[token] < p[token])

        chain = mode == "chain"
        return verify(p, q, tokens, decide, chain, seed, offset, first_sample, seeds)
    batch, length = tokens.shape
    result, accepted = np.empty((batch, length), np.int64), np.zeros((batch, length), bool)
    for b in range(batch):
        sample, key = stream(b, seed, first_sample, seeds)
        words = uniform_pair(sample * (length + 1) + length, key, offset)
        result[b], accepted[b] = _joint(p[b], q[b], tokens[b], words, sample)
    return result, accepted, np.where(accepted.all(axis=1), length, 0).astype(np.int64)
