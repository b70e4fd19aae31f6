"""Guidance inside px.solvers.Solver: folding, skipping, state between evaluations and runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from test_guidance import f64, ref_apg, ref_rescale, wide

from pixleap import guidance, solvers
from pixleap.solvers.method import conversion

torch.set_num_threads(1)
VP = solvers.NoiseSchedule.vp("scaled_linear", beta_start=0.00085, beta_end=0.012)
FLOW = solvers.NoiseSchedule.flow(shift=3)
BATCH, SHAPE = 3, (3, 4, 6)
Models = dict[str, Callable[[Any, float], Any]]


def plan_of(name: str = "dpmpp_2m", schedule: Any = VP, steps: int = 6, **more: Any) -> Any:
    kind = "flow_prediction" if schedule is FLOW else "epsilon"
    grid = "linspace" if schedule is FLOW else "karras"
    return solvers.solver_plan(name, schedule, grid, steps=steps, prediction_type=kind, **more)


def models() -> Models:
    """Smooth, different functions of sample and time, in the dtype of the sample."""
    rng = np.random.default_rng(1)
    names = ("cond", "uncond", "perturbed", "main", "weak", "reference")
    weights = {n: 0.4 * rng.standard_normal((6, 6)) for n in names}

    def of(w: np.ndarray) -> Callable[[Any, float], Any]:
        def model(x: Any, t: float) -> Any:
            if isinstance(x, torch.Tensor):
                return torch.tanh(x @ torch.from_numpy(w).to(x.dtype) + t / 1000)
            return np.tanh(x @ w + t / 1000).astype(x.dtype)

        return model

    return {n: of(w) for n, w in weights.items()}


def start(plan: Any, seed: int = 2) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal(SHAPE)
    return (x * plan.points[0].sigma).astype(np.float32)


Rule = Callable[[int, Any, list[np.ndarray], np.ndarray], np.ndarray]


def by_hand(plan: Any, names: list[str], rule: Rule, x: np.ndarray) -> np.ndarray:
    """Guidance in float64, then an unguided solver in float64."""
    solver, made = solvers.Solver(plan), models()
    y = solver.start(x.astype(np.float64))
    for k, stage in enumerate(plan.stages):
        outputs = [made[n](y, stage.point.time) for n in names]
        y = solver.step(rule(k, stage.point, outputs, y))
    return y.copy()


def guided(plan: Any, g: Any, x: Any) -> Any:
    return guidance.sample(solvers.Solver(plan, guidance=g), models(), x)


def check(plan: Any, g: Any, rule: Rule, exact: bool = True) -> None:
    """The guided Solver equals guidance-then-step, for both frameworks and in a second run.

    exact: the rule takes float64 as well (it needs no `moments`). In float32 the model itself is
    rounded, and the steps after it enlarge that.
    """
    tolerance = 2e-5
    x = start(plan)
    expected = by_hand(plan, list(g.names), rule, x)
    size = np.abs(expected).max()
    solver = solvers.Solver(plan, guidance=g)
    for _ in range(2):
        assert np.abs(guidance.sample(solver, models(), x) - expected).max() / size < tolerance
    theirs = guided(plan, g, torch.from_numpy(x))
    assert np.abs(f64(theirs) - expected).max() / size < tolerance
    if exact:
        theirs = guided(plan, g, x.astype(np.float64))
        assert np.abs(f64(theirs) - expected).max() / size < 1e-11


def mix(s: Any) -> Rule:
    return lambda k, point, o, x: o[1] + wide(s, o[0]) * (o[0] - o[1])


@pytest.mark.parametrize("name", ["dpmpp_2m", "heun", "unipc", "ddim"])
@pytest.mark.parametrize("schedule", [VP, FLOW], ids=["vp", "flow"])
@pytest.mark.parametrize("clip", [None, 0.9])
def test_cfg_folds(name: str, schedule: Any, clip: float | None) -> None:
    plan = plan_of(name, schedule, clip_sample=clip)
    check(plan, guidance.CFG(5.0), mix(5.0))
    rescaled = guidance.CFG(5.0, rescale=0.6)
    check(plan, rescaled, lambda *a: ref_rescale(mix(5.0)(*a), a[2][0], 0.6), exact=False)


def test_folding_needs_no_further_pass() -> None:
    """Folded guidance is one more column of the pass, of the same number of passes."""
    plan = plan_of("ddim")
    plain = solvers.Solver(plan)._stages
    folded = solvers.Solver(plan, guidance=guidance.CFG(5.0))._stages
    for a, b in zip(plain, folded, strict=True):
        assert len(a) == len(b) == 1
        assert len(b[0].call.inputs) == len(a[0].call.inputs) + 1


def test_scales_per_step_and_per_sample() -> None:
    plan = plan_of()
    steps = [1.0 + k for k in range(6)]
    check(plan, guidance.CFG(steps), lambda k, p, o, x: mix(steps[k])(k, p, o, x))
    falling = lambda k, point: 1 + 4 * point.sigma  # noqa: E731
    check(plan, guidance.CFG(falling), lambda k, p, o, x: mix(falling(k, p))(k, p, o, x))
    each = np.array([1.0, 3.0, 7.0])
    for s in (each, torch.from_numpy(each)):
        check(plan, guidance.CFG(s), mix(each))
        rescaled = guidance.CFG(s, rescale=0.5)
        check(plan, rescaled, lambda *a: ref_rescale(mix(each)(*a), a[2][0], 0.5), exact=False)
    with pytest.raises(ValueError, match="for evaluation 3"):
        solvers.Solver(plan, guidance=guidance.CFG([1.0, 2.0, 3.0]))
    with pytest.raises(ValueError, match="expected 3 numbers, one per sample, got 2"):
        guided(plan, guidance.CFG(each[:2]), start(plan))


@pytest.mark.parametrize("kind", ["ratio", "sigma", "time"])
def test_interval(kind: str) -> None:
    """Outside the interval cond stands alone and uncond is not asked for."""
    plan = plan_of()
    levels = [getattr(stage.point, kind) for stage in plan.stages]
    low, high = levels[4], levels[2]
    inside = [False, False, True, True, True, False]

    def rule(k: int, p: Any, o: list[np.ndarray], x: np.ndarray) -> np.ndarray:
        return mix(4.0)(k, p, o, x) if inside[k] else o[0]

    for options in ({}, {"rescale": 1.0}):
        g = guidance.CFG(4.0, interval=(low, high), interval_in=kind, **options)
        asked = [g.needs(k, stage.point) for k, stage in enumerate(plan.stages)]
        assert asked == [("cond", "uncond") if i else ("cond",) for i in inside]
        if not options:
            check(plan, g, rule)
    g = guidance.APG(4.0, interval=(low, high), interval_in=kind, norm_threshold=1.0)
    assert [len(g.needs(k, s.point)) for k, s in enumerate(plan.stages)] == [1, 1, 2, 2, 2, 1]
    state: dict[str, Any] = {}

    def projected(k: int, p: Any, o: list[np.ndarray], x: np.ndarray) -> np.ndarray:
        if k == 0:
            state["r"] = 0.0
        if not inside[k]:
            return o[0]
        out, state["r"] = ref_apg(o[0], o[1], 4.0, 0.0, 1.0, "cond", state["r"], -0.5)
        return out

    check(plan, g, projected, exact=False)


def test_scale_one_skips_uncond() -> None:
    plan = plan_of()
    point = plan.stages[0].point
    assert guidance.CFG(1.0).needs(0, point) == ("cond",)
    assert guidance.CFG(1.0, rescale=0.7).needs(0, point) == ("cond",)
    assert guidance.PAG(1.0).needs(0, point) == ("cond", "perturbed")
    assert guidance.PAG(3.0, perturbed_scale=0).needs(0, point) == ("cond", "uncond")
    assert guidance.CFG(2.0).needs(0, point) == ("cond", "uncond")


def test_pag_and_autoguidance() -> None:
    plan = plan_of()
    check(
        plan,
        guidance.PAG(3.0, perturbed_scale=2.0),
        lambda k, p, o, x: o[1] + 3 * (o[0] - o[1]) + 2 * (o[0] - o[2]),
    )
    check(plan, guidance.PAG(perturbed_scale=2.0), lambda k, p, o, x: 3 * o[0] - 2 * o[2])
    check(plan, guidance.Autoguidance(2.5), mix(2.5))


@pytest.mark.parametrize("base", ["cond", "uncond"])
@pytest.mark.parametrize("momentum", [0.0, -0.5, 0.4])
@pytest.mark.parametrize("samples", [False, True])
@pytest.mark.parametrize("schedule", [VP, FLOW], ids=["vp", "flow"])
def test_apg(base: str, momentum: float, samples: bool, schedule: Any) -> None:
    """Momentum goes on from step to step and begins anew in the next run."""
    plan = plan_of(schedule=schedule)
    kind = plan.prediction_type
    on = {"schedule": schedule, "prediction_type": kind} if samples else {}
    g = guidance.APG(4.0, eta=0.2, norm_threshold=1.5, momentum=momentum, base=base, **on)
    previous: dict[str, Any] = {}

    def rule(k: int, point: Any, o: list[np.ndarray], x: np.ndarray) -> np.ndarray:
        a, b = conversion(schedule, kind, "sample", point) if samples else (0.0, 1.0)
        c, u = a * x + b * o[0], a * x + b * o[1]
        last = previous.get("r", 0.0) if k else 0.0
        out, previous["r"] = ref_apg(c, u, 4.0, 0.2, 1.5, base, last, momentum)
        return (out - a * x) / b

    check(plan, g, rule, exact=False)


@pytest.mark.parametrize("schedule", [VP, FLOW], ids=["vp", "flow"])
@pytest.mark.parametrize("mode", ["self_negative", "onetime_negative"])
def test_residual(schedule: Any, mode: str) -> None:
    plan = plan_of(schedule=schedule)
    kind = plan.prediction_type
    image = np.random.default_rng(4).standard_normal(SHAPE).astype(np.float32)
    known: dict[str, np.ndarray] = {}

    def rule(k: int, point: Any, o: list[np.ndarray], x: np.ndarray) -> np.ndarray:
        if mode == "self_negative":
            source = image
        else:
            if k == 0:
                a, b = conversion(schedule, kind, "sample", point)
                known["x0"] = a * x + b * o[1]
            source = known["x0"]
        noise = (x - point.alpha * source) / point.sigma
        virtual = noise if kind == "epsilon" else noise - source
        return 0.8 * virtual + 1.6 * (o[0] - 0.8 * virtual)

    for make in (lambda a: a, torch.from_numpy):
        g = guidance.ResidualCFG(1.6, schedule=schedule, prediction_type=kind, mode=mode, delta=0.8)
        if mode == "self_negative":
            g.source = make(image)
        x = start(plan)
        expected = by_hand(plan, list(g.names), rule, x)
        solver = solvers.Solver(plan, guidance=g)
        for _ in range(2):
            calls: list[float] = []
            made = models()

            def counted(x: Any, t: float, made: Any = made, calls: Any = calls) -> Any:
                calls.append(t)
                return made["uncond"](x, t)

            out = guidance.sample(solver, {**made, "uncond": counted}, make(x))
            assert len(calls) == (mode == "onetime_negative")
            assert np.abs(f64(out) - expected).max() / np.abs(expected).max() < 2e-5
    g = guidance.ResidualCFG(1.6, schedule=VP)
    with pytest.raises(ValueError, match="'source', the input image"):
        guided(plan_of(), g, start(plan_of()))


def test_classifier() -> None:
    g = guidance.GradientFreeClassifierGuidance(5.0)
    p = np.array([[0.1, 0.7, 0.2], [0.6, 0.1, 0.3], [0.0, 0.0, 1.0]])
    target = np.array([1, 2, 2])
    plan = plan_of()
    s = 1 + 4 * (1 - p[np.arange(3), target])
    for wrap in (lambda a: a, torch.from_numpy):
        solver, made = solvers.Solver(plan, guidance=g), models()
        x = solver.start(wrap(start(plan)))
        for t in plan.timesteps:
            reference = g.update(wrap(p), wrap(target))
            assert reference.tolist() == [2, 0, 0]  # most probable, the target left out
            x = solver.step(made["cond"](x, t), made["reference"](x, t))
        expected = by_hand(plan, ["cond", "reference"], mix(s), start(plan))
        assert np.abs(f64(x) - expected).max() / np.abs(expected).max() < 2e-5
    g.reset()
    check(plan, g, mix(5.0))
    own = guidance.GradientFreeClassifierGuidance(5.0, rule=lambda a, b: 2 + b - a)
    own.update(p, target)
    np.testing.assert_allclose(own.scale_at(0, plan.points[0]), [1.5, 2.3, 1.0])
    with pytest.raises(ValueError, match=r"expected shape \(B, K\)"):
        g.update(p[0], target)
    with pytest.raises(ValueError, match=r"'target' expected shape \(3,\)"):
        g.update(p, target[:2])


@pytest.mark.parametrize(
    "make",
    [
        lambda: guidance.CFG(np.linspace(1.5, 6, 6)),
        lambda: guidance.CFG(4.0, rescale=0.7),
        lambda: guidance.APG(4.0, norm_threshold=1.0),
        lambda: guidance.APG(4.0, norm_threshold=1.0, schedule=VP, prediction_type="epsilon"),
        lambda: guidance.AdaptiveGuidance(4.0, threshold=0.6),
    ],
)
def test_a_sample_alone_equals_itself_in_a_batch(make: Callable[[], Any]) -> None:
    plan = plan_of()
    x = np.random.default_rng(0).standard_normal((6, 4, 6)).astype(np.float32)
    whole = guided(plan, make(), x).copy()
    for i in range(6):
        g = make()
        if getattr(g.scale, "ndim", 0):
            g.scale = g.scale[i : i + 1]
        alone = guided(plan, g, x[i : i + 1])
        np.testing.assert_array_equal(alone[0], whole[i])


def test_wrong_outputs() -> None:
    plan = plan_of()
    solver = solvers.Solver(plan, guidance=guidance.CFG(3.0))
    x = solver.start(start(plan))
    with pytest.raises(ValueError, match=r"expected 2 outputs \(cond, uncond\), got 1"):
        solver.step(x)
    with pytest.raises(ValueError, match="expected cond, uncond, got none for uncond"):
        guidance.sample(solver, {"cond": models()["cond"]}, start(plan))
    with pytest.raises(ValueError, match="expected one with guidance"):
        guidance.sample(solvers.Solver(plan), models(), start(plan))

    class Odd(guidance.CFG):
        def form(self, stage: int, point: Any) -> solvers.LinearForm:
            return solvers.LinearForm({"cond": 1.0, "other": 2.0})

    with pytest.raises(ValueError, match="guidance uses"):
        solvers.Solver(plan, guidance=Odd(2.0))
