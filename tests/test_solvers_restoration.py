"""Mean-reverting and residual diffusions: restoration of a degraded image."""

from __future__ import annotations

import math

import numpy as np
import pytest
from test_solvers_families import MU, SPREAD, normal, same_normal

from pixleap import solvers


def test_mean_reverting_ddim_by_hand():
    reverting = solvers.MeanRevertingSchedule.ir_sde(steps=50, sigma_inf=0.3)
    degraded = normal(2, 4, seed=8)
    levels = [49.0, 30.0, 10.0]
    plan = reverting.plan("ddim", timesteps=levels)
    theta = np.arange(53) / 52
    bar = np.cos((theta + 0.008) / 1.008 * math.pi / 2) ** 2
    total = np.cumsum((1 - bar[1:-1] / bar[0])[1:])
    alphas = np.concatenate([[1.0], np.exp(total / total[-1] * math.log(0.005))])
    sigmas = 0.3 * np.sqrt(1 - alphas**2)

    def model(x, t):
        return np.tanh(x + t / 100)

    x = degraded + reverting.start_scale(plan) * normal(2, 4)
    assert abs(reverting.start_scale(plan) - sigmas[49]) < 1e-9
    y = solvers.Solver(plan, constants={"mu": degraded}).sample(model, x.copy())
    z = x
    for a, b in ((49, 30), (30, 10), (10, None)):
        e = model(z, float(a))
        clean = degraded + (z - degraded - sigmas[a] * e) / alphas[a]
        alpha, sigma = (alphas[b], sigmas[b]) if b else (1.0, 0.0)
        z = degraded + alpha * (clean - degraded) + sigma * e
    np.testing.assert_allclose(y, z, atol=1e-9)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "residual"])
def test_mean_reverting_solvers_restore_a_gaussian(kind):
    """Any solver: deterministic ones converge to the exact flow, stochastic ones to its end."""
    reverting = solvers.MeanRevertingSchedule.rddm(np.full(100, 0.01), np.full(100, 1e-4))
    schedule, degraded = reverting.schedule, normal(1, 1, seed=3).repeat(4000, axis=0)

    def model(x, t):
        k = np.arange(101)
        alpha = 1 - float(np.interp(t, k, k * 0.01))
        p = schedule.at_time(t)
        scale = reverting.scale(p)
        alpha, sigma = p.alpha * scale, p.sigma * scale
        centred = x - degraded[: len(x)]
        gain = alpha * SPREAD**2 / ((alpha * SPREAD) ** 2 + sigma**2)
        clean = (
            degraded[: len(x)] + MU + gain * (centred - alpha * MU)
        )  # x0 - mu of N(MU, SPREAD^2)
        if kind == "sample":
            return clean
        if kind == "residual":
            return degraded[: len(x)] - clean
        return (centred - alpha * (clean - degraded[: len(x)])) / sigma

    times = np.linspace(99, 1, 50)
    for name in ("dpmpp_2m", "unipc", "heun", "dpmpp_2m_sde"):
        if kind != "epsilon" and name == "heun":
            continue
        plan = reverting.plan(name, timesteps=times, prediction_type=kind)
        p = plan.points[0]
        alpha, sigma = p.alpha * reverting.scale(p), p.sigma * reverting.scale(p)
        x = degraded + alpha * MU + math.hypot(alpha * SPREAD, sigma) * normal(4000, 1, seed=6)
        y = solvers.Solver(plan, seed=2, constants={"mu": degraded}).sample(model, x.copy())
        same_normal(y - degraded, MU, SPREAD)
        state = solvers.solver_start(plan, x[:5], constants={"mu": degraded[:5]})
        z = solvers.Solver(plan, seed=2, constants={"mu": degraded[:5]}).sample(model, x[:5].copy())
        for k, t in enumerate(plan.timesteps):
            state = solvers.solver_step(plan, k, state, model(state["x"], t), seed=2)
        np.testing.assert_allclose(state["x"], z, atol=1e-9)


def test_mean_reverting_bad_input():
    reverting = solvers.MeanRevertingSchedule.ir_sde(steps=20)
    plan = reverting.plan("ddim", timesteps=[15, 5])
    with pytest.raises(ValueError, match="constants"):
        solvers.Solver(plan)
    with pytest.raises(ValueError, match="clip_sample"):
        reverting.plan("ddim", timesteps=[15, 5], clip_sample=1.0)
    with pytest.raises(ValueError, match="rising"):
        solvers.MeanRevertingSchedule([1.0, 0.5], [0.3, 0.1])


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_residual_denoising_by_hand(eta):
    """Equation 13 with the kernel's noise; perfect predictions end at the image, whatever it is."""
    alphas, betas = np.linspace(0, 2, 20) / 20, np.full(20, 0.01)
    alphas = alphas / alphas.sum()
    image, degraded = normal(2, 3), normal(2, 3, seed=1)
    run = solvers.ResidualDenoising(alphas, betas, steps=5, eta=eta, seed=4)
    total = np.concatenate([[0], np.cumsum(alphas)])
    x = run.start(degraded)
    assert run.timesteps == [19.0, 15.0, 11.0, 7.0, 3.0]
    for i, t in enumerate((20, 16, 12, 8, 4)):
        b, after = math.sqrt(0.01 * t), math.sqrt(0.01 * (t - 4))
        residual = degraded - image
        noise = (x - image - total[t] * residual) / b
        spread = eta * (b * b - after * after) * after * after / (b * b)
        z = solvers.langevin.ops.random_normal((2, 3), seed=4, offset=i).astype(np.float64)
        wanted = x - (total[t] - total[t - 4]) * residual
        wanted = wanted - (b - math.sqrt(after * after - spread)) * noise + math.sqrt(spread) * z
        x = run.step(residual, noise)
        np.testing.assert_allclose(x, wanted, atol=1e-6)
    np.testing.assert_allclose(x, image, atol=1e-9)
    with pytest.raises(ValueError, match="once per time"):
        run.step(x, x)
