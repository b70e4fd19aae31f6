"""masked_diffusion: the first-hitting sampler is exact, the others keep to their schedules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import pixleap as px
from pixleap.decode import Ancestral, FirstHitting, MaskGIT, masked_diffusion

V, L, MASK = 3, 3, 3
DRAWS = 120_000


def conditionals(joint: np.ndarray) -> np.ndarray:
    """Log-conditionals (4^L, L, V) of each position given the unmasked ones, of every state."""
    table = np.zeros((4,) * L + (L, V))
    for state in np.ndindex(*(4,) * L):
        index = tuple(slice(None) if s == MASK else slice(s, s + 1) for s in state)
        for position in range(L):
            others = tuple(a for a in range(L) if a != position)
            marginal = joint[index].sum(others)
            table[(*state, position)] = marginal / marginal.sum()
    return np.log(table.reshape(4**L, L, V)).astype(np.float32)


JOINT = np.random.default_rng(4).dirichlet(np.full(V**L, 0.5)).reshape((V,) * L) + 1e-3
JOINT /= JOINT.sum()
TABLE = conditionals(JOINT)
PLACES = 4 ** np.arange(L)[::-1]


def exact(tokens: np.ndarray, times: np.ndarray) -> np.ndarray:
    return TABLE[tokens @ PLACES]


def masks(batch: int = DRAWS) -> np.ndarray:
    return np.full((batch, L), MASK, np.int64)


def p_value(tokens: np.ndarray) -> float:
    """Chi-square against the joint distribution."""
    observed = np.bincount(tokens @ (V ** np.arange(L)[::-1]), minlength=V**L)
    return float(stats.chisquare(observed, JOINT.reshape(-1) * len(tokens)).pvalue)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_first_hitting_draws_the_joint_distribution(schedule: str) -> None:
    result = masked_diffusion(exact, masks(), MASK, schedule=schedule, seed=1)
    assert result.calls == L
    assert p_value(result.tokens) > 0.01


def test_drawing_together_is_not_exact() -> None:
    """The same statistic finds what is drawn at once, and many ancestral steps are near."""
    for decoder in (FirstHitting(tokens_per_call=L), Ancestral(1)):
        result = masked_diffusion(exact, masks(), MASK, decoder=decoder, seed=1)
        assert result.calls == 1
        assert p_value(result.tokens) < 1e-6
    fine = masked_diffusion(exact, masks(10_000), MASK, decoder=Ancestral(60), seed=1)
    assert p_value(fine.tokens) > 0.01
    assert p_value(masked_diffusion(exact, masks(), MASK, decoder=MaskGIT(3)).tokens) < 1e-6


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_law_of_the_times(schedule: str) -> None:
    """1 - alpha(tau_k) = (1 - alpha(tau_(k+1))) u^(1/k), u uniform, and the position uniform."""
    seen: list[np.ndarray] = []

    def model(tokens: np.ndarray, times: np.ndarray) -> np.ndarray:
        seen.append(times.copy())
        return exact(tokens, times)

    result = masked_diffusion(model, masks(50_000), MASK, schedule=schedule, seed=3)
    np.testing.assert_array_equal(np.stack(seen, 1), -np.sort(-result.times, 1))
    part: Callable[[Any], Any] = {
        "linear": lambda t: t,
        "cosine": lambda t: np.cos(np.pi / 2 * (1 - t)),
    }[schedule]
    before = np.ones(len(result.times))
    for k, times in zip(range(L, 0, -1), seen, strict=True):
        u = (part(times) / before) ** k
        assert stats.kstest(u, "uniform").pvalue > 0.01
        before = part(times)
    first = np.bincount(result.times.argmax(1), minlength=L)
    assert stats.chisquare(first).pvalue > 0.01


def test_ancestral_steps_follow_the_times() -> None:
    """A position goes in the call whose interval its time lies in; empty steps make no call."""
    seen: list[tuple[float, np.ndarray]] = []

    def model(tokens: np.ndarray, times: np.ndarray) -> np.ndarray:
        seen.append((times[0], tokens == MASK))
        return exact(tokens, times)

    steps = 500
    result = masked_diffusion(model, masks(4), MASK, decoder=Ancestral(steps), seed=3)
    assert result.calls == len(seen) <= 12
    for at, masked in seen:
        np.testing.assert_array_equal(masked, result.times <= at)
        assert ((result.times <= at) & (result.times > at - 1 / steps)).any()


def test_maskgit_schedule_and_confidence() -> None:
    """Without confidence noise the most likely drawn tokens stay, as many as the cosine says."""
    length, steps = 40, 6
    rng = np.random.default_rng(0)
    logits = (4 * rng.standard_normal((5, length, 11))).astype(np.float32)
    seen: list[np.ndarray] = []

    def model(tokens: np.ndarray, times: np.ndarray) -> np.ndarray:
        seen.append(tokens.copy())
        return logits

    start = np.full((5, length), 11, np.int64)
    decoder = MaskGIT(steps, choice_temperature=0.0)
    result = masked_diffusion(model, start, 11, decoder=decoder, temperature=0.5)
    assert result.calls == steps
    left = [int(np.cos(np.pi / 2 * i / steps) * length) for i in range(steps)]
    assert [(s == 11).sum(1).tolist() for s in seen] == [[n] * 5 for n in left]
    drawn, log_prob = px.ops.sample_tokens(
        logits, temperature=0.5, noise_dtype="float64", return_log_prob=True
    )
    stayed = seen[1] != 11
    np.testing.assert_array_equal(seen[1][stayed], drawn[stayed])
    assert (
        np.where(stayed, log_prob, np.inf).min(1) >= np.where(stayed, -np.inf, log_prob).max(1)
    ).all()
    assert (result.tokens < 11).all()
    with_noise = masked_diffusion(model, start, 11, decoder=MaskGIT(steps), temperature=0.5)
    assert (with_noise.tokens != result.tokens).any()


DECODERS = [FirstHitting(), FirstHitting(2), Ancestral(3), MaskGIT(2), MaskGIT(8)]


@pytest.mark.parametrize("decoder", DECODERS, ids=str)
def test_given_tokens_stay_and_samples_are_independent(decoder: Any) -> None:
    """Samples with different numbers of masks, alone and in a batch, in NumPy and torch."""
    start = np.array([[3, 3, 3], [0, 3, 3], [3, 2, 3], [1, 3, 0], [2, 1, 0]])
    kept = start.copy()
    whole = masked_diffusion(exact, start, MASK, decoder=decoder, seed=5, first_sample=7)
    np.testing.assert_array_equal(start, kept)
    given = start != MASK
    np.testing.assert_array_equal(whole.tokens[given], start[given])
    assert (whole.tokens < MASK).all()
    np.testing.assert_array_equal(np.isnan(whole.times), given)
    for b in range(5):
        part = masked_diffusion(
            exact, start[b : b + 1], MASK, decoder=decoder, seed=5, first_sample=7 + b
        )
        np.testing.assert_array_equal(part.tokens, whole.tokens[b : b + 1])
    tensor = masked_diffusion(
        lambda x, t: torch.from_numpy(exact(x.numpy(), t.numpy())),
        torch.from_numpy(start),
        MASK,
        decoder=decoder,
        seed=5,
        first_sample=7,
    )
    assert isinstance(tensor.tokens, torch.Tensor)
    np.testing.assert_array_equal(tensor.tokens.numpy(), whole.tokens)


def test_guidance_and_filters() -> None:
    """A pair of outputs is guided; at temperature 0 the tokens are those of the guided logits."""
    rng = np.random.default_rng(1)
    cond, uncond = rng.standard_normal((2, 2, 5, 7)).astype(np.float32)
    start = np.full((2, 5), 7, np.int64)
    for decoder in DECODERS:
        result = masked_diffusion(
            lambda x, t: (cond, uncond),
            start,
            7,
            decoder=decoder,
            guidance_scale=3.0,
            temperature=0.0,
        )
        np.testing.assert_array_equal(result.tokens, (3 * cond - 2 * uncond).argmax(-1))


def test_progress_and_empty() -> None:
    calls: list[tuple[int, int]] = []
    masked_diffusion(exact, masks(2), MASK, progress=lambda i, n: calls.append((i, n)))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    for decoder in DECODERS:
        for start in (masks(0), np.zeros((2, L), np.int64), np.zeros((2, 0), np.int64)):
            result = masked_diffusion(exact, start, MASK, decoder=decoder)
            assert result.calls == 0
            np.testing.assert_array_equal(result.tokens, start)


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match="argument 'tokens' expected an int64 array, got int32"):
        masked_diffusion(exact, np.zeros((1, 3), np.int32), MASK)
    with pytest.raises(ValueError, match=r"argument 'tokens' expected shape \(B, L\)"):
        masked_diffusion(exact, np.zeros(3, np.int64), MASK)
    with pytest.raises(ValueError, match="'schedule' expected one of linear, cosine or a function"):
        masked_diffusion(exact, masks(1), MASK, schedule="sine")
    with pytest.raises(TypeError, match="top_q"):
        masked_diffusion(exact, masks(1), MASK, top_q=1)
    for make in (Ancestral, MaskGIT, FirstHitting):
        with pytest.raises(ValueError, match="expected an integer >= 1, got 0"):
            make(0)
    with pytest.raises(ValueError, match="choice_temperature expected"):
        MaskGIT(3, -1.0)
