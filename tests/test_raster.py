"""raster: Jacobi gives the sequential loop's tokens, speculation its distribution."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import pixleap as px
from pixleap.decode import Frontier, Jacobi, RowAbove, Speculative, raster
from pixleap.decode.layers import Norm, PackedLinear


class TinyTransformer:
    """Causal transformer with random weights on native ops; `spread` is that of the logits."""

    def __init__(self, vocabulary: int, length: int, spread: float, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        width, self.heads, self.length = 32, 2, length

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator)

        def linear(features: int, out: int, scale: float = 1.0) -> PackedLinear:
            return PackedLinear(scale * normal(out, features) / features**0.5, None, "float32")

        self.embedding = normal(vocabulary + 1, width)  # the last row begins a sequence
        self.positions = 0.3 * normal(length, width)
        self.layers = [
            (
                linear(width, 3 * width, 2.0),
                linear(width, width),
                linear(width, 4 * width),
                linear(4 * width, width),
            )
            for _ in range(2)
        ]
        self.norm = Norm(nn.LayerNorm(width, elementwise_affine=False))
        self.head = linear(width, vocabulary, spread)
        self.caches: list[px.KVCache] = []

    def __call__(self, tokens: torch.Tensor, start: int) -> torch.Tensor:
        if start == 0:
            size = (len(tokens), self.heads, 32 // self.heads, self.length)
            self.caches = [px.KVCache(*size, like=self.positions) for _ in self.layers]
        begin = torch.full((len(tokens), 1), len(self.embedding) - 1)
        rows = torch.cat((begin, tokens), 1)[:, start:]
        batch, count = rows.shape
        x = self.embedding[rows] + self.positions[start : start + count]
        for cache, (qkv, proj, fc1, fc2) in zip(self.caches, self.layers, strict=True):
            cache.rollback(start)
            hidden = torch.empty_like(x)
            self.norm(x, hidden)
            rows = qkv(hidden).view(batch, count, 3, self.heads, -1)
            cache.step(rows, mask=px.masks.causal(), out=hidden)
            x = proj(hidden, residual=x)
            self.norm(x, hidden)
            x = fc2(fc1(hidden, activation="gelu"), residual=x)
        self.norm(x, hidden)
        return self.head(hidden)


class Recorded:
    """Holds a model's callers to the protocol, and counts calls and rows."""

    def __init__(self, model: Any) -> None:
        self.model, self.calls, self.rows = model, 0, 0
        self.read: np.ndarray | None = None  # the tokens that the rows so far were made of

    def __call__(self, tokens: Any, start: int) -> Any:
        seen = np.array(tokens)
        count = seen.shape[1]
        assert 0 <= start <= count
        if start:
            assert self.read is not None
            assert start <= self.read.shape[1] + 1, "rows before `start` were never asked for"
            np.testing.assert_array_equal(self.read[:, : start - 1], seen[:, : start - 1])
        self.read = seen
        self.calls += 1
        output = self.model(tokens, start)
        self.rows += count + 1 - start
        return output


V = 7
RULE = np.random.default_rng(0).standard_normal((2, V + 1, V + 1, 5, V)).astype(np.float32)


def rule(tokens: np.ndarray, start: int, which: int = 0, spread: float = 2.0) -> np.ndarray:
    """A plain function of the two tokens before a position and of the position modulo 5."""
    padded = np.concatenate((np.full((len(tokens), 2), V), np.asarray(tokens)), 1)
    at = np.arange(start, tokens.shape[1] + 1)
    return spread * RULE[which, padded[:, at], padded[:, at + 1], at % 5]


def no_prompt(batch: int) -> np.ndarray:
    return np.zeros((batch, 0), np.int64)


