"""mar: the law of the denoising chain, plain and speculative, against closed forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import pixleap as px
from pixleap.decode import SpeculativeDenoising, group_sizes, mar
from pixleap.decode.denoising import transitions

SCHEDULE = px.solvers.NoiseSchedule.vp("cosine")
TIMES = np.linspace(960, 0, 20)


def plan_of(name: str = "ddpm", **options: Any) -> px.solvers.SolverPlan:
    return px.solvers.solver_plan(name, SCHEDULE, timesteps=TIMES, **options)


# Every time that the plans ask for, rising, with alpha and sigma.
KNOWN_TIMES = np.array(sorted(plan_of().timesteps), np.float32)
LEVELS = np.array(
    [[p.alpha, p.sigma] for p in (SCHEDULE.at_time(float(t)) for t in KNOWN_TIMES)], np.float32
)


def levels(t: Any) -> tuple[Any, Any]:
    """alpha, sigma (N, 1) of model times."""
    at = np.searchsorted(KNOWN_TIMES, np.asarray(t))
    assert (KNOWN_TIMES[at] == np.asarray(t)).all()
    return LEVELS[at, :1], LEVELS[at, 1:]


class GaussianHead:
    """The noise predicted for data N(z + shift, variance) per channel."""

    def __init__(self, variance: float, shift: float = 0.0) -> None:
        self.variance, self.shift, self.calls, self.rows = variance, shift, 0, 0

    def __call__(self, x: Any, t: Any, z: Any) -> Any:
        self.calls, self.rows = self.calls + 1, self.rows + len(x)
        alpha, sigma = levels(t)
        gain = sigma / (alpha**2 * np.float32(self.variance) + sigma**2)
        if isinstance(x, torch.Tensor):
            alpha, gain = torch.from_numpy(alpha), torch.from_numpy(gain)
        return gain * (x - alpha * (z[:, : x.shape[1]] + np.float32(self.shift)))


def chain_law(
    plan: px.solvers.SolverPlan,
    output: Callable[[float, float], tuple[Any, Any]],
    size: int,
    temperature: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance (float64) of the chain's result where the head is G x + h, with
    output(alpha, sigma) = (G, h)."""
    mean, cov = np.zeros(size), np.eye(size) * plan.points[0].sigma ** 2
    for stage, (a, b, s) in zip(plan.stages, transitions("test", plan), strict=True):
        gain, shift = output(stage.point.alpha, stage.point.sigma)
        step = a * np.eye(size) + b * np.asarray(gain)
        mean = step @ mean + b * np.asarray(shift)
        cov = step @ cov @ step.T + np.eye(size) * (s * temperature) ** 2
    return mean, cov


def gaussian(center: float, variance: float) -> Callable[[float, float], tuple[Any, Any]]:
    def output(alpha: float, sigma: float) -> tuple[Any, Any]:
        gain = sigma / (alpha**2 * variance + sigma**2)
        return [[gain]], [-gain * alpha * center]

    return output


def constant(value: float, width: int = 1) -> Callable[[Any, Any], np.ndarray]:
    def model(tokens: Any, known: Any) -> np.ndarray:
        return np.full((*tokens.shape[:2], width), value, np.float32)

    return model


BLANK = np.zeros((100, 100, 1), np.float32)
DRAFTS: dict[str, SpeculativeDenoising | None] = {
    "plain": None,
    "good": SpeculativeDenoising(GaussianHead(0.35, 0.05)),
    "bad": SpeculativeDenoising(GaussianHead(2.0, -1.5)),
    "bad, 3 steps": SpeculativeDenoising(GaussianHead(2.0, -1.5), steps=3),
    "frozen": SpeculativeDenoising(),
}


@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize(("solver", "options"), [("ddpm", {}), ("ddim", {"eta": 0.5})])
def test_law_of_one_channel(draft: str, solver: str, options: dict[str, Any]) -> None:
    plan = plan_of(solver, **options)
    mean, cov = chain_law(plan, gaussian(0.7, 0.3), 1)
    head = GaussianHead(0.3)
    result = mar(constant(0.7), head, BLANK, plan, steps=1, decoder=DRAFTS[draft], seed=4)
    law = stats.norm(mean[0], cov[0, 0] ** 0.5)
    assert stats.kstest(result.tokens.ravel(), law.cdf).pvalue > 0.01
    assert (result.counts.head_calls, result.counts.head_rows) == (head.calls, head.rows)
    if draft in ("plain", "bad"):
        assert result.counts.head_calls <= plan.evaluations
    if draft == "good":
        assert result.counts.head_calls < plan.evaluations / 2
    assert (result.counts.accepted <= result.counts.tested).all()


