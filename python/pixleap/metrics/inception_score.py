from __future__ import annotations

import itertools

import numpy as np

from ._features import Array, check_features, check_number, to_numpy


def inception_score(
    x: Array, splits: int = 10, *, logits: bool = False, seed: int | None = None
) -> tuple[float, float]:
    """Inception Score: exp(E KL(p(class | sample) || p(class))), per split.

    Args:
        x: (N, classes) class probabilities, or logits with `logits=True`; NumPy or torch. float64
            is kept, and all arithmetic is float64.
        splits: consecutive parts, of sizes that differ by one at most, each scored alone.
        seed: shuffle the samples first; None keeps their order, as the original code does.

    Returns:
        Mean and standard deviation of the score over the splits.

    Raises:
        ValueError: fewer samples than splits, NaN or infinity (with the first bad row), rows that
            are not probabilities.

    Source: Salimans et al., "Improved Techniques for Training GANs" (NeurIPS 2016).
    """
    name = "inception_score"
    check_number(name, "splits", splits, 1, whole=True)
    check_features(name, "x", x, splits)
    values = to_numpy(name, "x", x).astype(np.float64)
    if logits:
        values = np.exp(values - values.max(axis=1, keepdims=True))
        values /= values.sum(axis=1, keepdims=True)
    else:
        bad = (values < 0).any(axis=1) | (np.abs(values.sum(axis=1) - 1) > 1e-2)
        if bad.any():
            raise ValueError(
                f"{name}: argument 'x' expected probabilities (pass logits=True for logits), "
                f"got row {int(bad.argmax())} with sum {values[bad.argmax()].sum():g} and minimum "
                f"{values[bad.argmax()].min():g}"
            )
    if seed is not None:
        values = values[np.random.RandomState(seed).permutation(len(values))]
    bounds = [i * len(values) // splits for i in range(splits + 1)]
    scores = []
    for begin, end in itertools.pairwise(bounds):
        part = values[begin:end]
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = part * (np.log(part) - np.log(part.mean(axis=0)))
        terms[part == 0] = 0.0  # p log p at 0
        scores.append(np.exp(terms.sum(axis=1).mean()))
    return float(np.mean(scores)), float(np.std(scores))
