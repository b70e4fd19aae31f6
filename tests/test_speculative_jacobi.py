"""speculative_jacobi draws from the model's distribution, in fewer passes than the loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

import pixleap as px
from pixleap.decode import RowAbove, SpeculativeJacobi, raster

V, LENGTH = 4, 4
TABLE = np.random.default_rng(3).standard_normal((LENGTH, V ** (LENGTH - 1), V)) * 1.4


class Table:
    """Logits looked up by the whole prefix; holds callers to the protocol and counts them."""

    def __init__(self) -> None:
        self.calls = 0
        self.read: np.ndarray | None = None

    def __call__(self, tokens: Any, start: int) -> Any:
        seen = np.array(tokens)
        assert 0 <= start <= seen.shape[1]
        if start:
            assert self.read is not None and start <= self.read.shape[1] + 1
            np.testing.assert_array_equal(self.read[:, : start - 1], seen[:, : start - 1])
        self.read, self.calls = seen, self.calls + 1
        rows = []
        for position in range(start, seen.shape[1] + 1):
            prefix = seen[:, :position] @ V ** np.arange(position)
            rows.append(TABLE[position, prefix])
        return np.stack(rows, 1).astype(np.float32)


def enumerated(sampling: dict[str, Any]) -> np.ndarray:
    """Probabilities of all sequences."""
    index = np.array(list(np.ndindex(*(V,) * LENGTH)))
    p = px.reference.token_probabilities(Table()(index[:, :-1], 0), tokens=index, **sampling)
    return p.prod(1)


def no_prompt(batch: int) -> np.ndarray:
    return np.zeros((batch, 0), np.int64)


@pytest.mark.parametrize("coupling", ["none", "maximal"])
@pytest.mark.parametrize(
    ("batch", "options", "sampling"),
    [
        (1, {"window": 4}, {}),
        (1, {"window": 2, "init": RowAbove(1)}, {"temperature": 0.7}),
        (5, {"window": 3}, {"top_k": 3}),
    ],
    ids=str,
)
def test_distribution(
    coupling: str, batch: int, options: dict[str, Any], sampling: dict[str, Any]
) -> None:
    """Chi-square over all 256 sequences of a model whose logits depend on the whole prefix."""
    runs = 5000 // batch
    observed = np.zeros(V**LENGTH)
    passes = 0
    decoder = SpeculativeJacobi(coupling=coupling, **options)
    for run in range(runs):
        result = raster(
            Table(), no_prompt(batch), LENGTH, decoder=decoder, seed=5, first_sample=run * batch,
            **sampling,
        )  # fmt: skip
        passes += result.passes
        codes = result.tokens @ V ** np.arange(LENGTH)[::-1]
        observed += np.bincount(codes, minlength=V**LENGTH)
    assert passes < 0.95 * LENGTH * runs  # otherwise nothing was kept and nothing tested
    expected = enumerated(sampling) * batch * runs
    assert (observed[expected == 0] == 0).all()
    rare = expected < 6
    observed = np.append(observed[~rare], observed[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    keep = expected > 0
    assert stats.chisquare(observed[keep], expected[keep]).pvalue > 0.005


@pytest.mark.parametrize("coupling", ["none", "maximal"])
def test_greedy_is_the_loop(coupling: str) -> None:
    """At temperature 0 the rule is equality."""
    plain = raster(Table(), no_prompt(3), LENGTH, temperature=0.0)
    result = raster(
        Table(), no_prompt(3), LENGTH, temperature=0.0, decoder=SpeculativeJacobi(3, coupling)
    )
    np.testing.assert_array_equal(result.tokens, plain.tokens)
    right = SpeculativeJacobi(4, coupling, init=plain.tokens)
    again = raster(Table(), no_prompt(3), LENGTH, temperature=0.0, decoder=right)
    assert again.passes == 1
    assert again.accepted == again.drafted == LENGTH


@pytest.mark.parametrize("coupling", ["none", "maximal"])
def test_prompt_batch_and_progress(coupling: str) -> None:
    decoder = SpeculativeJacobi(2, coupling)
    prompt = np.array([[1], [3]])
    model, steps = Table(), []
    result = raster(
        model, prompt, LENGTH, decoder=decoder, progress=lambda *done: steps.append(done)
    )
    assert result.passes == model.calls <= LENGTH - 1
    np.testing.assert_array_equal(result.tokens[:, :1], prompt)
    assert steps == sorted(set(steps)) and steps[-1] == (LENGTH, LENGTH)
    assert 0 <= result.accepted <= result.drafted
    assert raster(Table(), no_prompt(0), 3, decoder=decoder).tokens.shape == (0, 3)
    assert raster(Table(), prompt, 1, decoder=decoder).passes == 0


def test_the_row_above_is_the_guess() -> None:
    """Of a model that repeats it: a pass per window, where zeros would need more."""

    def repeats(tokens: np.ndarray, start: int) -> np.ndarray:
        padded = np.concatenate((np.zeros((len(tokens), 2), np.int64), tokens), 1)
        at = np.arange(start, tokens.shape[1] + 1)
        return 50 * np.eye(V, dtype=np.float32)[padded[:, at]]

    prompt = np.array([[1, 3]])
    for width, passes in ((2, 3), (0, 6)):
        decoder = SpeculativeJacobi(4, init=RowAbove(width) if width else "zero")
        result = raster(repeats, prompt, 14, decoder=decoder)
        np.testing.assert_array_equal(result.tokens[0], [1, 3] * 7)
        assert (result.passes == passes) if width else (result.passes >= passes)


def test_guidance_is_a_pair_of_outputs() -> None:
    def pair(tokens: np.ndarray, start: int) -> tuple[np.ndarray, np.ndarray]:
        logits = Table()(tokens, 0)[:, start:]
        return logits, -logits

    def single(tokens: np.ndarray, start: int) -> np.ndarray:
        return 3 * Table()(tokens, 0)[:, start:]

    for coupling in ("none", "maximal"):
        key: dict[str, Any] = {"decoder": SpeculativeJacobi(3, coupling), "seed": 1}
        want = raster(single, no_prompt(6), LENGTH, **key)
        got = raster(pair, no_prompt(6), LENGTH, guidance_scale=2.0, **key)
        np.testing.assert_array_equal(got.tokens, want.tokens)


def test_bad_arguments() -> None:
    prompt = np.zeros((2, 3), np.int64)
    with pytest.raises(ValueError, match="argument 'length' expected at least 3, got 2"):
        raster(Table(), prompt, 2)
    with pytest.raises(TypeError, match="argument 'prompt' expected an int64 array, got float32"):
        raster(Table(), prompt.astype(np.float32), 4)
    with pytest.raises(ValueError, match=r"argument 'init' expected shape \(2, 4\), got \(2, 3\)"):
        raster(Table(), prompt, 4, decoder=SpeculativeJacobi(init=prompt))
    with pytest.raises(TypeError, match="top_q"):
        raster(Table(), prompt, 4, top_q=1)
    for change, message in (
        ({"window": 0}, "window expected an integer >= 1, got 0"),
        ({"coupling": "some"}, "coupling expected one of none, maximal, got 'some'"),
    ):
        with pytest.raises(ValueError, match=message):
            SpeculativeJacobi(**change)