@pytest.mark.parametrize("draft", ["plain", "good", "bad"])
def test_law_of_every_step_is_what_temperature_asks_for(draft: str) -> None:
    plan = plan_of()
    mean, cov = chain_law(plan, gaussian(0.7, 0.3), 1, temperature=0.6)
    result = mar(
        constant(0.7), GaussianHead(0.3), BLANK, plan, steps=1, temperature=0.6,
        decoder=DRAFTS[draft], seed=11,
    )  # fmt: skip
    law = stats.norm(mean[0], cov[0, 0] ** 0.5)
    assert stats.kstest(result.tokens.ravel(), law.cdf).pvalue > 0.01


class MixtureHead:
    """The noise predicted for an even mixture of N(+-center, variance)."""

    def __init__(self, center: float, variance: float) -> None:
        self.center, self.variance = center, variance

    def __call__(self, x: Any, t: Any, z: Any) -> Any:
        alpha, sigma = levels(t)
        spread = alpha**2 * np.float32(self.variance) + sigma**2
        mean = alpha * np.float32(self.center)
        return sigma / spread * (x - mean * np.tanh(mean * x / spread))


@pytest.mark.parametrize("draft", [MixtureHead(0.9, 0.12), MixtureHead(0.2, 1.0), None])
def test_mixture_has_the_law_of_the_plain_chain(draft: Any) -> None:
    plan, head = plan_of(), MixtureHead(1.0, 0.1)
    plain = mar(constant(0.0), head, BLANK, plan, steps=1, seed=1)
    fast = mar(
        constant(0.0), head, BLANK, plan, steps=1, seed=2, decoder=SpeculativeDenoising(draft)
    )
    assert stats.ks_2samp(plain.tokens.ravel(), fast.tokens.ravel()).pvalue > 0.01
    assert fast.tokens.std() > 0.9  # both modes


class CorrelatedHead:
    """The noise predicted for N(z, cov)."""

    def __init__(self, cov: np.ndarray) -> None:
        self.cov = cov

    def matrix(self, alpha: float, sigma: float) -> np.ndarray:
        return sigma * np.linalg.inv(alpha**2 * self.cov + sigma**2 * np.eye(len(self.cov)))

    def __call__(self, x: Any, t: Any, z: Any) -> Any:
        out = np.empty_like(x)
        for time in np.unique(t):
            rows, p = t == time, SCHEDULE.at_time(float(time))
            out[rows] = (x[rows] - p.alpha * z[rows]) @ self.matrix(p.alpha, p.sigma)
        return out


@pytest.mark.parametrize("scale", [1.03, 3.0])
def test_moments_of_sixteen_channels(scale: float) -> None:
    root = np.random.default_rng(0).standard_normal((16, 16)) / 4
    head = CorrelatedHead(root @ root.T + 0.05 * np.eye(16))
    center = np.linspace(-1, 1, 16)
    plan = plan_of()

    def output(alpha: float, sigma: float) -> tuple[Any, Any]:
        gain = head.matrix(alpha, sigma)
        return gain, -alpha * gain @ center

    mean, cov = chain_law(plan, output, 16)
    result = mar(
        lambda tokens, known: np.broadcast_to(center.astype(np.float32), tokens.shape).copy(),
        head,
        np.zeros((50, 80, 16), np.float32),
        plan,
        steps=1,
        decoder=SpeculativeDenoising(CorrelatedHead(scale * head.cov)),
        seed=3,
    )
    x = result.tokens.reshape(-1, 16).astype(np.float64)
    n, var = len(x), np.diag(cov)
    assert (np.abs(x.mean(0) - mean) < 4 * np.sqrt(var / n)).all()
    error = np.sqrt((np.outer(var, var) + cov**2) / n)
    assert (np.abs(np.cov(x.T) - cov) < 4.5 * error).all()
    assert 0 < result.counts.accepted.sum() < result.counts.tested.sum()


def test_perfect_draft_is_never_replaced() -> None:
    head = GaussianHead(0.3)
    result = mar(
        constant(0.7), head, BLANK[:8], plan_of(), steps=5,
        decoder=SpeculativeDenoising(GaussianHead(0.3)),
    )  # fmt: skip
    counts = result.counts
    assert (counts.acceptance[:-1] == 1).all() and (counts.tested[:-1] == 800).all()
    assert counts.tested[-1] == 0  # the last, deterministic step is the target's
    assert (result.calls, counts.head_calls, counts.draft_calls) == (5, 5, 5 * 19)
    assert counts.head_rows == 800 * 20


