"""Sampler steps against diffusers' `step` and torch.compile, classifier-free guidance included.

Every row is a whole run of 10 steps divided by its model evaluations; the model's two answers are
given arrays, so that the sampler alone is timed. Peers: diffusers' scheduler preceded by its
guidance arithmetic in torch; for Euler and DPM++ 2M a hand-written function of guidance, conversion
and update under torch.compile; and our drop-in scheduler (fresh outputs) against diffusers', both
without guidance. The limit is a copy that moves the bytes the step has to move.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from timing import interleaved, limits

import pixleap as px
from pixleap import guidance, solvers

STEPS, GUIDANCE, ROUNDS_OF_RUNS = 10, 7.5, 3
SHAPES = ((1, 4, 64, 64), (4, 4, 128, 128), (8, 3, 256, 256))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SCHEDULERS: dict[str, dict[str, Any]] = {
    "DDIMScheduler": {"clip_sample": False},
    "EulerDiscreteScheduler": {},
    "EulerAncestralDiscreteScheduler": {},
    "DPMSolverMultistepScheduler": {},
    "DPMSolverMultistepScheduler sde": {"algorithm_type": "sde-dpmsolver++"},
    "UniPCMultistepScheduler": {},
    "DEISMultistepScheduler": {},
    "HeunDiscreteScheduler": {},
    "LCMScheduler": {},
    "FlowMatchEulerDiscreteScheduler": {},
}
FRESH = {  # what set_timesteps resets, and the note that the input was scaled
    "_step_index": 0,
    "lower_order_nums": 0,
    "last_sample": None,
    "dt": None,
    "is_scale_input_called": True,
}
Tensor = torch.Tensor
Runner = Callable[[], Tensor]


def schedulers(name: str) -> tuple[Any, Any]:
    """diffusers' and ours, with timesteps set."""
    kind = name.split()[0]
    theirs = getattr(diffusers, kind)(**SCHEDULERS[name])
    ours = getattr(px.integrations.diffusers, kind).from_config(theirs.config)
    for s in (theirs, ours):
        s.set_timesteps(STEPS)
    return theirs, ours


def plan_of(ours: Any, name: str) -> solvers.SolverPlan:
    """The run's plan without second results. DDIM's drop-in plans by the step."""
    if name == "DDIMScheduler":
        points = [ours.point(t) for t in ours.timesteps.tolist()]
        points.append(ours.point(-1, ours.final_alpha_cumprod))
        return solvers.solver_plan("ddim", ours.noise_schedule(), points)
    options = {"prediction_type": ours.prediction(), "compat": "diffusers", **ours.limits()}
    points = ours.points()
    method, arguments = ours.solver(0, points)
    return solvers.solver_plan(method, ours.noise_schedule(), points, **options, **arguments)


def by_diffusers(scheduler: Any, x: Tensor, outputs: list[Tensor]) -> Runner:
    """A run of `scheduler.step`; guidance ahead where there are two outputs."""
    times = list(scheduler.timesteps)

    def run() -> Tensor:
        sample = x
        for name, value in FRESH.items():
            if hasattr(scheduler, name):
                setattr(scheduler, name, value)
        for t in times:
            output = outputs[0]
            if len(outputs) == 2:
                output = outputs[0] + GUIDANCE * (outputs[1] - outputs[0])
            sample = scheduler.step(output, t, sample, return_dict=False)[0]
        return sample

    return run


def by_solver(plan: solvers.SolverPlan, x: Tensor, outputs: list[Tensor]) -> Runner:
    """The same run in the solver's own buffers."""
    solver = solvers.Solver(plan, guidance=guidance.CFG(GUIDANCE), seed=1)
    stages, (uncond, cond) = plan.evaluations, outputs

    def run() -> Tensor:
        sample = solver.start(x)
        for _ in range(stages):
            sample = solver.step(cond, uncond)
        return sample

    return run


def by_compile(name: str, plan: solvers.SolverPlan, x: Tensor, outputs: list[Tensor]) -> Runner:
    """torch.compile of one functional step: guidance, conversion, update, history."""
    torch._dynamo.reset()  # for these shapes and dtypes alone
    points = plan.points
    uncond, cond = outputs
    rows = []
    if name.startswith("Euler"):

        def step(x: Tensor, c: Tensor, u: Tensor, v: Tensor) -> Tensor:
            noise = u.float() + GUIDANCE * (v.float() - u.float())
            return (x.float() + (c[1] - c[0]) * noise).to(x.dtype)

        for a, b in itertools.pairwise(points):
            rows.append(torch.tensor([a.sigma, b.sigma]))
        euler = torch.compile(step, dynamic=False)

        def run_euler() -> Tensor:
            sample = x
            for c in rows:
                sample = euler(sample, c, uncond, cond)
            return sample

        return run_euler

    def step2(x: Tensor, m1: Tensor, c: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        noise = u.float() + GUIDANCE * (v.float() - u.float())
        m0 = (x.float() - c[0] * noise) / c[1]
        y = c[2] * x.float() + c[3] * m0 + c[4] * m1.float()
        return y.to(x.dtype), m0.to(x.dtype)

    compiled = torch.compile(step2, dynamic=False)
    for k, (a, b) in enumerate(itertools.pairwise(points)):
        h = b.lam - a.lam
        grown = -b.alpha * math.expm1(-h)
        second = 0.0
        if 0 < k < len(points) - 2:
            second = grown / 2 * h / (a.lam - points[k - 1].lam)
        kept = b.sigma / a.sigma
        rows.append(torch.tensor([a.sigma, a.alpha, kept, grown + second, -second]))
    zero = torch.zeros_like(x)

    def run() -> Tensor:
        sample, m1 = x, zero
        for c in rows:
            sample, m1 = compiled(sample, m1, c, uncond, cond)
        return sample

    return run


def moved(plan: solvers.SolverPlan, shape: tuple[int, ...], size: int) -> float:
    """Bytes of one evaluation, on average: every input read, every output written, once."""
    arrays = sum(
        len(p.inputs) + len(p.outputs) + (s.output in p.inputs)
        for s in plan.stages
        for p in s.passes
    )
    return arrays / plan.evaluations * math.prod(shape) * size


def difference(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).abs().max() / b.double().abs().max())


