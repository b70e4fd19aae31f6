"""Adaptive Guidance and LinearAG: which calls are skipped, what is kept, what a run forgets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_guidance import axes, f64, wide
from test_guidance_solver import BATCH, SHAPE, check, guided, models, plan_of, start

from pixleap import guidance, solvers

torch.set_num_threads(1)


def test_adaptive() -> None:
    """Each sample stops after the evaluation where its outputs agree; uncond is skipped at last."""
    plan = plan_of(steps=8)
    made = models()
    noise = np.random.default_rng(9).standard_normal((8, BATCH, 4, 6)) * 0.3
    distance = np.array([0.0, 1.2, 3.0])[:, None, None]  # samples agree at different times
    time = list(plan.timesteps)

    def uncond(x: Any, t: float) -> Any:
        k = time.index(t)
        calls.append(k)
        far = max(0.0, 1 - k / 4) * distance * noise[k]
        return (f64(made["cond"](x, t)) + far).astype(np.float32)

    stopped = np.zeros(BATCH, bool)
    history = []

    def rule(k: int, point: Any, x: np.ndarray) -> np.ndarray:
        c = made["cond"](x, point.time)
        far = max(0.0, 1 - k / 4) * distance * noise[k]
        u = c + far
        out = np.where(wide(stopped, c), c, u + 5.0 * (c - u))
        cos = (c * u).sum(axis=axes(c)) / np.sqrt(
            (c * c).sum(axis=axes(c)) * (u * u).sum(axis=axes(c))
        )
        stopped[:] = stopped | (cos >= 0.97)
        history.append(int(stopped.sum()))
        return out

    solver = solvers.Solver(plan)
    y = solver.start(start(plan).astype(np.float64))
    for k, stage in enumerate(plan.stages):
        y = solver.step(rule(k, stage.point, y))
    assert history[0] == 1
    assert BATCH in history[:6]  # all stop at some time, not at once
    last = history.index(BATCH)
    g = guidance.AdaptiveGuidance(5.0, threshold=0.97)
    solver = solvers.Solver(plan, guidance=g)
    for _ in range(2):
        calls: list[int] = []
        out = guidance.sample(solver, {"cond": made["cond"], "uncond": uncond}, start(plan))
        assert calls == list(range(last + 1))
        assert np.abs(out - y).max() / np.abs(y).max() < 2e-5
        assert g.stopped is not None and g.stopped.all()
    solver.start(start(plan))
    with pytest.raises(ValueError, match="evaluation 0 needs the output 'uncond'"):
        solver.step(start(plan), None)


def test_adaptive_does_not_start_again() -> None:
    """A sample that stopped stays so where its outputs part again."""
    plan = plan_of(steps=3)
    g = guidance.AdaptiveGuidance(5.0, threshold=0.9)
    c = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    like = c.copy()
    like[0] = -c[0]
    cases = [(like, [5, 1, 1], [0, 1, 1]), (-c, [5, 1, 1], [0, 1, 1]), (c, [5, 1, 1], [1, 1, 1])]
    for k, (u, scale, stopped) in enumerate(cases):
        expected = [5, 5, 5] if k == 0 else scale  # the evaluation that agrees is still guided
        _, weights = g.combine(k, plan.stages[k].point, [c, u], c)
        np.testing.assert_array_equal(weights, [[s, 1 - s] for s in expected])
        np.testing.assert_array_equal(g.stopped, np.array(stopped, bool))


class TestLinearAG:
    def linear_runs(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """uncond 2 = 0.5 cond 2 - 0.2 cond 1 + 0.6 uncond 1, and so for evaluation 3."""
        rng = np.random.default_rng(0)
        c = [rng.standard_normal((5, 4, 6)) for _ in range(4)]
        u = [rng.standard_normal((5, 4, 6)) for _ in range(2)]
        for k in (2, 3):
            u.append(0.5 * c[k] - 0.2 * c[k - 1] + 0.6 * u[k - 1])
        return c, u

    @pytest.mark.parametrize("window", [1, 2, None])
    def test_fit_finds_a_linear_relation(self, window: int | None) -> None:
        c, u = self.linear_runs()
        for arrays in ((c, u), ([torch.from_numpy(x) for x in v] for v in (c, u))):
            fit = guidance.fit_linear_ag(*arrays, [2], window=window)
            expected = {"cond 2": 0.5, "cond 1": -0.2, "uncond 1": 0.6}
            assert set(expected) <= set(fit[2].terms)
            for name, value in fit[2].terms.items():
                assert abs(value - expected.get(name, 0.0)) < 1e-12

    def test_in_a_solver(self) -> None:
        """Estimates replace uncond, later ones use earlier ones; a second run forgets the first."""
        plan = plan_of()
        fit = {
            1: solvers.LinearForm({"cond 1": 0.4, "cond 0": -0.1, "uncond 0": 0.7}),
            3: solvers.LinearForm({"cond 3": 0.5, "uncond 1": 0.3, "uncond 2": 0.2}),
            5: solvers.LinearForm({"cond 5": 0.3, "cond 4": 0.1, "uncond 3": 0.6}),
        }
        g = guidance.LinearAG(4.0, fit)
        assert g.history == 6  # cond 0, uncond 0, uncond 1, uncond 2, cond 4, uncond 3
        seen: dict[str, np.ndarray] = {}

        def rule(k: int, point: Any, o: list[np.ndarray], x: np.ndarray) -> np.ndarray:
            seen[f"cond {k}"] = o[0]
            estimated = k in fit
            u = sum(c * seen[n] for n, c in fit[k].terms.items()) if estimated else o[1]
            seen[f"uncond {k}"] = u
            return u + 4.0 * (o[0] - u)

        check(plan, g, rule)
        asked = [g.needs(k, stage.point) for k, stage in enumerate(plan.stages)]
        assert [len(a) for a in asked] == [2, 1, 2, 1, 2, 1]

    def test_with_the_last_estimate_used_by_none(self) -> None:
        plan = plan_of(steps=3)
        fit = {k: solvers.LinearForm({f"cond {k}": 0.5, "uncond 0": 0.4}) for k in (1, 2)}
        first: list[np.ndarray] = []

        def rule(k: int, point: Any, o: list[np.ndarray], x: np.ndarray) -> np.ndarray:
            if k == 0:
                first[:] = [o[1]]
            u = 0.5 * o[0] + 0.4 * first[0] if k else o[1]
            return u + 4.0 * (o[0] - u)

        check(plan, guidance.LinearAG(4.0, fit), rule)

    def test_bad_fits(self) -> None:
        c, u = self.linear_runs()
        for name in ("uncond 2", "cond 3", "x 1", "cond"):
            with pytest.raises(ValueError, match="LinearAG: argument 'fit'"):
                guidance.LinearAG(2.0, {2: solvers.LinearForm({name: 1.0})})
        with pytest.raises(ValueError, match="'stages' expected 0 to 3"):
            guidance.fit_linear_ag(c, u, [4])
        with pytest.raises(ValueError, match="'uncond' expected 4 arrays"):
            guidance.fit_linear_ag(c, u[:3], [1])
        with pytest.raises(ValueError, match="at most 16 terms"):
            many = {f"cond {i}": 1.0 for i in range(17)}
            guidance.LinearAG(2.0, {20: solvers.LinearForm(many)})
        plan = plan_of(steps=2)
        g = guidance.LinearAG(2.0, {1: solvers.LinearForm({"uncond 0": 1.0})})
        level = plan.stages[1].point.ratio
        limited = guidance.LinearAG(2.0, g.fit, interval=(0, level))
        with pytest.raises(ValueError, match="'uncond 0', which this run did not compute"):
            guided(plan, limited, start(plan))

    def test_a_run_does_not_see_the_one_before(self) -> None:
        plan = plan_of(steps=2)
        g = guidance.LinearAG(2.0, {1: solvers.LinearForm({"uncond 0": 1.0})})
        guided(plan, g, start(plan))
        g.reset()
        x = start(plan)
        with pytest.raises(ValueError, match="which this run did not compute"):
            g.combine(1, plan.stages[1].point, [x, None], x)

    def test_kept_estimates_have_a_buffer_of_their_own(self) -> None:
        plan = plan_of(steps=4)
        fit = {
            1: solvers.LinearForm({"cond 1": 0.5, "uncond 0": 0.4}),  # nobody looks at it
            2: solvers.LinearForm({"cond 2": 0.5, "uncond 0": 0.3}),
            3: solvers.LinearForm({"cond 3": 0.5, "uncond 2": 0.3}),
        }
        seen: dict[str, np.ndarray] = {}

        def rule(k: int, point: Any, o: list[np.ndarray], x: np.ndarray) -> np.ndarray:
            seen[f"cond {k}"] = o[0]
            terms = fit[k].terms if k else {}
            u = sum(c * seen[n] for n, c in terms.items()) if k else o[1]
            seen[f"uncond {k}"] = u
            return u + 4.0 * (o[0] - u)

        g = guidance.LinearAG(4.0, fit)
        check(plan, g, rule)
        kept = [g._buffers[n] for n in ("uncond 0", "uncond 2", "uncond 1")]
        assert len({id(b) for b in kept}) == 3
