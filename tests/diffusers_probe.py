"""diffusers in float64, and the exact coefficients of a whole run of one of its schedulers."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch

from pixleap import solvers

Model = Callable[[torch.Tensor, Any], torch.Tensor]


class Wide:
    """A module whose float32 is float64."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, "float64" if name == "float32" else name)


@contextlib.contextmanager
def float64(scheduler_class: type) -> Iterator[Any]:
    """diffusers keeps levels and samples in float32; within, its module calculates in float64, so
    that what is compared is the method and not its rounding. Gives the module."""
    base = next(c for c in scheduler_class.__mro__ if "diffusers.schedulers." in c.__module__)
    module = importlib.import_module(base.__module__)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with mock.patch.object(module, "torch", Wide(torch)):
            if hasattr(module, "np"):
                with mock.patch.object(module, "np", Wide(np)):
                    yield module
            else:
                yield module
    finally:
        torch.set_default_dtype(before)


def diffusers_map(
    scheduler: Any, module: Any, timesteps: torch.Tensor, **step_options: Any
) -> np.ndarray:
    """What diffusers makes of the start, of every model output and of every noise it draws: one
    number each, in this order, found with one-hot inputs (the run is linear in them)."""
    n = len(timesteps)
    size = 1 + 2 * n
    basis = torch.eye(size, dtype=torch.float64).reshape(size, size, 1, 1, 1)
    drawn = 0

    def draw(*args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal drawn
        drawn += 1
        return basis[n + drawn]

    x = basis[0]
    with mock.patch.object(module, "randn_tensor", draw, create=True):
        for k, t in enumerate(timesteps):
            scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else None
            before = drawn
            x = scheduler.step(basis[1 + k], t, x, return_dict=False, **step_options)[0]
            drawn = max(drawn, before + 1)  # one place for every call, drawn or not
    return x.flatten().numpy()


def plan_map(plan: solvers.SolverPlan, x: np.ndarray | None = None) -> np.ndarray:
    """The same numbers from a plan's coefficients alone."""
    n = plan.evaluations
    basis = np.eye(1 + 2 * n)
    values = {plan.start: basis[0]}
    for k, stage in enumerate(plan.stages):
        values[stage.output] = basis[1 + k]
        for p in stage.passes:
            values.update({name: basis[1 + n + k] for name in p.noise})
            made = {
                o: sum(c * values[name] for name, c in f.terms.items())
                for o, f in zip(p.outputs, p.forms, strict=True)
            }
            values.update(made)
    return values[plan.stages[-1].result]
