"""Samplers that follow their data: each against an independent computation in float64."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from pixleap import solvers

MU, SPREAD = 0.7, 0.6


def gaussian_noise(schedule: solvers.NoiseSchedule, mu=MU, spread=SPREAD):
    """The exact model of N(mu, spread^2): times may be numbers or (B,) arrays."""

    def model(x: np.ndarray, t) -> np.ndarray:
        points = [schedule.at_time(float(v)) for v in np.atleast_1d(t)]
        shape = (-1, *[1] * (x.ndim - 1))
        alpha = np.array([p.alpha for p in points]).reshape(shape)
        sigma = np.array([p.sigma for p in points]).reshape(shape)
        return (x - alpha * mu) * sigma / ((alpha * spread) ** 2 + sigma**2)

    return model


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def same_normal(values: np.ndarray, mean: float, spread: float) -> None:
    """Kolmogorov-Smirnov on independent values; fails a right sampler once in 10,000 times (the
    seeds are fixed)."""
    stats = pytest.importorskip("scipy.stats")
    p = stats.kstest(values.ravel(), "norm", args=(mean, spread)).pvalue
    assert p > 1e-4, f"p = {p:.2g}, mean {values.mean():.4f}, spread {values.std():.4f}"


def test_momentum_one_is_the_solver_itself():
    schedule = solvers.NoiseSchedule.vp()

    def model(x, t):
        return np.tanh(x + t / 1000)

    x = normal(2, 5)
    for base in ("ddim", "euler", "dpmpp_2m", "dpm_solver_2m", "unipc", "ipndm"):

        def run(name, **o):
            plan = solvers.solver_plan(name, schedule, "karras", steps=8, **o)
            return solvers.Solver(plan).sample(model, x.copy())

        np.testing.assert_allclose(run(f"{base}_hb", momentum=1.0), run(base), atol=1e-10)
        assert np.abs(run(f"{base}_hb") - run(base)).max() > 1e-3


def test_heavy_ball_by_hand():
    """DPM-Solver++(1) with the predicted sample averaged, as the official code's."""
    schedule = solvers.NoiseSchedule.ve()
    levels = [8.0, 3.0, 1.0, 0.3]

    def model(x, t):
        return np.sin(x + t)

    solvers.methods.momentum.with_momentum("dpmpp", "dpmpp_1m_hb_test", order=1)
    plan = solvers.solver_plan("dpmpp_1m_hb_test", schedule, levels, momentum=0.7)
    x = y = normal(2, 3)
    v = None
    for a, b in itertools.pairwise(levels):
        sample = y - a * model(y, a)
        v = sample if v is None else 0.3 * v + 0.7 * sample
        y = y * (b / a) + v * (1 - b / a)
    np.testing.assert_allclose(solvers.Solver(plan).sample(model, x.copy()), y, atol=1e-12)


def test_ghvb_has_the_papers_weights():
    """On constant steps the weights tend to those of the official repository."""
    schedule = solvers.NoiseSchedule.ve()
    for order in (2, 3, 4):
        rows = []
        for compat in ("consistent", "diffusers"):
            plan = solvers.solver_plan(
                "ghvb", schedule, np.linspace(4, 1, 41), order=order, momentum=0.6, compat=compat,
                lower_order_final=False,
            )  # fmt: skip
            forms = plan.stages[-1].passes[-1].forms
            rows.append([forms[0].terms[n] for n in sorted(forms[0].terms)])
        np.testing.assert_allclose(rows[0], rows[1], rtol=1e-6)


def test_momentum_refuses_noise_and_bad_numbers():
    schedule = solvers.NoiseSchedule.vp()
    with pytest.raises(ValueError, match="deterministic"):
        solvers.solver_plan("ddim_hb", schedule, "karras", steps=5, eta=1.0)
    for bad in (0.0, 1.5):
        with pytest.raises(ValueError, match="momentum"):
            solvers.solver_plan("ghvb", schedule, "karras", steps=5, momentum=bad)