@pytest.mark.parametrize("name", ["plain", "good", "bad, 3 steps", "frozen"])
def test_joint_law_over_groups(name: str) -> None:
    """Tokens in raster order, each with the mean 0.8 times the sum of those before it."""

    def model(tokens: Any, known: Any) -> Any:
        assert (tokens[~known] == 0).all()
        return np.repeat(np.float32(0.8) * tokens.sum(1, keepdims=True), 3, 1)

    plan, n = plan_of(), 10_000
    _, cov = chain_law(plan, gaussian(0, 0.3), 1)
    slope = chain_law(plan, gaussian(1, 0.3), 1)[0][0]
    mix = np.linalg.inv(np.eye(3) - 0.8 * slope * np.tril(np.ones((3, 3)), -1))
    expected = mix @ mix.T * cov[0, 0]
    result = mar(
        model, GaussianHead(0.3), np.zeros((n, 3, 1), np.float32), plan, steps=3,
        orders=np.tile(np.arange(3), (n, 1)), decoder=DRAFTS[name], seed=6,
    )  # fmt: skip
    found = np.cov(result.tokens[:, :, 0].T.astype(np.float64))
    var = np.diag(expected)
    assert (np.abs(found - expected) < 4 * np.sqrt((np.outer(var, var) + expected**2) / n)).all()


def test_draft_with_conditions_of_its_own() -> None:
    """A model whose conditions make up for the draft head's error: all is accepted."""
    decoder = SpeculativeDenoising(GaussianHead(0.3, -0.5), constant(1.0))
    result = mar(
        constant(0.5), GaussianHead(0.3), BLANK[:4], plan_of(), steps=4, decoder=decoder, seed=9
    )
    assert result.draft_model_calls == 4
    assert result.counts.accepted.sum() == result.counts.tested.sum() == 400 * 19


@pytest.mark.parametrize(("length", "steps"), [(256, 64), (256, 256), (100, 7), (5, 5), (1, 1)])
def test_group_sizes_are_the_official_ones(length: int, steps: int) -> None:
    masked, sizes = length, []
    for step in range(steps):
        following = max(
            1.0, min(masked - 1, np.floor(length * np.cos(np.pi / 2 * (step + 1) / steps)))
        )
        sizes.append(masked if step == steps - 1 else int(masked - following))
        masked = int(following)
    assert group_sizes(length, steps) == sizes
    assert min(sizes) >= 1 and sum(sizes) == length


@pytest.mark.parametrize("decoder", [None, SpeculativeDenoising(), DRAFTS["bad"]])
@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_guidance_scale_of_every_group(schedule: str, decoder: Any) -> None:
    """A head that predicts the sample z, 1 with the class and 0 without: tokens are the scale."""
    seen: list[int] = []

    def model(tokens: Any, known: Any) -> Any:
        seen.append(int(known[0].sum()))
        return np.ones_like(tokens), np.zeros_like(tokens)

    plan = plan_of(prediction_type="sample")
    result = mar(
        model, lambda x, t, z: z, np.zeros((2, 30, 3), np.float32), plan, steps=6,
        guidance_scale=4.0, guidance_schedule=schedule, decoder=decoder,
    )  # fmt: skip
    ends = np.cumsum(group_sizes(30, 6))
    assert seen == [0, *ends[:-1]]
    for begin, end in zip([0, *ends[:-1]], ends, strict=True):
        part = min(end, 29) / 30 if schedule == "linear" else 1.0
        at = result.orders[:, begin:end]
        drawn = np.take_along_axis(result.tokens, at[..., None], 1)
        np.testing.assert_allclose(drawn, 1 + 3 * part, rtol=1e-5)


@pytest.mark.parametrize("decoder", [None, SpeculativeDenoising(GaussianHead(0.4, 0.4), steps=4)])
def test_guided_law(decoder: Any) -> None:
    """cond and uncond Gaussians of one variance: guidance moves the mean."""

    def model(tokens: Any, known: Any) -> Any:
        return np.full_like(tokens, 0.5), np.full_like(tokens, 0.1)

    plan = plan_of()
    mean, cov = chain_law(plan, gaussian(0.1 + 2.5 * 0.4, 0.3), 1)
    result = mar(
        model, GaussianHead(0.3), BLANK, plan, steps=1, guidance_scale=2.5,
        guidance_schedule="constant", decoder=decoder, seed=8,
    )  # fmt: skip
    law = stats.norm(mean[0], cov[0, 0] ** 0.5)
    assert stats.kstest(result.tokens.ravel(), law.cdf).pvalue > 0.01


