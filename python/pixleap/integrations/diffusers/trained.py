"""Schedulers that step between trained times: DDIM, DDPM, PNDM, LCM, TCD."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers.schedulers import scheduling_ddim as ddim
from diffusers.schedulers import scheduling_ddpm as ddpm
from diffusers.schedulers import scheduling_lcm as lcm
from diffusers.schedulers import scheduling_tcd as tcd
from diffusers.schedulers.scheduling_utils import SchedulerOutput

from ...solvers import LinearForm, NoiseSchedule, Point, SolverPlan
from ...solvers.method import is_noise
from .base import FusedScheduler, Tensor, normal, original_sample, trained_point
from .run import PlanRun


class TrainedScheduler(FusedScheduler):
    """Its levels are `alphas_cumprod`."""

    alphas_cumprod: Tensor
    final_alpha_cumprod: Tensor
    variance_type: str
    custom_timesteps: bool
    _noise_schedule: NoiseSchedule | None = None

    def point(self, time: int, final: Tensor | float = 1.0) -> Point:
        """The point of a trained time; `final`: alpha^2 of what lies below 0."""
        return trained_point(self.alphas_cumprod, time, final)

    def noise_schedule(self) -> NoiseSchedule:
        if self._noise_schedule is None:
            times = range(len(self.alphas_cumprod))
            ratios = tuple(self.point(t).ratio for t in times)
            self._noise_schedule = NoiseSchedule("vp", ratios, num_train_timesteps=len(ratios))
        return self._noise_schedule

    def second_result(self, plan: SolverPlan, k: int) -> LinearForm | None:
        return original_sample(self.noise_schedule(), plan, k)


class SingleScheduler(TrainedScheduler):
    """Has no run: every call names its time, and has a plan of one step."""

    _steps: dict[Any, PlanRun]
    _steps_of: Any = None

    def step_at(self, key: Any, method: str, options: dict[str, Any], final: Any) -> PlanRun:
        """The plan of key = (time, next time, ...)."""
        self._steps[key] = run = self.make_run(
            0,
            [self.point(key[0]), self.point(key[1], final)],
            method=method,
            arguments=options,
        )
        run.begin = -1
        return run

    def solver(self, begin: int, points: list[Point], **options: Any) -> tuple[str, dict[str, Any]]:
        return options["method"], options["arguments"]

    def step_cache(self) -> dict[Any, PlanRun]:
        """Plans of the steps that were taken since `set_timesteps`."""
        if self._steps_of is not self.timesteps:
            self._steps, self._steps_of = {}, self.timesteps
        return self._steps

    def next_time(self, time: int) -> int:
        """The next entry of `timesteps`, -1 after the last."""
        found = (self.timesteps == time).nonzero()
        if not len(found):
            return time - self.config.num_train_timesteps // self.num_inference_steps
        index = int(found[0, 0]) + 1
        return int(self.timesteps[index]) if index < len(self.timesteps) else -1


class DDIMScheduler(SingleScheduler, diffusers.DDIMScheduler):
    """Song et al. 2021. diffusers' steps have the length train times // steps, whatever the grid
    (its issue 9261); compat = "consistent" steps to the next timestep."""

    def step(
        self,
        model_output: Tensor,
        timestep: int,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: torch.Generator | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """As diffusers' `step`."""
        if self.num_inference_steps is None:
            raise ValueError("DDIMScheduler.step: call set_timesteps first")
        if eta > 0 and variance_noise is not None and generator is not None:
            raise ValueError(
                "DDIMScheduler.step: expected either 'generator' or 'variance_noise', got both"
            )
        time = int(timestep)
        asked = (time, float(eta), use_clipped_model_output, self.compat)
        run = self.step_cache().get(asked)
        if run is None:
            after = time - self.config.num_train_timesteps // self.num_inference_steps
            if self.compat != "diffusers":
                after = self.next_time(time)
            run = self.step_at(
                (time, after),
                "ddim",
                {"eta": eta, "noise_of_clipped": use_clipped_model_output},
                self.final_alpha_cumprod,
            )
            self._steps[asked] = run
        run.index = 0
        noise = variance_noise
        if eta > 0 and noise is None:
            noise = normal(model_output, generator)
        result, original = self.advance(run, model_output, sample, lambda: noise)
        if not return_dict:
            return result, original
        return ddim.DDIMSchedulerOutput(prev_sample=result, pred_original_sample=original)


