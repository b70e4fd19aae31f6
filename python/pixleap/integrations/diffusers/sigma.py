"""Schedulers that keep x0 + sigma * noise and count in sigmas: Euler, Heun, LMS and their kin."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers.schedulers import scheduling_edm_euler as edm_euler
from diffusers.schedulers import scheduling_euler_ancestral_discrete as euler_ancestral
from diffusers.schedulers import scheduling_euler_discrete as euler
from diffusers.schedulers import scheduling_heun_discrete as heun
from diffusers.schedulers import scheduling_k_dpm_2_ancestral_discrete as kdpm2_ancestral
from diffusers.schedulers import scheduling_k_dpm_2_discrete as kdpm2
from diffusers.schedulers import scheduling_lms_discrete as lms

from ...solvers import LinearForm, Point, SolverPlan
from .base import (
    EDMNetwork,
    FusedScheduler,
    PairScheduler,
    Tensor,
    normal,
    original_sample,
    ve_points,
)


class SigmaScheduler(FusedScheduler):
    """Its second result is the predicted sample."""

    output_class: Any

    def points(self) -> list[Point]:
        return ve_points(self.sigmas)

    def prediction(self) -> str:
        kind = str(self.config.prediction_type)
        return "sample" if kind == "original_sample" else kind

    def second_result(self, plan: SolverPlan, k: int) -> LinearForm | None:
        return original_sample(self.noise_schedule(), plan, k)

    def finish(
        self, run: Any, model_output: Tensor, sample: Tensor, noise: Any, return_dict: bool
    ) -> Any:
        """One stage, and its results as diffusers returns them."""
        result, original = self.advance(run, model_output, sample, noise)
        if not return_dict:
            return result, original
        return self.output_class(prev_sample=result, pred_original_sample=original)


class ChurnScheduler(SigmaScheduler):
    """Euler with diffusers' churn: the noise is added after the model has answered."""

    result_like = "output"
    second_wide = True

    def solver(self, begin: int, points: list[Point], **options: Any) -> tuple[str, dict[str, Any]]:
        return "euler", {}

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = float("inf"),
        s_noise: float = 1.0,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> Any:
        """As diffusers' `step`; s_churn > 0 is not covered and raises ValueError."""
        self.reject_index(timestep)
        if s_churn > 0:
            self.refuse("s_churn", s_churn)
        return self.finish(self.run_at(timestep), model_output, sample, None, return_dict)


class EulerDiscreteScheduler(ChurnScheduler, diffusers.EulerDiscreteScheduler):
    """Karras et al. 2022, first order."""

    output_class = euler.EulerDiscreteSchedulerOutput


class EDMEulerScheduler(EDMNetwork, ChurnScheduler, diffusers.EDMEulerScheduler):
    """Euler for EDM networks."""

    output_class = edm_euler.EDMEulerSchedulerOutput


class EulerAncestralDiscreteScheduler(SigmaScheduler, diffusers.EulerAncestralDiscreteScheduler):
    """k-diffusion's Euler ancestral."""

    result_like = "output"
    second_wide = True
    output_class = euler_ancestral.EulerAncestralDiscreteSchedulerOutput

    def solver(self, begin: int, points: list[Point], **options: Any) -> tuple[str, dict[str, Any]]:
        return "euler_ancestral", {}

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> Any:
        """As diffusers' `step`."""
        self.reject_index(timestep)
        noise = normal(model_output, generator)  # drawn even where it is not used
        run = self.run_at(timestep)
        return self.finish(run, model_output, sample, lambda: noise, return_dict)


class _SigmaPairScheduler(PairScheduler, SigmaScheduler):
    def points(self) -> list[Point]:
        return ve_points(self.step_sigmas())


class _OdePairScheduler(_SigmaPairScheduler):
    """Draws no noise."""

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        return_dict: bool = True,
    ) -> Any:
        """As diffusers' `step`."""
        return self.finish(self.run_at(timestep), model_output, sample, None, return_dict)


class HeunDiscreteScheduler(_OdePairScheduler, diffusers.HeunDiscreteScheduler):
    """Karras et al. 2022, second order."""

    output_class = heun.HeunDiscreteSchedulerOutput

    def solver(self, begin: int, points: list[Point], **options: Any) -> tuple[str, dict[str, Any]]:
        return "heun", {}


class KDPM2DiscreteScheduler(_OdePairScheduler, diffusers.KDPM2DiscreteScheduler):
    """k-diffusion's DPM2: the middle in log sigma."""

    output_class = kdpm2.KDPM2DiscreteSchedulerOutput

    def solver(self, begin: int, points: list[Point], **options: Any) -> tuple[str, dict[str, Any]]:
        return "kdpm2", {}


class KDPM2AncestralDiscreteScheduler(
    _SigmaPairScheduler, diffusers.KDPM2AncestralDiscreteScheduler
):
    """k-diffusion's DPM2 ancestral."""

    output_class = kdpm2_ancestral.KDPM2AncestralDiscreteSchedulerOutput

    def solver(self, begin: int, points: list[Point], **options: Any) -> tuple[str, dict[str, Any]]:
        return "kdpm2_ancestral", {}

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> Any:
        """As diffusers' `step`."""
        run = self.run_at(timestep)
        return self.finish(
            run, model_output, sample, lambda: normal(model_output, generator), return_dict
        )


class LMSDiscreteScheduler(SigmaScheduler, diffusers.LMSDiscreteScheduler):
    """Adams-Bashforth in sigma. A run that begins in the middle starts at first order; diffusers
    takes fourth-order weights there, with the history missing."""

    output_class = lms.LMSDiscreteSchedulerOutput

    def solver(self, begin: int, points: list[Point], **options: Any) -> tuple[str, dict[str, Any]]:
        order = options["order"]
        return "lms", {
            "order": order,
            "orders": [min(order, i + 1) for i in range(len(points) - 1)],
        }

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        order: int = 4,
        return_dict: bool = True,
    ) -> Any:
        """As diffusers' `step`."""
        run = self.run_at(timestep, order=order)
        return self.finish(run, model_output, sample, None, return_dict)
