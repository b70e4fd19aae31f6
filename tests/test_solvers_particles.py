"""Samplers beside the plan: starts, editing, Markov chains, particles, searches, adaptive steps."""

from __future__ import annotations

import math

import numpy as np
import pytest
from test_solvers_families import MU, SPREAD, gaussian_noise, normal, same_normal

from pixleap import solvers


def correlated(d: int, rank: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, orthonormal rows and variances."""
    rng = np.random.default_rng(seed)
    vectors = np.linalg.qr(rng.standard_normal((d, rank)))[0].T
    return rng.standard_normal(d), vectors, np.linspace(3, 0.5, rank)


@pytest.mark.parametrize("residual", [0.0, 0.2])
def test_teleport_is_exact_for_a_gaussian(residual):
    """Against 1,000 steps of Runge-Kutta 4 on the exact score."""
    schedule = solvers.NoiseSchedule.vp()
    mean, vectors, variances = correlated(6, 2)
    covariance = vectors.T * (variances - residual) @ vectors + residual * np.eye(6)

    def model(x, t):
        p = schedule.at_time(t)
        total = p.alpha**2 * covariance + p.sigma**2 * np.eye(6)
        return p.sigma * (x - p.alpha * mean) @ np.linalg.inv(total)

    levels = np.exp(np.linspace(math.log(50), math.log(0.4), 300))
    plan = solvers.solver_plan("rho_rk4", schedule, levels)
    start, end = plan.points[0], plan.points[-1]
    x = normal(3, 6)
    exact = solvers.Solver(plan).sample(model, x.copy())
    teleport = solvers.GaussianTeleport(mean, vectors, variances, residual)
    np.testing.assert_allclose(teleport(x, start, end), exact, atol=1e-6)


def test_teleport_of_data():
    mean, vectors, variances = correlated(8, 3)
    rng = np.random.default_rng(4)
    data = mean + (rng.standard_normal((5000, 3)) * np.sqrt(variances)) @ vectors
    teleport = solvers.GaussianTeleport.of_data(data.reshape(-1, 2, 4), 3)
    np.testing.assert_allclose(teleport.variances, variances, rtol=0.1)
    assert teleport.mean.shape == (2, 4) and teleport.residual < 1e-12
    with pytest.raises(ValueError, match="rank"):
        solvers.GaussianTeleport.of_data(data, 9)
    schedule = solvers.NoiseSchedule.ve()
    with pytest.raises(ValueError, match="lower level"):
        teleport(normal(1, 2, 4), schedule.at_sigma(1.0), schedule.at_sigma(2.0))


def test_one_more_step():
    schedule = solvers.NoiseSchedule.vp()
    point = schedule.at_time(999)
    x = normal(2, 50_000).astype(np.float32)
    y = solvers.one_more_step(lambda x, t: -0.5 - x * 0, schedule, point, x, seed=3)
    # v at pure noise is minus the sample
    assert abs(y.mean() - 0.5 * point.alpha) < 0.02 and abs(y.std() - point.sigma) < 0.01


def test_consistent_editor_by_hand():
    """The arithmetic of the official repository's sampler, in its own order."""
    schedule = solvers.NoiseSchedule.vp()
    image = normal(2, 5)

    def model(x, t, condition):
        return np.tanh(x * condition + t / 1000)

    for eta in (1.0, 0.3):
        edit = solvers.ConsistentEditor(schedule, "leading", steps=4, eta=eta, seed=7)
        xs, xt = edit.start(image)
        p = edit.points[0]
        z = solvers.langevin.ops.random_normal((2, 5), seed=7).astype(np.float64)
        np.testing.assert_allclose(xs, p.alpha * image + p.sigma * z, atol=1e-6)
        for i, t in enumerate(edit.timesteps):
            now, after = edit.points[i : i + 2]
            a, b = xs.copy(), xt.copy()
            es, et = model(a, t, 1.0), model(b, t, 1.5)
            consistent = (a - now.alpha * image) / now.sigma
            predicted = image + ((b - a) - now.sigma * (et - es)) / now.alpha
            deviation = eta * after.sigma**2
            along = math.sqrt(after.sigma**2 - deviation) * (et - es + consistent)
            z = solvers.langevin.ops.random_normal((2, 5), seed=7, offset=i + 1)
            fresh = along + math.sqrt(deviation) * z.astype(np.float64)
            xs, xt = edit.step(es, et)
            np.testing.assert_allclose(xs, after.alpha * image + fresh, atol=1e-5)
            np.testing.assert_allclose(xt, after.alpha * predicted + fresh, atol=1e-5)
            np.testing.assert_allclose(edit.prediction, predicted, atol=1e-5)


def test_consistent_editor_with_one_prompt_gives_the_image_back():
    schedule = solvers.NoiseSchedule.flow()
    image = normal(2, 5)
    edit = solvers.ConsistentEditor(
        schedule, [0.9, 0.6, 0.3, 0.0], prediction_type="flow_prediction"
    )
    result = edit.edit(lambda x, t, c: np.sin(x) * c, image, 1.0, 1.0)
    np.testing.assert_allclose(result, image, atol=1e-9)


def test_stitched_model_calls_the_right_one():
    schedule = solvers.NoiseSchedule.vp()
    for name, calls in (("dpmpp_2m", [4, 3, 3]), ("heun", [8, 6, 5])):
        plan = solvers.solver_plan(name, schedule, "karras", steps=10)
        seen = []
        models = [lambda x, t, k=k: (seen.append((k, t)), x * 0.1)[1] for k in range(3)]  # noqa: B023
        stitched = solvers.StitchedModel(plan, models, [0.4, 0.3])
        solvers.Solver(plan).sample(stitched, normal(1, 3))
        assert stitched.calls == calls
        assert [t for _, t in seen] == plan.timesteps
        assert [k for k, _ in seen] == sorted(k for k, _ in seen)
        with pytest.raises(ValueError, match="at time"):
            stitched(normal(1, 3), -5.0)
    with pytest.raises(ValueError, match="fractions"):
        solvers.StitchedModel(plan, models, [0.8, 0.3])


def test_search_timesteps_finds_a_planted_optimum():
    wanted = (900.0, 610.0, 320.0, 90.0)

    def score(times):
        return sum(abs(a - b) for a, b in zip(times, wanted, strict=True))

    found = solvers.search_timesteps(score, range(0, 1000, 10), 4, generations=40, seed=1)
    assert found.score == min(s for _, s in found.history)
    assert found.score <= 20, found.best
    assert len({c for c, _ in found.history}) == len(found.history)
    random = min(score(c) for c, _ in found.history[:50])
    assert found.score < random / 3
    with pytest.raises(ValueError, match="steps"):
        solvers.search_timesteps(score, [1, 2], 3)


def test_search_schedule_finds_a_planted_optimum():
    choices = [("euler", "dpmpp_2m", "unipc", "heun", "ddim")] * 8
    rng = np.random.default_rng(0)
    cost = rng.uniform(0, 1, (8, 5))

    def score(candidate):
        return sum(cost[i, choices[i].index(c)] for i, c in enumerate(candidate))

    found = solvers.search_schedule(score, choices, seed=2)
    best = cost.min(axis=1).sum()
    assert len(found.history) == 90  # of 390,625
    assert found.score < best + 0.25, (found.score, best)
    assert found.score < min(s for _, s in found.history[:40]) - 0.2


def test_searched_schedule_runs():
    """The score may be the error of the plan itself: the best of mixed schedules is no worse than
    the pure ones it contains."""
    schedule = solvers.NoiseSchedule.ve()
    model = gaussian_noise(schedule)
    x = 3 * normal(4, 3)
    levels = np.exp(np.linspace(math.log(3), math.log(0.1), 5))
    exact = MU + (x - MU) * math.sqrt((SPREAD**2 + 0.01) / (SPREAD**2 + 9))

    def score(candidate):
        plan = solvers.solver_plan("per_step", schedule, levels, solvers=candidate)
        return np.abs(solvers.Solver(plan).sample(model, x.copy()) - exact).max()

    names = ("euler", "dpmpp_2m", "dpm_solver_2m", "unipc")
    found = solvers.search_schedule(score, [names] * 4, first=20, rounds=3, candidates=80)
    assert found.score <= min(score((n,) * 4) for n in names)


@pytest.mark.parametrize("order", [2, 3])
def test_adaptive_meets_its_tolerance(order):
    schedule = solvers.NoiseSchedule.ve()
    model = gaussian_noise(schedule)
    x = 20 * normal(4, 6)
    end = 0.05
    exact = MU + (x - MU) * math.sqrt((SPREAD**2 + end**2) / (SPREAD**2 + 400))
    errors, counts = [], []
    for rtol in (1e-2, 1e-3, 1e-4):
        s = solvers.AdaptiveSolver(schedule, order=order, rtol=rtol, atol=rtol, start=20, end=end)
        calls = []
        y = s.sample(lambda x, t, calls=calls: (calls.append(t), model(x, t))[1], x.copy())
        assert len(calls) == s.evaluations == order * s.accepted + (order - 1) * s.rejected
        errors.append(np.abs(y - exact).max())
        counts.append(s.evaluations)
        assert errors[-1] < 10 * rtol
    assert errors[0] > errors[1] > errors[2] and counts[0] < counts[1] < counts[2]


def test_adaptive_takes_its_steps_from_both_solutions():
    """A step is that of DPM-Solver-3 (2) between the same points; the error by hand."""
    schedule = solvers.NoiseSchedule.vp()
    s = solvers.AdaptiveSolver(schedule, start=1.0, end=0.7, step=10.0, rtol=100.0, atol=100.0)

    def model(x, t):
        return np.tanh(x + t / 500)

    x = normal(2, 5)
    y = s.sample(model, x.copy())
    assert (s.accepted, s.rejected) == (1, 0)
    plan = solvers.solver_plan("dpm_solver_3s", schedule, [1.0, 0.7])
    np.testing.assert_allclose(y, solvers.Solver(plan).sample(model, x.copy()), atol=1e-12)
    low, high = normal(3, 4), normal(3, 4, seed=1)
    s.atol, s.rtol = 0.1, 0.2
    rms = np.sqrt(np.maximum((low**2).mean(axis=1), (x[:1, :4] ** 2).mean(axis=1).repeat(3)))
    allowed = np.maximum(0.1, 0.2 * rms)
    wanted = np.sqrt((((low - high) ** 2).mean(axis=1) / allowed**2).mean())
    before = x[:1, :4].repeat(3, axis=0)
    assert abs(s.error(low, high, before) - wanted) < 1e-9
    with pytest.raises(RuntimeError, match="more than 5 evaluations"):
        solvers.AdaptiveSolver(schedule, max_evaluations=5).sample(model, x)


def test_denoising_mcmc_keeps_its_joint_distribution():
    """4,000 chains that start in the stationary distribution of (x, level) stay in it."""
    schedule = solvers.NoiseSchedule.ve()
    levels = np.array([2.0, 1.0, 0.5, 0.25])

    def posterior(x):
        variance = SPREAD**2 + levels**2
        return -0.5 * np.log(variance) - 0.5 * (x - MU) ** 2 / variance

    chain = solvers.DenoisingMCMC(schedule, levels, posterior, step_size=0.05, seed=3)
    rng = np.random.default_rng(1)
    level = rng.integers(0, 4, 4000)
    x = MU + np.sqrt(SPREAD**2 + levels[level] ** 2)[:, None] * rng.standard_normal((4000, 1))
    model = gaussian_noise(schedule)
    for _ in range(60):
        x, level = chain.step(model, x, level)
    counts = np.bincount(level, minlength=4)
    stats = pytest.importorskip("scipy.stats")
    assert stats.chisquare(counts).pvalue > 1e-4, counts
    for k in range(4):
        same_normal(x[level == k], MU, math.hypot(SPREAD, levels[k]))
    y = chain.denoise(model, x, level, "heun", steps=12)
    same_normal(y, MU, SPREAD)


def test_denoising_mcmc_step_by_hand():
    schedule = solvers.NoiseSchedule.vp()
    levels = [3.0, 1.0]
    chain = solvers.DenoisingMCMC(
        schedule, levels, lambda x: np.zeros((len(x), 2)), step_size=0.4, seed=9
    )
    x, level = normal(3, 4), np.array([0, 1, 0])
    p = [chain.points[k] for k in level]
    sigma = np.array([q.sigma for q in p])[:, None]
    model = gaussian_noise(schedule)
    z = solvers.langevin.ops.random_normal((3, 4), seed=9).astype(np.float64)
    score = -model(x, [q.time for q in p]) / sigma
    step = 0.4 * sigma**2
    wanted = x + step / 2 * score + np.sqrt(step) * z
    got, new = chain.step(model, x.copy(), level)
    np.testing.assert_allclose(got, wanted, atol=1e-6)
    assert new.shape == (3,) and set(new) <= {0, 1}


def product_of(means, spreads, exponents):
    precision = sum(e / s**2 for e, s in zip(exponents, spreads, strict=True))
    mean = sum(e * m / s**2 for e, m, s in zip(exponents, means, spreads, strict=True)) / precision
    return mean, 1 / math.sqrt(precision)


@pytest.mark.parametrize(
    ("means", "spreads", "exponents"),
    [
        ([0.7], [0.6], [2.5]),  # annealing
        ([0.0, 1.0], [1.0, 0.5], [-1.0, 2.0]),  # guidance
        ([-0.5, 1.0], [0.6, 0.9], [1.0, 1.0]),  # product of experts
    ],
)
@pytest.mark.parametrize("kind", ["ve", "vp"])
def test_feynman_kac_reaches_the_product(means, spreads, exponents, kind):
    schedule = getattr(solvers.NoiseSchedule, kind)()
    models = [gaussian_noise(schedule, m, s) for m, s in zip(means, spreads, strict=True)]
    levels = [*np.exp(np.linspace(math.log(8), math.log(0.02), 150)).tolist(), 0.0]
    mean, spread = product_of(means, spreads, exponents)
    first = schedule.at_sigma(8.0)
    wide = [math.hypot(s, first.ratio) for s in spreads]
    start_mean, start_spread = product_of(means, wide, exponents)
    x = first.alpha * (start_mean + start_spread * normal(12_000, 1))

    def estimates(threshold):
        """Mean and second moment about the true mean, of 12 populations of 1,000."""
        sampler = solvers.FeynmanKacSampler(
            schedule, levels, exponents=exponents, threshold=threshold, particles=1000, seed=5
        )
        y = sampler.sample(lambda x, t: [m(x, t) for m in models], x.copy()).reshape(12, 1000)
        w = np.exp(sampler.log_weights).reshape(12, 1000)
        return [(w * v).sum(axis=1) for v in (y - mean, (y - mean) ** 2)]

    for values, wanted in zip(estimates(0.7), (0.0, spread**2), strict=True):
        error = abs(values.mean() - wanted)
        # populations are independent: 5 standard errors, and the discretisation's 1 %
        assert error < 5 * values.std(ddof=1) / math.sqrt(12) + 0.01 * spread, (values, wanted)
        assert error < 0.1 * spread
    # weights that are not used: a wrong variance, which is what they are for
    plain = solvers.FeynmanKacSampler(schedule, levels, exponents=exponents, threshold=0)
    y = plain.sample(lambda x, t: [m(x, t) for m in models], x.copy())
    assert abs(y.std() / spread - 1) > 0.05 or abs(y.mean() - mean) > 0.1 * spread


def test_feynman_kac_start():
    schedule = solvers.NoiseSchedule.ve()
    sampler = solvers.FeynmanKacSampler(schedule, [9.0, 0.0], exponents=[1.0, 3.0])
    x = sampler.initial_noise(np.zeros((2, 20_000)))
    assert abs(x.std() / 4.5 - 1) < 0.02


def test_feynman_kac_weights_by_hand():
    schedule = solvers.NoiseSchedule.vp()
    sampler = solvers.FeynmanKacSampler(
        schedule, [4.0, 3.0, 0.0], exponents=[-0.5, 1.5], threshold=0, particles=2,
        prediction_type="v_prediction",
    )  # fmt: skip
    x, a, b = normal(4, 3), normal(4, 3, seed=1), normal(4, 3, seed=2)
    sampler.start(x)
    sampler.step(a, b)
    p = schedule.at_sigma(4.0)
    n1, n2 = (p.sigma * x + p.alpha * v for v in (a, b))
    total = 1.5 * n2 - 0.5 * n1
    grown = (total**2).sum(1) - 1.5 * (n2**2).sum(1) + 0.5 * (n1**2).sum(1)
    log = (0.5 * (16 - 9) / 16 * grown).reshape(2, 2)
    log -= np.log(np.exp(log).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(sampler.log_weights.reshape(2, 2), log, atol=1e-6)
    with pytest.raises(ValueError, match="populations"):
        sampler.start(normal(3, 3))


def test_feynman_kac_resamples_within_populations():
    schedule = solvers.NoiseSchedule.ve()
    sampler = solvers.FeynmanKacSampler(
        schedule, [5.0, 1.0, 0.0], exponents=[2.0], threshold=1.0, particles=4
    )
    x = np.repeat(np.array([[0.0], [100.0]]), 4, axis=0) + normal(8, 1)
    y = sampler.start(x)
    y = sampler.step(x * 0)
    assert (np.abs(y[:4]) < 50).all() and (np.abs(y[4:] - 100) < 50).all()
    np.testing.assert_allclose(np.exp(sampler.log_weights), 0.25)


def samplers():
    """run(model, x) of every sampler here and in its neighbour, in x's framework."""
    schedule = solvers.NoiseSchedule.vp()
    levels = [4.0, 2.0, 1.0, 0.4, 0.0]
    mean, vectors, variances = correlated(6, 2)
    teleport = solvers.GaussianTeleport(mean, vectors, variances)
    points = [schedule.at_sigma(s) for s in levels]

    def editor(model, x):
        edit = solvers.ConsistentEditor(schedule, levels, eta=0.5)
        return edit.edit(lambda x, t, c: model(x, t) * c, x, 1.0, 0.9)

    def chain(model, x):
        def posterior(x):
            return x[:, :2] * 0

        mcmc = solvers.DenoisingMCMC(schedule, [2.0, 1.0], posterior, seed=1)
        level = np.arange(len(x)) % 2

        def by_sample(x, times):
            return model(x, 100.0)

        for _ in range(3):
            x, level = mcmc.step(by_sample, x, level)
        return mcmc.denoise(by_sample, x, level, "heun", steps=2)

    o = {"schedule": schedule, "sigmas": levels}
    return {
        "teleport": lambda model, x: teleport(x, points[0], points[2]),
        "one_more_step": lambda model, x: solvers.one_more_step(model, schedule, points[0], x),
        "pfgmpp": lambda model, x: solvers.pfgmpp_noise(x, 3.0, D=16),
        "editor": editor,
        "chain": chain,
        "corrector": solvers.PredictorCorrector(**o, seed=2).sample,
        "particles": solvers.FeynmanKacSampler(**o, exponents=[1.4], threshold=1.0).sample,
        "adaptive": solvers.AdaptiveSolver(schedule, start=4.0, end=0.4).sample,
        "time_shift": solvers.TimeShiftSolver("dpmpp_2m", **o, window=10).sample,
    }


@pytest.mark.parametrize("name", list(samplers()))
def test_torch_gives_numpys_numbers(name):
    torch = pytest.importorskip("torch")
    x = normal(4, 6).astype(np.float32)
    results = []
    for start in (x.copy(), torch.from_numpy(x.copy())):

        def model(x, t):
            return x * (0.5 + t / 4000)

        y = samplers()[name](model, start)
        assert type(y) is type(start) and y.dtype == start.dtype
        results.append(np.array(y))
    np.testing.assert_allclose(results[1], results[0], rtol=1e-5, atol=1e-5)