@pytest.mark.parametrize("kind", ["vp", "flow"])
def test_per_step_schedule_of_one_solver_is_that_solver(kind):
    schedule = solvers.NoiseSchedule.flow(shift=3) if kind == "flow" else solvers.NoiseSchedule.vp()
    grid = "linspace" if kind == "flow" else "karras"

    def model(x, t):
        return np.tanh(x - t / 1000)

    x = normal(2, 4)
    for name in ("dpmpp_2m", "unipc", "euler", "heun", "lms", "ddim", "dpm_solver_2s", "deis"):
        o = {"prediction_type": "flow_prediction"} if kind == "flow" else {}
        if kind == "flow" and name in ("dpm_solver_2s", "deis"):
            continue  # predicted noise, from sigma = 1
        a = solvers.solver_plan(name, schedule, grid, steps=6, lower_order_final=False, **o)
        b = solvers.solver_plan("per_step", schedule, grid, steps=6, solvers=[name] * 6, **o)
        assert a.timesteps == b.timesteps
        np.testing.assert_allclose(
            solvers.Solver(b).sample(model, x.copy()), solvers.Solver(a).sample(model, x.copy()),
            atol=1e-10, err_msg=name,
        )  # fmt: skip


def test_per_step_needs_an_entry_for_each_step():
    with pytest.raises(ValueError, match="each of 4 steps"):
        solvers.solver_plan(
            "per_step", solvers.NoiseSchedule.vp(), "karras", steps=4, solvers=["euler"]
        )


def test_time_shift_without_window_is_the_solver():
    schedule = solvers.NoiseSchedule.vp()

    def model(x, t):
        return np.tanh(x + t / 1000)

    x = normal(2, 6)
    for name in ("ddim", "dpmpp_2m", "unipc", "heun", "dpmpp_2m_sde", "edm"):
        o = {"s_churn": 3.0} if name == "edm" else {}
        plain = solvers.Solver(
            solvers.solver_plan(name, schedule, "leading", steps=8, **o), seed=4
        ).sample(model, x.copy())
        shifted = solvers.TimeShiftSolver(
            name, schedule, "leading", steps=8, window=0, seed=4, **o
        ).sample(model, x.copy())
        np.testing.assert_allclose(shifted, plain, atol=1e-9, err_msg=name)


def test_time_shift_chooses_the_time_of_the_variance():
    """A model that leaves too much noise: the sampler moves to earlier times, as far as the window
    goes; without error it stays."""
    schedule = solvers.NoiseSchedule.vp()
    exact = gaussian_noise(schedule, 0.0, SPREAD)
    x = normal(4, 20_000)
    o = dict(steps=10, window=30, data_variance=SPREAD**2)
    run = solvers.TimeShiftSolver("ddim", schedule, "leading", **{**o, "steps": 200})
    run.sample(exact, x[:, :5000].copy())
    assert np.mean([abs(a - b) for a, b in run.shifts]) <= 3
    run = solvers.TimeShiftSolver("ddim", schedule, "leading", **o)
    run.sample(lambda x, t: 0.93 * exact(x, t), x.copy())
    moved = [b - a for a, b in run.shifts[1:]]
    assert min(moved) >= 0 and max(moved) == 15
    # by hand: the nearest of the candidates
    a, b, c = (schedule.at_time(t) for t in (600, 500, 400))
    y = np.linspace(-1, 1, 7)[None] * 1.2
    times = np.arange(485, 516)
    levels = [schedule.at_time(t) for t in times]
    distance = [abs(y.var(ddof=1) - p.sigma**2 - p.alpha**2 * SPREAD**2) for p in levels]
    assert run.choose(y, a, b, c).time == times[int(np.argmin(distance))]


def test_time_shift_cutoff():
    schedule = solvers.NoiseSchedule.vp()
    run = solvers.TimeShiftSolver("ddim", schedule, "leading", steps=10, window=40, cutoff=450)
    run.sample(lambda x, t: 0.5 * x, normal(2, 50))
    assert any(a != b for a, b in run.shifts)
    assert all(a == b for a, b in run.shifts if a <= 450)


