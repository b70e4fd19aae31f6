"""Sampling from class-conditional diffusion transformers with any solver of `pixleap.solvers`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import guidance as rules
from .. import solvers

if TYPE_CHECKING:
    from ..models.dit import DiT

Progress = Callable[[int, int], None]


def noise_schedule(model: DiT) -> solvers.NoiseSchedule:
    """The schedule that the model was trained on, from `model.diffusion`."""
    d = model.diffusion
    return solvers.NoiseSchedule.vp(
        d["beta_schedule"],
        beta_start=d["beta_start"],
        beta_end=d["beta_end"],
        num_train_timesteps=d["num_train_timesteps"],
    )


@torch.no_grad()
def diffusion(
    model: DiT,
    labels: Tensor,
    *,
    solver: str = "dpmpp_2m",
    steps: int = 20,
    sigmas: Any = "lu",
    guidance_scale: float = 1.0,
    guidance: Any = None,
    noise: Tensor | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    **options: Any,
) -> Tensor:
    """Images of the classes `labels` by a diffusion solver.

    Args:
        model: `px.models.DiT`, whose `diffusion` says what it predicts and on which schedule.
        labels: (N,) integers; model.num_classes means "no class".
        solver, steps, sigmas, options: of `px.solvers.solver_plan`.
        guidance_scale: w of uncond + w (cond - uncond); 1 calls the model without "no class".
        guidance: any of `px.guidance` with the outputs (cond, uncond), in the place of the scale.
        noise: (N, C, S, S) standard normal start; None draws it from `seed`.
        seed: of the start and of stochastic solvers.
        progress: called with (model calls done, all).

    Returns:
        (N, C, S, S), in the model's range (digits: -1 to 1).

    Raises:
        ValueError: see `solver_plan` and `DiT`.
    """
    plan = solvers.solver_plan(
        solver,
        noise_schedule(model),
        sigmas,
        steps=steps,
        prediction_type=model.diffusion["prediction_type"],
        **options,
    )
    if guidance is None and guidance_scale != 1:
        guidance = rules.CFG(guidance_scale)
    run = solvers.Solver(plan, guidance=guidance, seed=seed)
    n = labels.shape[0]
    like = model.pos_embed
    size = (n, model.in_channels, model.input_size, model.input_size)
    if noise is not None and noise.shape != size:
        raise ValueError(
            f"diffusion: argument 'noise' expected shape {size}, got {tuple(noise.shape)}"
        )
    x = run.initial_noise(like.new_empty(size)) if noise is None else noise * plan.points[0].sigma
    x = run.start(x)
    none = torch.full_like(labels, model.num_classes)
    both = torch.cat([labels, none])
    for k, stage in enumerate(plan.stages):
        t = stage.point.time
        if guidance is None:
            x = run.step(_predict(model, x, t, labels))
        elif "uncond" in guidance.needs(k, stage.point):
            x = run.step(*_predict(model, torch.cat([x, x]), t, both).chunk(2))
        else:
            x = run.step(_predict(model, x, t, labels), None)
        if progress is not None:
            progress(k + 1, plan.evaluations)
    return x.clone()


def _predict(model: DiT, x: Tensor, time: float, labels: Tensor) -> Tensor:
    """The model's prediction without its learnt variance."""
    return model(x, time, labels)[:, : model.in_channels]
