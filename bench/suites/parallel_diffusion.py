"""Diffusion parallel in time on the embedded digit model: depth, work, time and error.

A sweep is one call of the model on every row of the window. On a CPU rows cost what they cost one
after another, so time here follows the work; what a device with idle lanes gains is the ratio of
steps to sweeps. Times are CPU seconds of the process: with one thread, those of an idle core's
clock. Errors are against the sequential solver, in the model's range of -1 to 1.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

import pixleap as px
from pixleap import solvers
from pixleap.cli.demo import digit_score
from pixleap.decode import noise_schedule
from pixleap.models import load_digits_dit

TOLERANCES = (1e-1, 1e-2, 1e-3)
HISTORIES: dict[int, tuple[int, ...]] = {50: (0, 2, 3, 4), 100: (0, 3), 200: (0, 3)}
SCORED = 100  # digits of the Frechet distance


class Task:
    """The digit model on fixed noise, `count` digits."""

    def __init__(self, network: Any, count: int) -> None:
        self.network, self.labels = network, torch.arange(count) % 10
        self.noise = torch.empty(count, network.in_channels, *[network.input_size] * 2)
        px.ops.random_normal(tuple(self.noise.shape), seed=1, out=self.noise)

    def model(self, x: torch.Tensor, t: Any, labels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self.network(x, t, labels)[:, : self.network.in_channels]

    def plan(self, name: str, steps: int) -> solvers.SolverPlan:
        kind = self.network.diffusion["prediction_type"]
        schedule = noise_schedule(self.network)
        return solvers.solver_plan(name, schedule, "lu", steps=steps, prediction_type=kind)

    def start(self, plan: solvers.SolverPlan) -> torch.Tensor:
        return self.noise * plan.points[0].sigma

    def sequential(self, plan: solvers.SolverPlan) -> torch.Tensor:
        run = solvers.Solver(plan)
        x = run.sample(lambda x, t: self.model(x, t, self.labels), self.start(plan))
        return x.clone()

    def parallel(self, plan: solvers.SolverPlan, **options: Any) -> solvers.ParallelResult:
        x = self.start(plan)
        return solvers.parallel_sample(plan, self.model, x, conditions=[self.labels], **options)


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    return run(), time.process_time() - start


def depth_rows(task: Task, name: str, steps: int) -> list[str]:
    plan = task.plan(name, steps)
    expected, spent = timed(lambda: task.sequential(plan))
    lines = [f"| {name} | {steps} | sequential | | {steps} | 1.0x | {steps} | {spent:.2f} s | |"]
    for history in HISTORIES[steps]:
        for tolerance in TOLERANCES:
            r, s = timed(
                lambda t=tolerance, m=history: task.parallel(plan, tolerance=t, anderson=m)
            )
            error = (r.samples - expected).abs().max().item()
            rule = "Picard" if not history else f"Anderson {history}"
            lines.append(
                f"| {name} | {steps} | {rule} | {tolerance:g} | {r.sweeps} "
                f"| {steps / r.sweeps:.1f}x | {r.evaluations.mean():.0f} "
                f"| {s:.2f} s ({s / spent:.1f}x) | {error:.1e} |"
            )
    print("\n".join(lines), flush=True)
    return lines


def window_rows(task: Task) -> list[str]:
    lines = [
        "### Windows: ddim, 100 steps, tolerance 0.01",
        "",
        "| window | rule | sweeps | evaluations per digit | time | largest error |",
        "|---|---|---|---|---|---|",
    ]
    plan = task.plan("ddim", 100)
    expected = task.sequential(plan)
    for window in (4, 8, 16, 32, 100):
        for m in (0, 3):
            r, s = timed(
                lambda w=window, m=m: task.parallel(plan, tolerance=1e-2, window=w, anderson=m)
            )
            error = (r.samples - expected).abs().max().item()
            lines.append(
                f"| {window} | {f'Anderson {m}' if m else 'Picard'} | {r.sweeps} "
                f"| {r.evaluations.mean():.0f} | {s:.2f} s | {error:.1e} |"
            )
            print(lines[-1], flush=True)
    return [*lines, ""]


def quality_rows(network: Any) -> list[str]:
    """Frechet distance to held-out digits, from the same noise."""
    task = Task(network, SCORED)
    plan = task.plan("ddim", 50)
    lines = [
        f"### Frechet distance of {SCORED} digits: ddim, 50 steps",
        "",
        "| sampler | sweeps | evaluations | Frechet distance | accuracy | largest error |",
        "|---|---|---|---|---|---|",
    ]
    expected = task.sequential(plan)
    runs: list[tuple[str, Any]] = [("sequential", None)]
    runs += [(f"Anderson 2, tolerance {t:g}", t) for t in (0.1,)]
    for name, tolerance in runs:
        images, sweeps, work, error = expected, 50, 50.0, 0.0
        if tolerance is not None:
            r = task.parallel(plan, tolerance=tolerance, anderson=2)
            images, sweeps, work = r.samples, r.sweeps, r.evaluations.mean()
            error = (images - expected).abs().max().item()
        accuracy, distance = digit_score(images.clamp(-1, 1), task.labels)
        lines.append(
            f"| {name} | {sweeps} | {work:.0f} | {distance:.2f} | {100 * accuracy:.0f} % "
            f"| {error:.1e} |"
        )
        print(lines[-1], flush=True)
    return [*lines, ""]


def table(threads: int) -> list[str]:
    torch.set_num_threads(threads)
    network = load_digits_dit()
    one = Task(network, 1)
    one.sequential(one.plan("ddim", 10))  # first calls allocate
    lines = [
        "Times are CPU seconds of one run each, not medians; errors are the largest of any pixel.",
        "",
        "### One digit, all steps in the window",
        "",
        "| solver | steps | rule | tolerance | sweeps | depth | evaluations | time "
        "| largest error |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in ("ddim", "dpmpp_2m"):
        for steps in HISTORIES:
            lines += depth_rows(one, name, steps)
    return [*lines, "", *window_rows(one), *quality_rows(network)]