@pytest.mark.parametrize(
    "decoder", [None, DRAFTS["good"], DRAFTS["bad, 3 steps"], DRAFTS["frozen"]]
)
def test_sample_alone_and_in_torch_equals_the_one_in_the_batch(decoder: Any) -> None:
    def model(tokens: Any, known: Any) -> Any:
        return tokens.sum(1)[:, None].repeat(
            *((12, 1) if isinstance(tokens, np.ndarray) else (1, 12, 1))
        )

    def model_np(tokens: Any, known: Any) -> Any:
        return np.repeat(tokens.sum(1, keepdims=True), 12, 1)

    def model_torch(tokens: Any, known: Any) -> Any:
        return tokens.sum(1, keepdim=True).repeat(1, 12, 1)

    options: dict[str, Any] = {"steps": 4, "decoder": decoder, "seed": 5}
    blank = np.zeros((3, 12, 2), np.float32)
    whole = mar(model_np, GaussianHead(0.3), blank, plan_of(), **options)
    alone = mar(model_np, GaussianHead(0.3), blank[:1], plan_of(), first_sample=2, **options)
    np.testing.assert_array_equal(whole.tokens[2:], alone.tokens)
    other = mar(model_torch, GaussianHead(0.3), torch.from_numpy(blank), plan_of(), **options)
    np.testing.assert_allclose(other.tokens.numpy(), whole.tokens, rtol=1e-4, atol=1e-5)
    assert len({tuple(o) for o in whole.orders}) == 3  # an order for each sample


def test_known_tokens_stay() -> None:
    rng = np.random.default_rng(1)
    given = rng.standard_normal((4, 16, 2)).astype(np.float32)
    known = np.zeros((4, 16), bool)
    for row in known:
        row[rng.permutation(16)[:6]] = True
    seen: list[int] = []

    def model(tokens: Any, flags: Any) -> Any:
        seen.append(int(flags.sum()) // 4)
        assert (tokens[known] == given[known]).all() and (tokens[~flags] == 0).all()
        return np.zeros_like(tokens)

    result = mar(model, GaussianHead(0.3), given, plan_of(), steps=3, known=known)
    assert seen == [6, *(6 + np.cumsum(group_sizes(10, 3))[:-1])]
    assert (result.tokens[known] == given[known]).all()
    assert (result.tokens[~known] != given[~known]).all()


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"tokens": np.zeros((2, 8, 1))}, TypeError, "'tokens' expected a float32 array, got float64"),
    ({"tokens": np.zeros((2, 8), np.float32)}, ValueError, "'tokens' expected 3 dimensions"),
    ({"steps": 9}, ValueError, "'steps' expected 1 to 8, got 9"),
    ({"temperature": -1.0}, ValueError, "'temperature' expected a finite number >= 0, got -1"),
    ({"guidance_scale": 2.0}, ValueError, r"'model' expected to return \(cond, uncond\)"),
    ({"guidance_schedule": "cosine"}, ValueError, "'guidance_schedule' expected one of linear"),
    ({"known": np.zeros((2, 7), bool)}, ValueError, r"'known' expected shape \(2, 8\)"),
    ({"known": np.tri(2, 8) > 0}, ValueError, "'known' expected the same number"),
    ({"orders": np.zeros((2, 8), np.int64)}, ValueError, "'orders' expected shape"),
    ({"model": lambda x, k: x[:1]}, ValueError, r"'model' expected to return \(2, 8, C\)"),
    ({"head": lambda x, t, z: x[:, :0]}, ValueError, r"head expected to return shape \(2, 1\)"),
    ({"head": lambda x, t, z: x.astype(np.float64)}, TypeError, "expected to return float32"),
    (
        {"plan": plan_of("dpmpp_2m"), "decoder": SpeculativeDenoising()},
        ValueError,
        "'plan' expected steps of one evaluation without memory",
    ),
]


@pytest.mark.parametrize(("change", "error", "text"), BAD)
def test_bad_input(change: dict[str, Any], error: type[Exception], text: str) -> None:
    arguments: dict[str, Any] = {
        "model": constant(0.0),
        "head": GaussianHead(0.3),
        "tokens": np.zeros((2, 8, 1), np.float32),
        "plan": plan_of(),
        "steps": 7,
        **change,
    }
    with pytest.raises(error, match=text):
        mar(**arguments)


def test_bad_speculation() -> None:
    with pytest.raises(ValueError, match="steps expected an integer >= 1 or None, got 0"):
        SpeculativeDenoising(GaussianHead(0.3), steps=0)
    with pytest.raises(ValueError, match="'model' expected None where head is None"):
        SpeculativeDenoising(None, constant(0.0))