@pytest.mark.parametrize("spread", [0.5, 3.0])
def test_jacobi_equals_the_sequential_loop_on_a_transformer(spread: float) -> None:
    """120 sequences of 64 tokens from a cached transformer, alone and in batches."""
    torch.set_num_threads(1)
    model = TinyTransformer(50, 64, spread)
    for batch, seeds, windows in ((24, 2, (8,)), (1, 12, (16,))):
        for seed in range(seeds):
            prompt = torch.zeros((batch, 0), dtype=torch.int64)
            plain = raster(model, prompt, 64, seed=seed)
            assert plain.passes == 64
            assert (plain.tokens[:, 1:] != plain.tokens[:, :-1]).any()
            for window in windows:
                checked = Recorded(model)
                fast = raster(checked, prompt, 64, seed=seed, decoder=Frontier(window=window))
                assert torch.equal(fast.tokens, plain.tokens)
                assert fast.passes == checked.calls <= 64


@pytest.mark.parametrize(
    "decoder",
    [
        Frontier(window=1),
        Frontier(window=5),
        Frontier(window=100),
        Frontier(),
        Frontier(window=8, init=RowAbove(6)),
        Frontier(window=4, init=RowAbove(1)),
        Jacobi(tol=0),
    ],
    ids=str,
)
@pytest.mark.parametrize("sampling", [{}, {"top_k": 3, "temperature": 0.7}, {"temperature": 0.0}])
def test_jacobi_equals_the_sequential_loop(decoder: Any, sampling: dict[str, Any]) -> None:
    for seed in range(10):
        prompt = np.random.default_rng(seed).integers(0, V, (3, seed % 4))
        key = {"seed": seed, "first_sample": 2, **sampling}
        plain = raster(Recorded(rule), prompt, 31, **key)
        assert plain.passes == 31 - seed % 4
        fast = raster(Recorded(rule), prompt, 31, decoder=decoder, **key)
        np.testing.assert_array_equal(fast.tokens, plain.tokens)
        np.testing.assert_array_equal(fast.tokens[:, : seed % 4], prompt)
        assert fast.passes <= plain.passes
        alone = raster(rule, prompt[1:2], 31, decoder=decoder, **{**key, "first_sample": 3})
        np.testing.assert_array_equal(alone.tokens, plain.tokens[1:2])


def test_sequential_tokens_are_one_draw_each() -> None:
    """Teacher forcing: the whole sequence at once, drawn with the same key, gives itself."""
    result = raster(rule, no_prompt(5), 20, seed=3, temperature=0.8)
    logits = rule(result.tokens[:, :-1], 0)
    drawn = px.ops.sample_tokens(logits, seed=3, temperature=0.8, noise_dtype="float64")
    np.testing.assert_array_equal(drawn, result.tokens)


def test_a_right_guess_needs_one_pass_per_window() -> None:
    plain = raster(rule, no_prompt(2), 40, seed=1)
    for window, passes in ((40, 1), (10, 4), (7, 6)):
        decoder = Frontier(window=window, init=plain.tokens)
        fast = raster(Recorded(rule), no_prompt(2), 40, seed=1, decoder=decoder)
        assert fast.passes == passes
        np.testing.assert_array_equal(fast.tokens, plain.tokens)
    wrong = (plain.tokens + 1) % V
    fast = raster(rule, no_prompt(2), 40, seed=1, decoder=Frontier(window=10, init=wrong))
    np.testing.assert_array_equal(fast.tokens, plain.tokens)


def enumerated(sampling: dict[str, Any], length: int) -> np.ndarray:
    """Probabilities of all sequences under `rule`."""
    index = np.array(list(np.ndindex(*(V,) * length)))
    p = px.reference.token_probabilities(rule(index[:, :-1], 0), tokens=index, **sampling)
    return p.prod(1)


