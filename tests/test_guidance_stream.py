"""Stream Batch against separate runs, and the stochastic similarity filter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_guidance import f64
from test_guidance_solver import FLOW, VP, models, plan_of

from pixleap import guidance, reference, solvers

torch.set_num_threads(1)
SIZE = (2, 3, 6)


def samples(plan: Any, n: int, dtype: Any = np.float64) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [(plan.points[0].sigma * rng.standard_normal(SIZE)).astype(dtype) for _ in range(n)]


def batched(model: Any, x: Any, times: np.ndarray) -> Any:
    """The model at a time per sample."""
    parts = [model(x[i : i + 1], t) for i, t in enumerate(times.tolist())]
    return torch.cat(parts) if isinstance(x, torch.Tensor) else np.concatenate(parts)


def streamed(stream: Any, names: list[str], xs: list[Any], sources: list[Any]) -> list[Any]:
    """Every result of the samples that went in one after another."""
    made, done = models(), []
    stream.start(xs[0], **({"source": sources[0]} if sources else {}))
    for k in range(len(xs) + stream.slots - 1):
        outputs = [batched(made[n], stream.input, stream.timesteps) for n in names]
        more = k + 1 < len(xs)
        new = {"x": xs[k + 1]} if more else {}
        if sources and more:
            new["source"] = sources[k + 1]
        result = stream.step(*outputs, **new)
        assert (result is None) == (k < stream.slots - 1)
        if result is not None:
            done.append(f64(result).copy())
    assert stream.step(*outputs) is None  # the pipeline has run dry
    return done


@pytest.mark.parametrize("name", ["ddim", "euler", "lcm", "euler_ancestral"])
@pytest.mark.parametrize("schedule", [VP, FLOW], ids=["vp", "flow"])
@pytest.mark.parametrize("guided", [False, True])
def test_equals_separate_runs(name: str, schedule: Any, guided: bool) -> None:
    try:
        plan = plan_of(name, schedule, 4)
    except ValueError as error:
        assert schedule is FLOW
        pytest.skip(str(error))
    g = guidance.CFG([3.0, 4.0, 5.0, 6.0]) if guided else None
    names = list(g.names) if g else ["cond"]
    xs = samples(plan, 6)
    made = models()
    seed, offset, elements = 11, 5, int(np.prod(SIZE))
    expected = []
    for entered, x in enumerate(xs):

        def noise(name: str, entered: int = entered) -> np.ndarray:
            k = int(name.split()[1].split(".")[0])
            z = reference.random_normal(
                (elements,), seed=seed, offset=offset + entered + k, first_element=k * elements
            )
            return z.reshape(SIZE)

        solver = solvers.Solver(plan, guidance=g, noise=noise)
        y = solver.start(x)
        for t in plan.timesteps:
            y = solver.step(*(made[n](y, t) for n in names))
        expected.append(y.copy())
    stream = guidance.StreamBatch(plan, guidance=g, seed=seed, offset=offset)
    for _ in range(2):
        for ours, theirs in zip(streamed(stream, names, xs, []), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-6 if plan.noises else 1e-11)
    narrow = [torch.from_numpy(x.astype(np.float32)) for x in xs]
    for ours, theirs in zip(streamed(stream, names, narrow, []), expected, strict=True):
        assert np.abs(ours - theirs).max() / np.abs(theirs).max() < 2e-5


def test_residual_guidance_travels_with_its_source() -> None:
    plan = plan_of("lcm", VP, 3)
    xs = samples(plan, 5)
    sources = [x / 7 + 0.1 for x in xs]
    g = guidance.ResidualCFG(1.4, schedule=VP, delta=0.7)
    stream = guidance.StreamBatch(plan, guidance=g, seed=1)
    elements = int(np.prod(SIZE))
    for entered, ours in enumerate(streamed(stream, ["cond"], xs, sources)):

        def noise(name: str, entered: int = entered) -> np.ndarray:
            k = int(name.split()[1].split(".")[0])
            z = reference.random_normal(
                (elements,), seed=1, offset=entered + k, first_element=k * elements
            )
            return z.reshape(SIZE)

        g.source = sources[entered]
        theirs = guidance.sample(
            solvers.Solver(plan, guidance=g, noise=noise), models(), xs[entered]
        )
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_empty_slots() -> None:
    plan = plan_of("ddim", VP, 3)
    xs = samples(plan, 2)
    stream = guidance.StreamBatch(plan)
    x = stream.start(xs[0])
    assert x.shape == (6, 3, 6)
    np.testing.assert_array_equal(stream.timesteps, np.repeat(plan.timesteps, 2))
    zero = np.zeros_like(x)
    results = [stream.step(zero), stream.step(zero, x=xs[1]), stream.step(zero)]
    assert [r is None for r in results] == [True, True, False]
    assert [r is None for r in (stream.step(zero), stream.step(zero))] == [True, False]


@pytest.mark.parametrize("name", ["dpmpp_2m", "heun", "unipc"])
def test_plans_with_history_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="without history"):
        guidance.StreamBatch(plan_of(name))
    with pytest.raises(ValueError, match="clip_sample"):
        guidance.StreamBatch(plan_of("ddim", clip_sample=1.0))


def test_bad_input() -> None:
    plan = plan_of("ddim", VP, 3)
    for g in (guidance.APG(3.0), guidance.CFG(np.ones(3)), guidance.CFG(3.0, rescale=0.5)):
        with pytest.raises(ValueError, match="expected a rule that is linear"):
            guidance.StreamBatch(plan, guidance=g)
    once = guidance.ResidualCFG(2.0, schedule=VP, mode="onetime_negative")
    with pytest.raises(ValueError, match="expected mode 'self_negative'"):
        guidance.StreamBatch(plan, guidance=once)
    stream = guidance.StreamBatch(plan)
    x = samples(plan, 1)[0]
    with pytest.raises(ValueError, match=r"call start\(x\) first"):
        stream.step(x)
    with pytest.raises(ValueError, match=r"expected shape \(B, \.\.\.\)"):
        stream.start(np.zeros(3))
    stream.start(x)
    with pytest.raises(ValueError, match=r"expected 1 outputs \(output\), got 2"):
        stream.step(x, x)
    with pytest.raises(ValueError, match="lincomb"):
        stream.step(x)
    with pytest.raises(ValueError, match="argument 'x' expected shape"):
        stream.step(np.zeros_like(stream.input), x=x[:1])
    source = guidance.StreamBatch(plan, guidance=guidance.ResidualCFG(2.0, schedule=VP))
    with pytest.raises(ValueError, match="argument 'source' expected shape"):
        source.start(x)


class TestSimilarityFilter:
    def frames(self, cosine: float) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(0)
        a = rng.standard_normal((3, 40, 50))
        b = rng.standard_normal((3, 40, 50))
        b -= a * (a * b).sum() / (a * a).sum()
        b *= np.sqrt((a * a).sum() / (b * b).sum())
        return a.astype(np.float32), (cosine * a + np.sqrt(1 - cosine**2) * b).astype(np.float32)

    @pytest.mark.parametrize("cosine", [0.5, 0.98, 0.985, 0.995])
    def test_probability(self, cosine: float) -> None:
        a, b = self.frames(cosine)
        f = guidance.SimilarityFilter(0.98, max_skip=None, seed=4)
        assert f.probability(a) == 0.0
        assert f(a)
        expected = max(0.0, (cosine - 0.98) / 0.02)
        assert abs(f.probability(torch.from_numpy(b).numpy()) - expected) < 1e-4
        skipped = 0
        for _ in range(2000):
            skipped += not f(b)
            f._last = a.copy()
        assert abs(skipped / 2000 - expected) < 0.04

    def test_like_frames_pass_at_last(self) -> None:
        a = torch.from_numpy(self.frames(0.5)[0])
        f = guidance.SimilarityFilter(0.5, max_skip=3)
        passed = [f(a) for _ in range(9)]
        assert passed == [True, False, False, False, True, False, False, False, True]
        f.reset()
        assert f(a)
        always = guidance.SimilarityFilter(1.0)
        assert all(always(a) for _ in range(5))
        with pytest.raises(ValueError, match="'threshold'"):
            guidance.SimilarityFilter(1.5)
        with pytest.raises(ValueError, match="'max_skip'"):
            guidance.SimilarityFilter(max_skip=-1)
