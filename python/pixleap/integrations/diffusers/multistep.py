"""DPM-Solver, UniPC, DEIS, SA-Solver and the flow schedulers."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers.schedulers import scheduling_flow_match_euler_discrete as flow_euler
from diffusers.schedulers import scheduling_flow_match_heun_discrete as flow_heun
from diffusers.schedulers.scheduling_utils import SchedulerOutput

from ...solvers import NoiseSchedule, Point
from .base import (
    EDMNetwork,
    FusedScheduler,
    PairScheduler,
    Tensor,
    flow_points,
    normal,
    ve_points,
    vp_points,
)


class MultistepScheduler(FusedScheduler):
    """Its sample is in the variance-preserving scale, or a flow's."""

    order_list: list[int]
    tau_func: Any

    def points(self) -> list[Point]:
        if self.config.get("use_flow_sigmas"):
            return flow_points(self.sigmas)
        return vp_points(self.sigmas)

    def orders(self, order: int, begin: int, count: int) -> list[int]:
        """Of every step of a run of `count` steps, as diffusers counts them."""
        total, config = begin + count, self.config
        lowered = config.lower_order_final and total < 15
        orders = [min(order, i + 1) for i in range(count)]
        if lowered and count > 1:
            orders[-2] = min(orders[-2], 2)
        ends = config.get("final_sigmas_type") == "zero" or config.get("euler_at_final")
        if lowered or ends:
            orders[-1] = 1
        return orders

    def finish(
        self, run: Any, model_output: Tensor, sample: Tensor, noise: Any, return_dict: bool
    ) -> Any:
        """One stage, and its result as diffusers returns it."""
        result, _ = self.advance(run, model_output, sample, noise)
        return SchedulerOutput(prev_sample=result) if return_dict else (result,)


class OdeScheduler(MultistepScheduler):
    """Draws no noise."""

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        return_dict: bool = True,
    ) -> Any:
        """As diffusers' `step`."""
        return self.finish(self.run_at(timestep), model_output, sample, None, return_dict)


class SdeScheduler(MultistepScheduler):
    """Draws noise where its algorithm_type is an SDE."""

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> Any:
        """As diffusers' `step`."""
        noise = None
        if self.config.algorithm_type.startswith("sde"):
            noise = normal(model_output, generator)
        run = self.run_at(timestep)
        return self.finish(run, model_output, sample, lambda: noise, return_dict)


class DPMSolverMultistepScheduler(MultistepScheduler, diffusers.DPMSolverMultistepScheduler):
    """Lu et al. 2022, DPM-Solver and DPM-Solver++, ODE and SDE."""

    def solver(self, begin: int, points: list[Point], **options: Any) -> tuple[str, dict[str, Any]]:
        config = self.config
        kind = config.algorithm_type
        name = "dpmpp" if kind.endswith("++") else "dpm_solver"
        return name, {
            "order": config.solver_order,
            "tau": 1.0 if kind.startswith("sde") else 0.0,
            "solver_type": config.solver_type,
            "orders": self.orders(config.solver_order, begin, len(points) - 1),
        }

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        generator: torch.Generator | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """As diffusers' `step`."""
        noise = variance_noise
        if noise is None and self.config.algorithm_type.startswith("sde"):
            wide = torch.float64 if model_output.dtype == torch.float64 else torch.float32
            noise = normal(model_output, generator, wide)
        run = self.run_at(timestep)
        return self.finish(run, model_output, sample, lambda: noise, return_dict)


class EDMDPMSolverMultistepScheduler(
    EDMNetwork, SdeScheduler, diffusers.EDMDPMSolverMultistepScheduler
):
    """DPM-Solver++ for EDM networks."""

    def points(self) -> list[Point]:
        return ve_points(self.sigmas)

    def solver(self, begin: int, points: list[Point], **options: Any) -> tuple[str, dict[str, Any]]:
        return "dpmpp", {
            "order": self.config.solver_order,
            "tau": 1.0 if self.config.algorithm_type.startswith("sde") else 0.0,
            "solver_type": self.config.solver_type,
            "orders": self.orders(self.config.solver_order, begin, len(points) - 1),
        }


class DPMSolverSinglestepScheduler(SdeScheduler, diffusers.DPMSolverSinglestepScheduler):
    """Lu et al. 2022, singlestep methods whose stages are grid points."""

    def solver(self, begin: int, points: list[Point], **options: Any) -> tuple[str, dict[str, Any]]:
        config = self.config
        arguments = {
            "order": config.solver_order,
            "solver_type": config.solver_type,
            "blocks": self.order_list[begin:],
        }
        if config.algorithm_type == "dpmsolver":
            return "dpm_solver_block", arguments
        tau = 1.0 if config.algorithm_type.startswith("sde") else 0.0
        return "dpmpp_block", {**arguments, "tau": tau}