@pytest.mark.parametrize(
    ("batch", "tokens", "sampling"),
    [(1, 2, {}), (6, 2, {}), (6, 1, {"temperature": 1.3}), (6, 5, {"top_k": 3})],
)
def test_speculation_keeps_the_distribution(
    batch: int, tokens: int, sampling: dict[str, Any]
) -> None:
    length, runs = 3, 9_000 // (3 if batch > 1 else 2)
    drafts = lambda x, start: rule(x, start, which=0, spread=1.5) + 0.7 * rule(x, start, which=1)  # noqa: E731
    observed = np.zeros(V**length)
    accepted = drafted = 0.0
    for run in range(runs):
        decoder = Speculative(drafts, tokens)
        result = raster(
            rule, no_prompt(batch), length, seed=4, first_sample=run * batch, decoder=decoder,
            **sampling,
        )  # fmt: skip
        observed += np.bincount(result.tokens @ V ** np.arange(length)[::-1], minlength=V**length)
        accepted, drafted = accepted + result.accepted, drafted + result.drafted
    assert 0.2 < accepted / drafted < 0.95
    expected = enumerated(sampling, length) * batch * runs
    assert (observed[expected == 0] == 0).all()
    rare = expected < 8
    observed = np.append(observed[~rare], observed[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    keep = expected > 0
    assert stats.chisquare(observed[keep], expected[keep]).pvalue > 0.01


def test_speculation_on_a_transformer() -> None:
    """Caches of both models roll back; a draft that is the model is accepted throughout."""
    model, draft = TinyTransformer(50, 32, 3.0), TinyTransformer(50, 32, 3.0, seed=1)
    prompt = torch.zeros((2, 3), dtype=torch.int64)
    target, drafter = Recorded(model), Recorded(TinyTransformer(50, 32, 3.0))
    result = raster(target, prompt, 32, decoder=Speculative(drafter, 4))
    assert result.accepted == result.drafted
    assert result.passes == target.calls == -(-(32 - 3) // 5)
    assert result.draft_passes == drafter.calls
    target, drafter = Recorded(model), Recorded(draft)
    result = raster(target, prompt, 32, decoder=Speculative(drafter, 4))
    assert 0 <= result.accepted < result.drafted
    assert ((result.tokens >= 0) & (result.tokens < 50)).all()
    assert torch.equal(result.tokens[:, :3], prompt)


def test_guidance() -> None:
    """A pair of outputs is guided in all three decoders."""

    def pair(tokens: np.ndarray, start: int) -> tuple[np.ndarray, np.ndarray]:
        return rule(tokens, start), rule(tokens, start, which=1)

    def single(tokens: np.ndarray, start: int) -> np.ndarray:
        cond, uncond = pair(tokens, start)
        return 3 * cond - 2 * uncond

    for decoder in (None, Frontier(window=6), Speculative(single, 3)):
        key = {"seed": 2, "decoder": decoder, "temperature": 0.0}
        want = raster(single, no_prompt(4), 12, **key)
        if isinstance(decoder, Speculative):
            key["decoder"] = Speculative(pair, 3)
        got = raster(pair, no_prompt(4), 12, guidance_scale=3.0, **key)
        np.testing.assert_array_equal(got.tokens, want.tokens)


def test_empty_and_progress() -> None:
    for decoder in (None, Frontier(window=4), Speculative(rule, 3)):
        assert raster(rule, no_prompt(0), 9, decoder=decoder).tokens.shape == (0, 9)
        assert raster(rule, no_prompt(2), 0, decoder=decoder).passes == 0
        prompt = np.ones((2, 4), np.int64)
        result = raster(rule, prompt, 4, decoder=decoder)
        assert result.passes == 0
        np.testing.assert_array_equal(result.tokens, prompt)
        steps: list[tuple[int, int]] = []
        raster(rule, prompt, 9, decoder=decoder, progress=lambda *done: steps.append(done))  # noqa: B023
        assert steps == sorted(set(steps))
        assert steps[-1] == (9, 9)


def test_bad_arguments() -> None:
    prompt = np.zeros((2, 3), np.int64)
    with pytest.raises(ValueError, match="argument 'length' expected at least 3, got 2"):
        raster(rule, prompt, 2)
    with pytest.raises(TypeError, match="argument 'prompt' expected an int64 array, got float32"):
        raster(rule, prompt.astype(np.float32), 4)
    with pytest.raises(ValueError, match=r"'init' expected shape \(2, 5\), got \(2, 3\)"):
        raster(rule, prompt, 5, decoder=Frontier(init=prompt))
    with pytest.raises(TypeError, match="top_q"):
        raster(rule, prompt, 5, top_q=1)
    with pytest.raises(ValueError, match="RowAbove: argument 'width' expected >= 1, got -1"):
        RowAbove(-1)
    with pytest.raises(ValueError, match="Speculative: tokens expected"):
        Speculative(rule, 0)
