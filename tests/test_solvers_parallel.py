"""Sampling parallel in time, against the sequential solver with the same noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_solvers_families import normal

from pixleap import guidance, ops, solvers
from pixleap.decode import noise_schedule
from pixleap.models import load_digits_dit
from pixleap.solvers.picard import TriangularPlan

VP = solvers.NoiseSchedule.vp()
BATCH, SIZE, STEPS = 3, 12, 20
MEANS = 1.5 * np.random.default_rng(0).standard_normal((5, SIZE))


def mixture(x: np.ndarray, t: Any) -> np.ndarray:
    """Predicted noise of five Gaussians of spread 0.3; t a number or one of each row."""
    points = [VP.at_time(float(v)) for v in np.broadcast_to(t, len(x))]
    alpha = np.array([[p.alpha] for p in points])
    sigma = np.array([[p.sigma] for p in points])
    variance = (0.3 * alpha) ** 2 + sigma**2
    far = ((x[:, None] - alpha[:, :, None] * MEANS) ** 2).sum(-1)
    weights = np.exp((far.min(1, keepdims=True) - far) / (2 * variance))
    mean = weights / weights.sum(1, keepdims=True) @ MEANS
    return ((x - alpha * mean) * sigma / variance).astype(x.dtype)


def smooth(x: Any, t: Any) -> Any:
    """Predicted noise, elementwise: the same bits for a row alone and among others."""
    if isinstance(x, torch.Tensor):
        t = torch.as_tensor(t, dtype=x.dtype).reshape(-1, 1)
        return 0.9 * x + 0.3 * torch.sin(x + t / 1000)
    return (0.9 * x + 0.3 * np.sin(x + np.reshape(t, (-1, 1)) / 1000)).astype(x.dtype)


def plan_of(name: str, steps: int = STEPS, **options: Any) -> solvers.SolverPlan:
    return solvers.solver_plan(name, VP, "karras", steps=steps, **options)


def start(plan: solvers.SolverPlan, batch: int = BATCH) -> np.ndarray:
    return normal(batch, SIZE, seed=1) * plan.points[0].sigma


def sequential(plan: solvers.SolverPlan, model: Any, x: Any, **options: Any) -> Any:
    y = solvers.Solver(plan, **options).sample(model, 1 * x)
    return 1 * y


@pytest.mark.parametrize("window", [1, 4, None])
@pytest.mark.parametrize(
    "name",
    [
        "ddim", "euler", "dpmpp_2m", "ddpm", "euler_ancestral", "dpmpp_2m_sde", "heun", "unipc",
        "lms", "dpm_solver_2s", "dpmpp_2m_hb", "sa_solver",
    ],
)  # fmt: skip
def test_tolerance_zero_is_the_sequential_solver(name, window):
    plan = plan_of(name)
    x = start(plan)
    expected = sequential(plan, mixture, x, seed=3)
    for history in (0, 3):
        r = solvers.parallel_sample(
            plan, mixture, x, window=window, tolerance=0, anderson=history, seed=3
        )
        np.testing.assert_allclose(r.samples, expected, atol=1e-12)
        assert r.converged.all() and r.sweeps <= plan.evaluations
        assert len(r.residuals) == r.sweeps
        if window == 1:
            assert r.sweeps == plan.evaluations
            assert (r.evaluations == plan.evaluations).all()
        else:
            assert history or r.sweeps < plan.evaluations
            assert (r.evaluations > r.sweeps).all()
            assert (r.evaluations <= r.sweeps * (window or plan.evaluations)).all()


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "euler_ancestral"])
def test_a_looser_tolerance_takes_fewer_sweeps_and_bounds_the_error(name):
    plan = plan_of(name, 50)
    x = start(plan)
    expected = sequential(plan, mixture, x, seed=3)
    sweeps, errors = [], []
    for tolerance in (0, 1e-4, 1e-2, 1e-1):
        r = solvers.parallel_sample(plan, mixture, x, tolerance=tolerance, seed=3)
        sweeps.append(r.sweeps)
        errors.append(np.abs(r.samples - expected).max())
    assert sweeps == sorted(sweeps, reverse=True) and sweeps[1] < 25
    assert errors[0] < 1e-12 and errors[1] < 1e-4 and errors[2] < 2e-2


def test_unit_of_the_tolerance_is_the_noise_of_ddpm():
    plan = plan_of("ddpm")
    scales = TriangularPlan(plan, 1.0).scales()
    drawn = [s.passes[-1].forms[0].terms.get(f"noise {k}.0") for k, s in enumerate(plan.stages)]
    np.testing.assert_allclose(scales[:-2], drawn[:-1], rtol=1e-9)
    assert drawn[-1] is None and (scales[-2:] == scales[-3]).all()  # the last step has none


def test_float32_rows_keep_their_bits_between_sweeps():
    """Tolerance 0 in float32 ends early only where a settled row is made with the same bits."""
    plan = plan_of("dpmpp_2m")
    x = start(plan).astype(np.float32)
    r = solvers.parallel_sample(plan, smooth, x, tolerance=0)
    np.testing.assert_allclose(r.samples, sequential(plan, smooth, x), atol=1e-5)
    assert r.sweeps <= 16 and r.samples.dtype == np.float32
    for window in (3, 5, 7):
        other = solvers.parallel_sample(plan, smooth, x, tolerance=0, window=window)
        np.testing.assert_array_equal(other.samples, r.samples)


def test_samples_do_not_depend_on_the_batch():
    """Bit for bit, and each pays for its own window alone."""
    plan = plan_of("ddpm")
    x = start(plan, 4).astype(np.float32)
    scale = np.array([[0.1], [1.0], [3.0], [0.01]], np.float32)

    def model(rows, t, own):
        return smooth(rows * own, t)

    for o in ({"anderson": 2}, {"window": 6}, {}):
        o = {**o, "tolerance": 1e-2, "seed": 5}
        whole = solvers.parallel_sample(plan, model, x, conditions=[scale], **o)
        assert len(set(whole.evaluations.tolist())) > 1
        for b in range(4):
            one = solvers.parallel_sample(
                plan, model, x[b : b + 1], conditions=[scale[b : b + 1]],
                first_element=b * SIZE, **o,
            )  # fmt: skip
            np.testing.assert_array_equal(one.samples[0], whole.samples[b])
            assert one.evaluations[0] == whole.evaluations[b]


def test_what_the_model_is_given():
    plan = plan_of("ddim", 6)
    x = torch.from_numpy(start(plan)).float()
    labels = torch.tensor([7, 8, 9])
    calls: list[tuple[int, list[float]]] = []

    def model(rows, t, y):
        assert rows.dtype == t.dtype == torch.float32 and len(rows) == len(t) == len(y)
        if not calls:
            assert y.tolist() == [7, 8, 9] and (rows == x).all()
        calls.append((len(rows), t.unique().tolist()))
        return smooth(rows, t)

    done: list[tuple[int, int]] = []
    r = solvers.parallel_sample(
        plan, model, x, conditions=[labels], tolerance=0, window=3,
        progress=lambda *a: done.append(a),
    )  # fmt: skip
    times = np.array(plan.timesteps, np.float32)
    assert {t for _, ts in calls for t in ts} <= set(times.tolist())
    assert calls[0][0] == 3 and sum(n for n, _ in calls) == r.evaluations.sum()
    assert len(calls) == r.sweeps == len(done)
    assert done == sorted(done) and done[-1] == (6, 6)
    numpy = solvers.parallel_sample(plan, smooth, x.numpy(), tolerance=0, window=3)
    np.testing.assert_allclose(r.samples, numpy.samples, atol=1e-5)


def test_noise_of_the_caller():
    plan = plan_of("euler_ancestral", 8)
    x = start(plan)
    drawn = {n: normal(BATCH, SIZE, seed=9 + i) for i, n in enumerate(plan.noises)}
    r = solvers.parallel_sample(plan, smooth, x, tolerance=0, noise=drawn.__getitem__)
    expected = sequential(plan, smooth, x, noise=drawn.__getitem__)
    np.testing.assert_allclose(r.samples, expected, atol=1e-12)
    other = solvers.parallel_sample(plan, smooth, x, tolerance=0, seed=1).samples
    assert np.abs(other - expected).max() > 0.1


def test_noise_before_the_first_evaluation():
    plan = plan_of("edm", 8, s_churn=4.0)
    assert plan.before and len(plan.noises) > 1
    x = start(plan)
    r = solvers.parallel_sample(plan, smooth, x, tolerance=0, seed=4, offset=7)
    np.testing.assert_allclose(r.samples, sequential(plan, smooth, x, seed=4, offset=7), atol=1e-12)


def test_what_is_held_changes_the_path_alone():
    plan = plan_of("ddim", 30)
    x = start(plan)
    exact = sequential(plan, mixture, x)
    sweeps = []
    for spread in (1e-3, 1.0, 1e3):
        r = solvers.parallel_sample(plan, mixture, x, tolerance=0, data_std=spread)
        np.testing.assert_allclose(r.samples, exact, atol=1e-12)
        sweeps.append(
            solvers.parallel_sample(plan, mixture, x, tolerance=1e-3, data_std=spread).sweeps
        )
    assert sweeps[1] < sweeps[2]  # an infinite one holds the predicted noise


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_normal_data_take_three_sweeps(kind):
    """What is held is then 0 for every input: start, one sweep of all, and one that confirms it."""
    plan = plan_of("ddim", 40, prediction_type=kind)

    def model(x, t):
        points = [VP.at_time(float(v)) for v in np.broadcast_to(t, len(x))]
        alpha, sigma = (np.array([[getattr(p, n)] for p in points]) for n in ("alpha", "sigma"))
        gain = 1 / (0.49 * alpha**2 + sigma**2)
        sample, noise = 0.49 * alpha * gain * x, sigma * gain * x
        v = alpha * noise - sigma * sample
        return {"epsilon": noise, "v_prediction": v, "sample": sample}[kind]

    r = solvers.parallel_sample(plan, model, start(plan), tolerance=1e-9, data_std=0.7)
    np.testing.assert_allclose(r.samples, sequential(plan, model, start(plan)), atol=1e-9)
    assert r.sweeps <= 3
    assert solvers.parallel_sample(plan, model, start(plan), tolerance=1e-9).sweeps > 3


def test_anderson_takes_fewer_sweeps_on_a_linear_model():
    """Two spreads, unlike what is held: weights over two earlier sweeps see through both."""
    plan = plan_of("ddim", 40)
    spread = np.where(np.arange(SIZE) < 6, 0.2, 2.0)

    def model(x, t):
        points = [VP.at_time(float(v)) for v in np.broadcast_to(t, len(x))]
        alpha, sigma = (np.array([[getattr(p, n)] for p in points]) for n in ("alpha", "sigma"))
        return x * sigma / ((alpha * spread) ** 2 + sigma**2)

    x = start(plan)
    exact = sequential(plan, model, x)
    sweeps = []
    for m in (0, 2, 3):
        r = solvers.parallel_sample(plan, model, x, tolerance=1e-6, anderson=m)
        assert np.abs(r.samples - exact).max() < 1e-6
        sweeps.append(r.sweeps)
    assert sweeps[1] < sweeps[0] and sweeps[2] <= sweeps[1]


class _Pair:
    def __call__(self, x: Any, t: Any) -> tuple[Any, Any]:
        return smooth(x, t), smooth(0.5 * x - 0.3, t)


@pytest.mark.parametrize(
    "rule",
    [
        guidance.CFG(2.5),
        guidance.CFG(2.5, interval=(0.5, 5.0)),
        guidance.CFG([1.0 + 0.1 * i for i in range(STEPS)]),
        guidance.CFG(np.array([1.5, 2.0, 4.0])),
        guidance.CFG(2.5, rescale=0.7),
        guidance.CFG(2.5, rescale=0.7, interval=(0.5, 5.0)),
        guidance.APG(3.0, momentum=0.0),
    ],
)
def test_guidance(rule):
    plan = plan_of("dpmpp_2m")
    x = start(plan).astype(np.float32)
    expected = sequential(plan, _Pair(), x, guidance=rule)
    for window, tolerance, bound in ((None, 0, 1e-4), (5, 1e-4, 1e-3)):
        r = solvers.parallel_sample(
            plan, _Pair(), x, guidance=rule, window=window, tolerance=tolerance
        )
        np.testing.assert_allclose(r.samples, expected, atol=bound)
        assert r.converged.all() and r.sweeps <= STEPS


def test_guesses_that_overflow_do_no_harm():
    """Rows ahead of the first come back as infinity or NaN until they are right."""
    plan = plan_of("dpmpp_2m", 10)
    x = start(plan, 2)
    exact = sequential(plan, smooth, x)
    calls = 0

    def model(rows, t):
        nonlocal calls
        calls += 1
        out = smooth(rows, t)
        if calls % 2 == 0:
            out[2:] = np.inf if calls % 4 == 0 else np.nan  # of both samples, past their first
        return out

    for history in (0, 2):
        r = solvers.parallel_sample(plan, model, x, tolerance=0, anderson=history)
        assert r.converged.all() and np.isfinite(r.residuals).all()
        np.testing.assert_allclose(r.samples, exact, atol=1e-12)

    def broken(rows, t):
        out = smooth(rows, t)
        out[np.arange(len(out)) % 2 == 1] = np.nan
        return out

    r = solvers.parallel_sample(plan, broken, x, tolerance=0)
    assert r.converged.tolist() == [True, False] and r.sweeps <= 10


def test_rows_that_overflow_do_no_harm():
    """Outputs of guesses are finite, what the rows make of them in float16 is not."""
    plan = solvers.solver_plan("ddim", solvers.NoiseSchedule.ve(), "karras", steps=12)
    calls = 0

    def model(rows, t):
        nonlocal calls
        calls += 1
        t = np.reshape(t, (-1, 1))
        with np.errstate(invalid="ignore"):
            out = (rows * t / (1 + t * t) + 0.2 * np.sin(rows / (1 + t))).astype(rows.dtype)
        if calls == 3:
            out[2:] = 6e4
        return out

    x = start(plan, 2).astype(np.float16)
    exact = sequential(plan, model, x.astype(np.float64))
    for history in (0, 1, 3):
        calls = 0
        r = solvers.parallel_sample(plan, model, x, tolerance=0, anderson=history)
        assert r.converged.all() and r.sweeps <= 12
        np.testing.assert_allclose(r.samples, exact, atol=5e-2)


def test_a_run_cut_short_ends_with_its_best_guess():
    plan = plan_of("ddim", 40)
    x = start(plan)
    exact = sequential(plan, smooth, x)
    errors = []
    for limit in (1, 3, 6):
        for window in (None, 5):
            r = solvers.parallel_sample(
                plan, smooth, x, tolerance=0, max_sweeps=limit, window=window
            )
            assert r.sweeps == limit and not r.converged.any()
            assert (r.samples != 0).all()
            errors.append(np.abs(r.samples - exact).max())
    assert errors[4] < errors[2] < errors[0] and max(errors) < 3


def test_state_dtype():
    plan = plan_of("dpmpp_2m")
    x = torch.from_numpy(start(plan)).bfloat16()

    def model(rows, t):
        assert rows.dtype == torch.bfloat16 and t.dtype == torch.float32
        return smooth(rows.double(), t.double()).bfloat16()

    r = solvers.parallel_sample(plan, model, x, tolerance=0, state_dtype="float32")
    assert r.samples.dtype == torch.float32
    expected = sequential(plan, lambda a, t: model(a, torch.tensor([t])), x, state_dtype="float32")
    assert (r.samples - expected).abs().max() < 2e-2


def test_empty_batch():
    plan = plan_of("ddim")
    r = solvers.parallel_sample(plan, smooth, np.empty((0, SIZE), np.float32))
    assert r.samples.shape == (0, SIZE) and r.sweeps == 0 and r.converged.shape == (0,)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"window": 0}, ValueError, "window"),
        ({"window": 2.5}, ValueError, "window"),
        ({"tolerance": -1.0}, ValueError, "tolerance"),
        ({"tolerance": float("nan")}, ValueError, "tolerance"),
        ({"anderson": 9}, ValueError, "anderson"),
        ({"data_std": 0.0}, ValueError, "data_std"),
        ({"max_sweeps": 0}, ValueError, "max_sweeps"),
        ({"conditions": [np.zeros(2)]}, ValueError, "conditions"),
        ({"conditions": [3]}, TypeError, "conditions"),
        ({"guidance": guidance.AdaptiveGuidance(2.0)}, ValueError, "memory"),
        ({"guidance": guidance.APG(2.0)}, ValueError, "momentum"),
        ({"guidance": guidance.CFG(2.0)}, ValueError, "2 outputs"),
        ({"model": lambda x, t: x[:, :3]}, ValueError, "shape"),
        ({"model": lambda x, t: None}, ValueError, "shape"),
        ({"x": 3.0}, TypeError, "'x'"),
        ({"plan": plan_of("ddim", clip_sample=1.0)}, ValueError, "clip_sample"),
        ({"plan": plan_of("ddim", threshold={"quantile": 0.9})}, ValueError, "threshold"),
    ],
)
def test_bad_input(arguments, error, text):
    plan = plan_of("ddim")
    good = {"plan": plan, "model": smooth, "x": start(plan)}
    with pytest.raises(error, match=text):
        solvers.parallel_sample(**{**good, **arguments})


def test_digits_in_fewer_sweeps():
    """The embedded DiT, 50 steps: a fifth of the depth, and images that look the same."""
    network = load_digits_dit()
    labels = torch.tensor([3])
    noise = torch.empty(1, network.in_channels, network.input_size, network.input_size)
    ops.random_normal(tuple(noise.shape), seed=1, out=noise)

    @torch.no_grad()
    def model(x, t, y):
        return network(x, t, y)[:, : network.in_channels]

    for name, histories, limit in (("ddim", (0, 3), 18), ("dpmpp_2m", (3,), 17)):
        kind = network.diffusion["prediction_type"]
        plan = solvers.solver_plan(
            name, noise_schedule(network), "lu", steps=50, prediction_type=kind
        )
        x = noise * plan.points[0].sigma
        expected = sequential(plan, lambda a, t: model(a, t, labels), x)
        for history in histories:
            r = solvers.parallel_sample(
                plan, model, x, conditions=[labels], tolerance=1e-3, anderson=history
            )
            assert r.converged.all() and r.sweeps <= limit - history
            assert (r.samples - expected).abs().max() < 2e-2
    plan = solvers.solver_plan(
        "ddpm", noise_schedule(network), "lu", steps=12, prediction_type=kind
    )
    expected = sequential(plan, lambda a, t: model(a, t, labels), noise, seed=6)
    for window in (1, 4, None):
        r = solvers.parallel_sample(
            plan, model, noise, conditions=[labels], tolerance=0, window=window, seed=6
        )
        assert r.sweeps <= 12 and (r.samples - expected).abs().max() < 1e-4