LAMBDAS = np.linspace(-3.0, 2.5, 56)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(("l", "s", "base"), [(1.0, 0.0, "dpmpp"), (0.0, -1.0, "dpm_solver")])
def test_dpm_solver_v3_with_trivial_statistics(order, l, s, base):  # noqa: E741
    """Section 3.1: (l, s, b) = (1, 0, 0) is DPM-Solver++, (0, -1, 0) DPM-Solver."""
    schedule = solvers.NoiseSchedule.vp()
    statistics = solvers.EmpiricalStatistics.constant(LAMBDAS, (5,), l=l, s=s, b=0.0)
    levels = np.exp(-np.linspace(-2.9, 2.3, 9))

    def model(x, t):
        return np.tanh(x + t / 500)

    x = normal(3, 5)
    v3 = solvers.DPMSolverV3(
        statistics, schedule, levels, order=order, lower_order_final=False
    ).sample(model, x.copy())
    plan = solvers.solver_plan(
        base, schedule, levels, order=order, solver_type="heun", lower_order_final=False
    )
    np.testing.assert_allclose(v3, solvers.Solver(plan).sample(model, x.copy()), atol=1e-8)


def test_dpm_solver_v3_statistics_make_a_gaussian_exact():
    """N is constant along the flow of a Gaussian with its own statistics: one step is exact."""
    schedule = solvers.NoiseSchedule.ve()
    mu, spread = np.array([0.5, -1.0, 2.0]), np.array([0.3, 1.0, 0.6])
    model = gaussian_noise(schedule, mu, spread)
    data = mu + spread * normal(400, 3)
    lambdas = np.linspace(-2.0, 2.0, 201)
    estimated = solvers.EmpiricalStatistics.estimate(model, schedule, data, lambdas)
    sigma = np.exp(-lambdas)[:, None]
    exact = sigma**2 / (spread**2 + sigma**2)
    np.testing.assert_allclose(estimated.l, exact, atol=1e-6)
    levels = np.exp(-np.linspace(-2, 2, 4))
    x = levels[0] * normal(4, 3)
    y = solvers.DPMSolverV3(estimated, schedule, levels, order=1).sample(model, x.copy())
    grow = np.sqrt((spread**2 + levels[-1] ** 2) / (spread**2 + levels[0] ** 2))
    np.testing.assert_allclose(y, mu + (x - mu) * grow, atol=2e-4)
    plain = solvers.solver_plan("dpmpp_1m", schedule, levels)
    error = np.abs(solvers.Solver(plain).sample(model, x.copy()) - (mu + (x - mu) * grow)).max()
    assert error > 0.05


@pytest.mark.parametrize("corrector", [False, True])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_dpm_solver_v3_order(order, corrector):
    """Elementwise statistics that vary: the order of convergence is the declared one."""
    schedule = solvers.NoiseSchedule.ve()
    statistics = solvers.EmpiricalStatistics([-3.0, 2.5], *normal(3, 2, 4, seed=3) * 0.4)

    def model(x, t):
        return np.sin(x / (1 + t)) + 0.3 * x / (1 + t)

    def levels_of(n):  # short first steps, so that their lower order does not show
        h = 4 / n
        inner = np.linspace(-2 + 2 * h * h, 2, n + 1)
        return np.exp(-np.array([-2, -2 + h * h, *inner]))

    x = 7 * normal(2, 4)
    ends = []
    for n in (40, 80, 160):
        levels = levels_of(n)
        ends.append(
            solvers.DPMSolverV3(
                statistics, schedule, levels, order=order, corrector=corrector,
                lower_order_final=False,
            ).sample(model, x.copy())
        )  # fmt: skip
    levels = np.exp(-np.linspace(-2, 2, 801))
    plan = solvers.solver_plan("rho_rk4", schedule, levels)
    exact = solvers.Solver(plan).sample(model, x.copy())
    e = [np.abs(y - exact).max() for y in ends]
    slope = math.log2(e[1] / e[2])
    assert slope > order - 0.25, (slope, e)


