"""Searches for a sampler: time steps by evolution, solver schedules with a predictor.

Both minimise a score that the caller gives, such as the FID of samples; NumPy's generator drives
them, so a seed fixes the course.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class SearchResult:
    """best, its score, and every scored candidate with its score, in order of evaluation."""

    best: Any
    score: float
    history: list[tuple[Any, float]] = field(default_factory=list)


class _Scores:
    """The caller's score, each candidate once."""

    def __init__(self, score: Callable[[Any], float]) -> None:
        self.score = score
        self.known: dict[tuple[Any, ...], float] = {}

    def __call__(self, candidate: tuple[Any, ...]) -> float:
        if candidate not in self.known:
            value = float(self.score(candidate))
            self.known[candidate] = value if np.isfinite(value) else float("inf")
        return self.known[candidate]

    def result(self) -> SearchResult:
        best = min(self.known, key=self.known.__getitem__)
        return SearchResult(best, self.known[best], list(self.known.items()))


def search_timesteps(
    score: Callable[[tuple[float, ...]], float],
    times: Sequence[float],
    steps: int,
    *,
    population: int = 50,
    generations: int = 10,
    parents: int = 10,
    crossovers: int = 15,
    mutations: int = 25,
    mutation_probability: float = 0.2,
    seed: int = 0,
    start: Sequence[Sequence[float]] = (),
) -> SearchResult:
    """Which `steps` of the times to evaluate (Li et al. 2023, arXiv 2309.10438, AutoDiffusion:
    evolution over time-step sequences, algorithm 1).

    A generation keeps the `parents` best candidates ever scored; children are crossovers (`steps`
    times drawn from the union of two parents) and mutations (each time is replaced with
    `mutation_probability`), filled up to `population` by random ones.

    Args:
        score: of decreasing times, to be minimised.
        times: all that may be chosen.
        start: candidates of the first population, as a uniform grid.
    """
    pool = sorted({float(t) for t in times}, reverse=True)
    if not 1 <= steps <= len(pool):
        raise ValueError(
            f"search_timesteps: argument 'steps' expected 1 to {len(pool)}, got {steps}"
        )
    if parents < 1 or population < 1:
        raise ValueError("search_timesteps: expected population and parents >= 1")
    rng, scores = np.random.default_rng(seed), _Scores(score)

    def pick(choices: Sequence[float]) -> tuple[float, ...]:
        return tuple(sorted(rng.choice(choices, steps, replace=False).tolist(), reverse=True))

    def mutated(candidate: tuple[float, ...]) -> tuple[float, ...]:
        kept = [t for t in candidate if rng.random() >= mutation_probability]
        others = [t for t in pool if t not in kept]
        drawn = rng.choice(others, steps - len(kept), replace=False).tolist()
        return tuple(sorted([*kept, *drawn], reverse=True))

    for candidate in start:
        chosen = tuple(sorted((float(t) for t in candidate), reverse=True))
        if len(chosen) != steps or not set(chosen) <= set(pool):
            raise ValueError(
                f"search_timesteps: argument 'start' expected {steps} of the times, got {chosen}"
            )
        scores(chosen)
    generation = [pick(pool) for _ in range(max(population - len(start), 0))]
    for _ in range(generations + 1):
        for candidate in generation:
            scores(candidate)
        best = sorted(scores.known, key=scores.known.__getitem__)[:parents]

        def parent(best: list[tuple[Any, ...]] = best) -> tuple[float, ...]:
            return best[int(rng.integers(len(best)))]

        children = [pick(sorted({*parent(), *parent()})) for _ in range(crossovers)]
        children += [mutated(parent()) for _ in range(mutations)]
        fill = population - len(children)
        generation = children + [pick(pool) for _ in range(max(fill, 0))]
    return scores.result()


def encode_schedule(candidate: Sequence[Any], choices: Sequence[Sequence[Any]]) -> np.ndarray:
    """One-hot features of a choice at every step, and of pairs of neighbouring choices."""
    hot = [
        np.array([c == option for option in row], float)
        for c, row in zip(candidate, choices, strict=True)
    ]
    pairs = [np.outer(a, b).ravel() for a, b in itertools.pairwise(hot)]
    return np.concatenate([[1.0], *hot, *pairs])


def _ridge(x: np.ndarray, y: np.ndarray, strength: float) -> np.ndarray:
    gram = x.T @ x + strength * np.eye(x.shape[1])
    return np.linalg.solve(gram, x.T @ y)


def search_schedule(
    score: Callable[[tuple[Any, ...]], float],
    choices: Sequence[Sequence[Any]],
    *,
    first: int = 40,
    rounds: int = 5,
    per_round: int = 10,
    candidates: int = 500,
    ridge: float = 1.0,
    seed: int = 0,
) -> SearchResult:
    """A choice for every step with a predictor of the score (Liu et al. 2023, arXiv 2312.07243,
    S^3: predictor-based multi-stage search over solver schedules).

    After `first` random schedules every round fits a ridge regression of the scores' ranks on
    one-hot features, ranks `candidates` new schedules by it (half random, half mutations of the
    best), and scores the `per_round` best of them.

    Args:
        score: of a tuple with one choice per step, to be minimised; solver schedules run as
            `solver_plan("per_step", ..., solvers=candidate)`.
        choices: what each step may be, hashable: names, or (name, order, ...) tuples that the
            score makes options of. Noise levels are searched alike, as a row of choices of
            their own.
    """
    if not choices or any(not len(row) for row in choices):
        raise ValueError("search_schedule: argument 'choices' expected a choice for every step")
    rng, scores = np.random.default_rng(seed), _Scores(score)

    def random() -> tuple[Any, ...]:
        return tuple(row[int(rng.integers(len(row)))] for row in choices)

    def mutated(candidate: tuple[Any, ...]) -> tuple[Any, ...]:
        at = int(rng.integers(len(choices)))
        return tuple(
            choices[i][int(rng.integers(len(choices[i])))] if i == at or rng.random() < 0.1 else c
            for i, c in enumerate(candidate)
        )

    for _ in range(first):
        scores(random())
    for _ in range(rounds):
        known = sorted(scores.known, key=scores.known.__getitem__)
        x = np.array([encode_schedule(c, choices) for c in known])
        weights = _ridge(x, np.linspace(0, 1, len(known)), ridge)
        best = known[: max(1, len(known) // 5)]
        fresh = {random() for _ in range(candidates // 2)}
        fresh |= {mutated(best[int(rng.integers(len(best)))]) for _ in range(candidates // 2)}
        new = sorted((c for c in fresh if c not in scores.known), key=repr)
        ranked = sorted(new, key=lambda c: float(encode_schedule(c, choices) @ weights))
        for candidate in ranked[:per_round]:
            scores(candidate)
    return scores.result()
