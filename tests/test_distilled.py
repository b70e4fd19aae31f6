"""Distilled decoding: the teacher's map keeps the model's law, a perfect student its tokens."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from pixleap.decode import DistilledTeacher, NoiseMapping, TokenSampling, distilled

V, D, L = 5, 2, 3
RNG = np.random.default_rng(11)
CODEBOOK = RNG.standard_normal((V, D))
TABLES = [1.5 * RNG.standard_normal((V,) * (i + 1)).astype(np.float32) for i in range(L)]


def model(tokens: Any, start: int) -> Any:
    """Enumerable: the logits of position i are a table of the tokens before it."""
    x = np.asarray(tokens)
    rows = [TABLES[i][tuple(x[:, :i].T)] for i in range(start, x.shape[1] + 1)]
    logits = np.stack([np.broadcast_to(row, (len(x), V)) for row in rows], axis=1)
    logits = np.ascontiguousarray(logits)
    return torch.from_numpy(logits) if isinstance(tokens, torch.Tensor) else logits


def law() -> np.ndarray:
    """Probability of every sequence, (V, V, V)."""
    p = np.ones(())
    for table in TABLES:
        weights = np.exp(table.astype(np.float64))
        p = p[..., None] * weights / weights.sum(-1, keepdims=True)
    return p


def teacher(**sampling: Any) -> DistilledTeacher:
    return DistilledTeacher(model, NoiseMapping(CODEBOOK), TokenSampling(**sampling))


def normal(*shape: int, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def test_tokens_have_the_law_of_the_model() -> None:
    """100 000 sequences over all 125 outcomes."""
    count = 100_000
    tokens = DistilledTeacher(model, NoiseMapping(CODEBOOK, 16))(normal(count, L, D), None, 0)
    seen = np.bincount(tokens @ (V * V, V, 1), minlength=V**L)
    expected = count * law().ravel()
    few = expected < 5
    groups = (np.append(x[~few], x[few].sum()) if few.any() else x for x in (seen, expected))
    assert stats.chisquare(*groups).pvalue > 0.01


@pytest.mark.parametrize("points", [2, 7, 30])
def test_one_dimension_is_the_quantile_function(points: int) -> None:
    """On a line the flow keeps the order, so the token is known: the quantile of Phi(noise)."""
    codebook = normal(points, 1)
    p = np.random.default_rng(1).dirichlet(np.ones(points))
    noise = normal(4000, 1, 1)
    tokens = NoiseMapping(codebook)(noise, np.broadcast_to(p, (4000, 1, points)))
    order = np.argsort(codebook[:, 0])
    edges = np.cumsum(p[order])[:-1]
    exact = order[np.searchsorted(edges, stats.norm.cdf(noise[:, 0, 0]))]
    near = np.abs(stats.norm.cdf(noise[:, 0]) - edges).min(1) < 1e-3
    np.testing.assert_array_equal(tokens[~near, 0], exact[~near])
    assert near.mean() < 0.1


def test_certain_and_impossible_tokens() -> None:
    noise = normal(50, 4, D)
    p = np.zeros((50, 4, V))
    p[..., 3] = 1.0
    assert (NoiseMapping(CODEBOOK)(noise, p) == 3).all()
    p[..., 1] = 2.0  # rows need not sum to one
    assert set(np.unique(NoiseMapping(CODEBOOK)(noise, p))) == {1, 3}
    top = teacher(top_k=1)(noise[:, :L], None, 0)
    for i in range(L):
        np.testing.assert_array_equal(top[:, i], model(top[:, :i], i)[:, 0].argmax(-1))


def test_mapping_does_not_depend_on_the_codebook_place_or_the_batch() -> None:
    noise = normal(30, 3, D)
    p = np.random.default_rng(2).dirichlet(np.ones(V), (30, 3))
    tokens = NoiseMapping(CODEBOOK)(noise, p)
    np.testing.assert_array_equal(NoiseMapping(CODEBOOK + 7.0)(noise, p), tokens)
    np.testing.assert_array_equal(
        NoiseMapping(CODEBOOK)(noise[4:9, 1:], p[4:9, 1:]), tokens[4:9, 1:]
    )
    one = NoiseMapping(CODEBOOK[:1])(noise, np.ones((30, 3, 1)))
    assert (one == 0).all()
    assert NoiseMapping(CODEBOOK)(noise[:0], p[:0]).shape == (0, 3)


class Counted:
    """A perfect student, which records what it was given."""

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.teacher = teacher()

    def __call__(self, noise: Any, tokens: Any, start: int) -> Any:
        assert (tokens is None) == (start == 0)
        self.starts.append(start)
        return self.teacher(noise, tokens, start)


@pytest.mark.parametrize("framework", ["numpy", "torch"])
@pytest.mark.parametrize("splits", [(0,), (0, 1), (0, 2), (0, 1, 2)])
def test_perfect_student_gives_the_teachers_tokens(splits: tuple[int, ...], framework: str) -> None:
    noise: Any = normal(64, L, D)
    want = teacher()(noise, None, 0)
    noise = torch.from_numpy(noise) if framework == "torch" else noise
    student = Counted()
    result = distilled(student, noise, splits=splits)
    assert isinstance(result.tokens, type(noise))
    np.testing.assert_array_equal(np.asarray(result.tokens), want)
    assert student.starts == list(splits)
    assert (result.calls, result.teacher_passes) == (len(splits), 0)


def test_teacher_refines_a_suffix() -> None:
    """A student that is right about the first position only; from there on the teacher."""
    noise = normal(64, L, D)
    want = teacher()(noise, None, 0)

    def student(noise: Any, tokens: Any, start: int) -> Any:
        return np.where(np.arange(L) < 1, want, (want + 1) % V)[:, start:]

    alone = distilled(student, noise)
    assert (alone.tokens[:, 1:] != want[:, 1:]).all()
    refined = distilled(student, noise, splits=(0, 2), teacher=teacher(), refine_from=1)
    np.testing.assert_array_equal(refined.tokens, want)
    assert (refined.calls, refined.teacher_passes) == (1, L - 1)
    full = distilled(student, noise, teacher=teacher(), refine_from=0)
    np.testing.assert_array_equal(full.tokens, want)
    assert (full.calls, full.teacher_passes) == (0, L)
    none = distilled(student, noise, teacher=teacher(), refine_from=L)
    np.testing.assert_array_equal(none.tokens, alone.tokens)


def test_second_call_reads_the_tokens_of_the_first() -> None:
    noise = normal(8, L, D)

    def student(noise: Any, tokens: Any, start: int) -> Any:
        return np.full((8, L - start), 1 if start == 0 else 10 + tokens[0, start - 1])

    result = distilled(student, noise, splits=(0, 2))
    np.testing.assert_array_equal(result.tokens, np.tile([1, 1, 11], (8, 1)))


def test_errors() -> None:
    noise, student = normal(2, L, D), Counted()
    for splits in ((), (1,), (0, 0), (0, L), (0, 2, 1)):
        with pytest.raises(ValueError, match="distilled: argument 'splits' expected increasing"):
            distilled(student, noise, splits=splits)
    with pytest.raises(ValueError, match="expected both or neither"):
        distilled(student, noise, refine_from=1)
    with pytest.raises(ValueError, match="'refine_from' expected 0 to 3, got 4"):
        distilled(student, noise, teacher=teacher(), refine_from=4)
    with pytest.raises(ValueError, match=r"'student' expected tokens \(2, 3\) .* got \(2, 2\)"):
        distilled(lambda *_: np.zeros((2, 2), np.int64), noise)
    with pytest.raises(TypeError, match="'student's tokens' expected an int64 array, got float64"):
        distilled(lambda *_: np.zeros((2, 3)), noise)
    with pytest.raises(ValueError, match=r"'noise' expected shape \(B, L, D\), got \(3, 2\)"):
        distilled(student, noise[0])
    with pytest.raises(TypeError, match="'noise' expected a floating-point array, got int64"):
        distilled(student, noise.astype(np.int64))
    with pytest.raises(ValueError, match="'codebook' expected distinct points"):
        NoiseMapping(np.ones((3, 2)))
    with pytest.raises(ValueError, match="'steps' expected at least 1, got 0"):
        NoiseMapping(CODEBOOK, 0)
    with pytest.raises(ValueError, match="'codebook' expected finite numbers"):
        NoiseMapping(np.array([[math.nan], [1.0]]))
    mapping, p = NoiseMapping(CODEBOOK), np.full((2, L, V), 0.2)
    with pytest.raises(ValueError, match=r"'noise' expected shape \(2, 3, 2\), got \(2, 3, 3\)"):
        mapping(normal(2, L, 3), p)
    with pytest.raises(ValueError, match=r"'probabilities' expected shape \(2, 3, 5\)"):
        mapping(noise, p[..., 1:])
    with pytest.raises(ValueError, match="'probabilities' expected rows of numbers >= 0"):
        mapping(noise, 0 * p)
    with pytest.raises(ValueError, match="'tokens' expected the tokens before 'start', got None"):
        teacher()(noise, None, 1)