def table(threads: int) -> list[str]:
    torch.manual_seed(0)
    diffusers.utils.logging.set_verbosity_error()
    bandwidth, _ = limits()
    lines = [
        f"### sampler steps with guidance, {threads} thread{'s' if threads > 1 else ''}",
        "",
        f"Copy bandwidth {bandwidth / 1e9:.1f} GB/s. Microseconds per model evaluation.",
        "",
        "| scheduler | shape | dtype | Solver | diffusers | ratio | time / copy | drop-in "
        "| diffusers | ratio | torch.compile | ratio | difference |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    ratios: dict[str, list[float]] = {"diffusers": [], "drop-in": [], "torch.compile": []}
    large = []
    for name in SCHEDULERS:
        for shape in SHAPES:
            for dtype in DTYPES:
                row, found, over = compare(name, shape, dtype, bandwidth)
                for key, value in found.items():
                    ratios[key].append(value)
                if math.prod(shape) >= 1_000_000:
                    large.append(over)
                print(row, flush=True)
                lines.append(row)
    for key, values in ratios.items():
        mean = math.exp(statistics.fmean(math.log(v) for v in values))
        lines.append(f"\nGeometric mean of {len(values)} ratios to {key}: {mean:.2f}x.")
    mean = math.exp(statistics.fmean(math.log(v) for v in large))
    lines.append(
        f"\nFrom a million elements on, time is {mean:.2f} times that of the copy "
        f"(geometric mean; worst {max(large):.2f})."
    )
    return [*lines, ""]


def compare(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, bandwidth: float
) -> tuple[str, dict[str, float], float]:
    """One row, its ratios, and time over that of the copy."""
    theirs, ours = schedulers(name)
    plan = plan_of(ours, name)
    x, u, v = (torch.randn(shape).to(dtype) for _ in range(3))
    functions = [
        by_solver(plan, x, [u, v]),
        by_diffusers(theirs, x, [u, v]),
        by_diffusers(ours, x, [u]),
        by_diffusers(theirs, x, [u]),
    ]
    compiled = name in ("EulerDiscreteScheduler", "DPMSolverMultistepScheduler")
    if compiled:
        functions.append(by_compile(name, plan, x, [u, v]))
    apart = math.nan  # noise differs
    with torch.no_grad():
        if not plan.noises:
            expected = functions[1]()
            apart = difference(functions[0](), expected)
            bound = {torch.float32: 1e-4, torch.bfloat16: 0.2, torch.float16: 0.05}[dtype]
            assert apart < bound, (name, shape, dtype, apart)
            assert difference(functions[2](), functions[3]()) < bound, name
            if compiled:
                assert difference(functions[4](), expected) < bound, name
        times = interleaved(*functions, rounds=ROUNDS_OF_RUNS)
    n = plan.evaluations
    solver, scheduler, drop_in, plain = (statistics.median(t) / n * 1e6 for t in times[:4])

    def ratio(over: int, under: int) -> float:
        return statistics.median(b / a for a, b in zip(times[under], times[over], strict=True))

    found = {"diffusers": ratio(1, 0), "drop-in": ratio(3, 2)}
    last = " | "
    if compiled:
        found["torch.compile"] = ratio(4, 0)
        last = f"{statistics.median(times[4]) / n * 1e6:.1f} | {found['torch.compile']:.2f}x"
    over = solver / (moved(plan, shape, x.element_size()) / bandwidth * 1e6)
    label = name.replace("Scheduler", "").replace("Multistep", "")
    size = "x".join(map(str, shape))
    row = (
        f"| {label} | {size} | {str(dtype)[6:]} | {solver:.1f} | {scheduler:.1f} "
        f"| {found['diffusers']:.1f}x | {over:.2f} | {drop_in:.1f} | {plain:.1f} "
        f"| {found['drop-in']:.1f}x | {last} | {apart:.0e} |"
    )
    return row, found, over