class UniPCMultistepScheduler(OdeScheduler, diffusers.UniPCMultistepScheduler):
    """Zhao et al. 2023. A last step to sigma 0 is of first order in any case: diffusers' higher
    orders and its noise form (predict_x0=False) are not finite there."""

    result_like = "sample"

    def check_config(self) -> None:
        super().check_config()
        if self.config.solver_p is not None:
            self.refuse("solver_p", self.config.solver_p)
        if not self.config.predict_x0 and self.config.prediction_type == "flow_prediction":
            self.refuse("predict_x0", False, "with prediction_type='flow_prediction'")

    def limits(self) -> dict[str, Any]:
        return super().limits() if self.config.predict_x0 else {}  # as diffusers

    def solver(self, begin: int, points: list[Point], **options: Any) -> tuple[str, dict[str, Any]]:
        config, count = self.config, len(points) - 1
        left = [
            count - i if config.lower_order_final else config.solver_order for i in range(count)
        ]
        orders = [min(config.solver_order, left[i], i + 1) for i in range(count)]
        if points[-1].sigma == 0:
            orders[-1] = 1
        return "unipc" if config.predict_x0 else "unipc_noise", {
            "order": config.solver_order,
            "solver_type": config.solver_type,
            "orders": orders,
            "disable_corrector": tuple(i - begin for i in config.disable_corrector),
        }


class DEISMultistepScheduler(OdeScheduler, diffusers.DEISMultistepScheduler):
    """Zhang and Chen 2023, in log rho."""

    def solver(self, begin: int, points: list[Point], **options: Any) -> tuple[str, dict[str, Any]]:
        order = self.config.solver_order
        return "deis", {"order": order, "orders": self.orders(order, begin, len(points) - 1)}


class SASolverScheduler(MultistepScheduler, diffusers.SASolverScheduler):
    """Xue et al. 2023, on predicted samples."""

    def check_config(self) -> None:
        super().check_config()
        if self.config.algorithm_type != "data_prediction":
            self.refuse("algorithm_type", self.config.algorithm_type)
        for name in ("predictor_order", "corrector_order"):
            if self.config[name] > 3:
                self.refuse(name, self.config[name])

    def solver(self, begin: int, points: list[Point], **options: Any) -> tuple[str, dict[str, Any]]:
        config, count = self.config, len(points) - 1
        p, c = config.predictor_order, config.corrector_order
        left = [count - i if config.lower_order_final else 9 for i in range(count)]
        return "sa_solver", {
            "order": p,
            "corrector_order": c,
            "orders": [min(p, left[i], i + 1) for i in range(count)],
            "corrector_orders": [
                min(c, left[i] + 1, min(i, max(p, c - 1)) + 2) for i in range(count)
            ],
            "taus": [float(self.tau_func(t)) for t in self.timesteps[begin:]],
        }

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> Any:
        """As diffusers' `step`."""
        noise = normal(model_output, generator)  # drawn even where it is not used
        run = self.run_at(timestep)
        return self.finish(run, model_output, sample, lambda: noise, return_dict)


class FlowScheduler(FusedScheduler):
    """x = (1 - sigma) x0 + sigma noise; the model predicts noise - x0."""

    result_like = "output"

    def points(self) -> list[Point]:
        return flow_points(self.sigmas)

    def noise_schedule(self) -> NoiseSchedule:
        return NoiseSchedule.flow()

    def prediction(self) -> str:
        return "flow_prediction"


class FlowMatchEulerDiscreteScheduler(FlowScheduler, diffusers.FlowMatchEulerDiscreteScheduler):
    """Rectified flow, Euler; Stable Diffusion 3, FLUX."""

    def solver(self, begin: int, points: list[Point], **options: Any) -> tuple[str, dict[str, Any]]:
        return "consistency" if self.config.stochastic_sampling else "euler", {}

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
        per_token_timesteps: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """As diffusers' `step`, which takes the s_ arguments and ignores them."""
        self.reject_index(timestep)
        if per_token_timesteps is not None:
            self.refuse("per_token_timesteps", tuple(per_token_timesteps.shape))
        noise = None
        if self.config.stochastic_sampling:
            wide = torch.float64 if sample.dtype == torch.float64 else torch.float32
            noise = normal(sample, generator, wide)
        result, _ = self.advance(self.run_at(timestep), model_output, sample, lambda: noise)
        if not return_dict:
            return (result,)
        return flow_euler.FlowMatchEulerDiscreteSchedulerOutput(prev_sample=result)  # type: ignore[arg-type]


class FlowMatchHeunDiscreteScheduler(
    PairScheduler, FlowScheduler, diffusers.FlowMatchHeunDiscreteScheduler
):
    """Rectified flow, Heun."""

    def points(self) -> list[Point]:
        return flow_points(self.step_sigmas())

    def solver(self, begin: int, points: list[Point], **options: Any) -> tuple[str, dict[str, Any]]:
        return "heun", {}

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
        result, _ = self.advance(self.run_at(timestep), model_output, sample, None)
        if not return_dict:
            return (result,)
        return flow_heun.FlowMatchHeunDiscreteSchedulerOutput(prev_sample=result)  # type: ignore[arg-type]