def test_dpm_solver_v3_files_and_bad_input(tmp_path):
    schedule = solvers.NoiseSchedule.ve()
    statistics = solvers.EmpiricalStatistics(
        LAMBDAS, normal(56, 2), normal(56, 2, seed=1), normal(56, 2, seed=2)
    )
    statistics.save(tmp_path / "ems.npz")
    read = solvers.EmpiricalStatistics.load(tmp_path / "ems.npz")
    for name in ("lambdas", "l", "s", "b"):
        np.testing.assert_array_equal(getattr(read, name), getattr(statistics, name))
    with pytest.raises(ValueError, match="range of the statistics"):
        solvers.DPMSolverV3(statistics, schedule, [80.0, 1.0])
    with pytest.raises(ValueError, match="samples of shape"):
        solvers.DPMSolverV3(statistics, schedule, [5.0, 1.0]).start(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="rising"):
        solvers.EmpiricalStatistics([0.0, 0.0], *[np.zeros((2, 1))] * 3)


def test_dpm_solver_v3_on_torch():
    torch = pytest.importorskip("torch")
    schedule = solvers.NoiseSchedule.ve()
    statistics = solvers.EmpiricalStatistics(
        LAMBDAS, 1 + 0.1 * normal(56, 2, 3), 0.1 * normal(56, 2, 3, seed=1),
        0.1 * normal(56, 2, 3, seed=2),
    )  # fmt: skip
    levels = np.exp(-np.linspace(-2, 2, 7))
    x = 7 * normal(2, 2, 3)
    results = []
    for start, sin in ((x.copy(), np.sin), (torch.from_numpy(x).float(), torch.sin)):
        solver = solvers.DPMSolverV3(statistics, schedule, levels, pseudo=True, corrector=True)
        for _ in range(2):  # the second run uses the weights of the first
            y = solver.sample(lambda x, t, sin=sin: sin(x / (1 + t)), start)
        results.append(np.asarray(y))
    np.testing.assert_allclose(results[1], results[0], atol=2e-5)


@pytest.mark.parametrize("kind", ["vp", "ve"])
def test_langevin_corrector_by_hand(kind):
    schedule = getattr(solvers.NoiseSchedule, kind)()
    model = gaussian_noise(schedule)
    levels = [5.0, 2.0, 0.5]
    pc = solvers.PredictorCorrector(schedule, levels, predictor="none", snr=0.2, seed=3)
    x = 5 * normal(3, 8)
    y, z = x.copy(), []
    for i, s in enumerate(levels[:-1]):
        p = schedule.at_sigma(s)
        noise = solvers.langevin.ops.random_normal(
            (3, 8), seed=3, offset=solvers.langevin.CORRECTOR_OFFSET + i
        ).astype(np.float64)
        score = -model(y, p.time) / p.sigma
        ratio = np.linalg.norm(noise, axis=1).mean() / np.linalg.norm(score, axis=1).mean()
        a = 1.0
        if kind == "vp":
            t = round(p.time)
            a = (schedule.at_time(t).alpha / schedule.at_time(t - 1).alpha) ** 2
        step = 2 * a * (0.2 * ratio) ** 2
        y = y + step * score + math.sqrt(2 * step) * noise
        z.append(step)
    np.testing.assert_allclose(pc.sample(model, x), y, rtol=1e-6, atol=1e-6)


def test_predictor_corrector_keeps_a_gaussian():
    """2,000 independent chains from exact noise: the end has the data's distribution."""
    schedule = solvers.NoiseSchedule.ve()
    levels = np.exp(np.linspace(math.log(20), math.log(0.02), 250))
    x = 20 * normal(2000, 1, seed=5)
    pc = solvers.PredictorCorrector(schedule, levels, snr=0.1, seed=11)
    # one-element samples: norms averaged over the batch are those of the paper
    y = pc.sample(gaussian_noise(schedule), x)
    same_normal(y, MU, SPREAD)


def test_sde_solvers_reach_a_gaussian():
    """By their exact moments: see the orders suite; here that the kernel's noise is what it is."""
    flow = solvers.NoiseSchedule.flow()
    for form in ("sigma", "constant", "decreasing", "increasing_decreasing"):
        plan = solvers.solver_plan(
            "sit_sde", flow, np.linspace(0.99, 0.0, 200), diffusion=form, last="tweedie"
        )
        p = plan.points[0]
        x = p.alpha * MU + math.hypot(p.alpha * SPREAD, p.sigma) * normal(4000, 1, seed=2)
        y = solvers.Solver(plan, seed=8).sample(gaussian_noise(flow), x)
        # the last sample is a posterior mean, a little narrower
        assert abs(y.mean() - MU) < 0.04 and abs(y.std() - SPREAD) < 0.03, form
    with pytest.raises(ValueError, match="infinite"):
        kind = {"prediction_type": "flow_prediction", "diffusion": "sbdm"}
        solvers.solver_plan("sit_sde", flow, [1.0, 0.5, 0.1], **kind)