class DDPMScheduler(SingleScheduler, diffusers.DDPMScheduler):
    """Ho et al. 2020."""

    def check_config(self) -> None:
        super().check_config()
        if self.config.variance_type == "fixed_large_log":
            self.refuse("variance_type", "fixed_large_log")

    def step(
        self,
        model_output: Tensor,
        timestep: int,
        sample: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> Any:
        """As diffusers' `step`."""
        time = int(timestep)
        asked = (time, self.variance_type, self.compat)
        run = self.step_cache().get(asked)
        if run is None:
            given = self.num_inference_steps or self.custom_timesteps
            after = self.next_time(time) if given else time - 1
            kind = "fixed_large" if self.variance_type == "fixed_large" else "fixed_small"
            run = self.step_at((time, after), "ddpm", {"variance": kind}, 1.0)
            self._steps[asked] = run
        run.index = 0
        noise = normal(model_output, generator) if time > 0 else None
        result, original = self.advance(run, model_output, sample, lambda: noise)
        if not return_dict:
            return result, original
        return ddpm.DDPMSchedulerOutput(prev_sample=result, pred_original_sample=original)


class _DistilledScheduler(TrainedScheduler):
    """LCM and TCD: the second result is the next sample before noise is added to it."""

    def second_result(self, plan: SolverPlan, k: int) -> LinearForm | None:
        stage = plan.stages[k]
        last = stage.passes[-1]
        form = last.forms[last.outputs.index(stage.result)]
        clean = LinearForm({n: c for n, c in form.terms.items() if not is_noise(n)})
        return clean / self.kept(plan, k) if len(clean.terms) < len(form.terms) else None

    def kept(self, plan: SolverPlan, k: int) -> float:
        """Factor of the noise-free sample in the next one."""
        raise NotImplementedError

    def _finish(
        self, timestep: Any, model_output: Tensor, sample: Tensor, generator: Any, **options: Any
    ) -> tuple[Tensor, Tensor]:
        run = self.run_at(timestep, **options)
        result, clean = self.advance(
            run, model_output, sample, lambda: normal(model_output, generator)
        )
        return result, result if clean is None else clean


class LCMScheduler(_DistilledScheduler, diffusers.LCMScheduler):
    """Luo et al. 2023."""

    def points(self) -> list[Point]:
        return [*(self.point(t) for t in self.timesteps.tolist()), Point(1.0, 0.0, -1.0)]

    def solver(self, begin: int, points: list[Point], **options: Any) -> tuple[str, dict[str, Any]]:
        return "lcm", {"timestep_scaling": self.config.timestep_scaling}

    def kept(self, plan: SolverPlan, k: int) -> float:
        return plan.points[k + 1].alpha

    def step(
        self,
        model_output: Tensor,
        timestep: int,
        sample: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> Any:
        """As diffusers' `step`."""
        result, clean = self._finish(timestep, model_output, sample, generator)
        if not return_dict:
            return result, clean
        return lcm.LCMSchedulerOutput(prev_sample=result, denoised=clean)


class TCDScheduler(_DistilledScheduler, diffusers.TCDScheduler):
    """Zheng et al. 2024."""

    def points(self) -> list[Point]:
        return [self.point(t) for t in [*self.timesteps.tolist(), 0]]

    def limits(self) -> dict[str, Any]:
        return {}  # diffusers ignores them

    def solver(self, begin: int, points: list[Point], **options: Any) -> tuple[str, dict[str, Any]]:
        self._eta = options["eta"]
        return "tcd", {"eta": options["eta"]}

    def kept(self, plan: SolverPlan, k: int) -> float:
        after = plan.points[k + 1]
        return after.alpha / self.point(int((1 - self._eta) * after.time)).alpha

    def step(
        self,
        model_output: Tensor,
        timestep: int,
        sample: Tensor,
        eta: float = 0.3,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> Any:
        """As diffusers' `step`."""
        if not 0 <= eta <= 1:
            raise ValueError(f"TCDScheduler.step: argument 'eta' expected 0 to 1, got {eta}")
        result, clean = self._finish(timestep, model_output, sample, generator, eta=eta)
        if not return_dict:
            return result, clean
        return tcd.TCDSchedulerOutput(prev_sample=result, pred_noised_sample=clean)


class PNDMScheduler(TrainedScheduler, diffusers.PNDMScheduler):
    """Liu et al. 2022; every step has diffusers' length, train times // steps."""

    _first: int
    _second: int

    def check_config(self) -> None:
        super().check_config()
        if self.config.prediction_type != "epsilon":
            # diffusers keeps v as history and converts their sum.
            self.refuse("prediction_type", self.config.prediction_type)

    def second_result(self, plan: SolverPlan, k: int) -> LinearForm | None:
        return None

    def solver(self, begin: int, points: list[Point], **options: Any) -> tuple[str, dict[str, Any]]:
        ratio = self.config.num_train_timesteps // self.num_inference_steps
        final = self.final_alpha_cumprod

        def move(start: int, length: int = ratio) -> tuple[Point, Point]:
            return self.point(start, final), self.point(start - length, final)

        count = len(points) - 1
        times = options["times"]
        if self.config.skip_prk_steps:
            moves = [move(times[0]), move(times[1] + ratio), *(move(t) for t in times[2:])]
            orders = [min(i + 1, 4) for i in range(count)]
            return "plms", {"moves": moves, "orders": orders}
        moves = [
            (self.point(times[k // 4 * 4]), self.point(t if k % 2 else t - ratio // 2, final))
            for k, t in enumerate(times[:12])
        ]
        return "pndm", {"moves": moves + [move(t) for t in times[12:]], "orders": [4] * count}

    def _begin(self, timestep: int, second: int | None = None) -> PlanRun:
        """The plan from `timestep` on. second: the next one, where it is known: the first PLMS
        step has its own twice in the list, so that the first does not say which run it is."""
        times = [int(t) for t in self.timesteps]
        begin = times.index(timestep) if timestep in times else 0
        if second is not None and times[begin + 1 : begin + 2] != [second]:
            begin += 1
        if begin and not self.config.skip_prk_steps:
            self.refuse("skip_prk_steps", False, "for a run that begins in the middle")
        times = times[begin:]
        if len(times) < 2:
            self.refuse("number of calls", len(times))
        first = [times[0], *times[2:]] if self.config.skip_prk_steps else times[:12:4] + times[12:]
        points = [self.point(t) for t in first]
        run = self.make_run(0, [*points, points[-1]], times=times)
        run.begin, self._second = -1, times[1]
        return run

    def step(
        self, model_output: Tensor, timestep: int, sample: Tensor, return_dict: bool = True
    ) -> Any:
        """As diffusers' `step`."""
        if self.num_inference_steps is None:
            raise ValueError("PNDMScheduler.step: call set_timesteps first")
        if self.counter == 0 or self._run is None:
            self._run, self._first = self._begin(int(timestep)), int(timestep)
        elif self.counter == 1 and int(timestep) != self._second:
            self._run = self._begin(self._first, int(timestep)).take_over(self._run)
        run = self._run
        if run.index != self.counter:
            raise ValueError(
                f"PNDMScheduler.step: call {run.index} of the run expected, got {self.counter}; "
                "call set_timesteps first"
            )
        result, _ = self.advance(run, model_output, sample, None)
        self.counter: int = run.index
        return SchedulerOutput(prev_sample=result) if return_dict else (result,)