def test_pfgmpp_noise():
    """Radius r sqrt(N / D) sqrt(F) for F of the F distribution, uniform direction."""
    stats = pytest.importorskip("scipy.stats")
    n, D, sigma = 12, 24, 3.0
    noise = normal(4000, 3, 4)
    x = solvers.pfgmpp_noise(noise, sigma, D=D, seed=1)
    radius = np.linalg.norm(x.reshape(4000, -1), axis=1) / (sigma * math.sqrt(D))
    p = stats.kstest(radius**2, stats.betaprime(n / 2, D / 2).cdf).pvalue
    assert p > 1e-4
    unit = noise / np.linalg.norm(noise.reshape(4000, -1), axis=1)[:, None, None]
    shown = x / np.linalg.norm(x.reshape(4000, -1), axis=1)[:, None, None]
    np.testing.assert_allclose(shown, unit, atol=1e-12)
    many = solvers.pfgmpp_noise(noise, sigma, D=10**9, seed=1)
    assert abs(many.std() / sigma - 1) < 0.02


def test_multistep_consistency_on_its_grid():
    """iCT's two steps (Song and Dhariwal 2024: sigma 80 and 0.821) and any more."""
    schedule = solvers.NoiseSchedule.ve()
    plan = solvers.solver_plan(
        "consistency", schedule, [80.0, 0.821, 0.0], prediction_type="sample"
    )
    x, z = 80 * normal(2, 3), normal(2, 3, seed=9)

    def f(x, t):
        return x / (1 + t)

    y = solvers.Solver(plan, noise=lambda name: z).sample(f, x.copy())
    np.testing.assert_allclose(y, f(f(x, 80.0) + 0.821 * z, 0.821), atol=1e-12)


NEW = [
    *(f"{b}_hb" for b in ("ddim", "euler", "ipndm", "dpmpp_2m", "dpm_solver_2m", "unipc")),
    "ghvb_3",
    "reverse_diffusion",
    "euler_maruyama",
    "sit_sde",
    "sit_sde_heun",
    "per_step",
]


@pytest.mark.parametrize("limits", [{}, {"clip_sample": 0.8}])
@pytest.mark.parametrize("name", NEW)
def test_plans_are_their_descriptions(name, limits):
    """Fused passes, step by step with and without buffers, against plain arithmetic."""
    flow = name.startswith("sit")
    schedule = solvers.NoiseSchedule.flow() if flow else solvers.NoiseSchedule.vp()
    levels = [0.9, 0.7, 0.5, 0.3, 0.1] if flow else [9.0, 4.0, 2.0, 1.0, 0.2]
    options = {**limits, "prediction_type": "v_prediction"}
    if name == "per_step":
        options["solvers"] = ["heun", "unipc", ("sa_solver", {"tau": 0.5}), "dpm_solver_2m"]

    def model(x, t):
        return np.tanh(x + t / 1000)

    plan = solvers.solver_plan(name, schedule, levels, **options)
    x = normal(2, 5)
    noises = {n: normal(2, 5, seed=10 + i) for i, n in enumerate(plan.noises)}
    wanted = solvers.reference.sample(
        name, schedule, levels, model=model, x=x.copy(),
        noise=lambda i, k: noises.get(f"noise {i}.{k}", 0 * x), **options,
    )  # fmt: skip
    got = solvers.Solver(plan, noise=noises.__getitem__).sample(model, x.copy())
    np.testing.assert_allclose(got, wanted, atol=1e-10)
    state = solvers.solver_start(plan, x, noise=noises.__getitem__)
    for k, t in enumerate(plan.timesteps):
        state = solvers.solver_step(plan, k, state, model(state["x"], t), noise=noises.__getitem__)
    np.testing.assert_allclose(state["x"], wanted, atol=1e-10)
