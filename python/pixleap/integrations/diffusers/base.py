"""What every drop-in shares: a plan from the scheduler's own levels, run one fused pass a call."""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor

from ...solvers import LinearForm, NoiseSchedule, Point, SolverPlan, solver_plan
from ...solvers.method import conversion
from .run import PlanRun

Tensor = torch.Tensor


class FusedScheduler:
    """Mixed into a diffusers scheduler: `step` runs on `px.ops.lincomb`.

    compat: "diffusers" gives diffusers' numbers wherever they are finite, "consistent" the
    mathematically consistent method where the two differ. May be set on an instance.
    """

    compat = "diffusers"
    evaluations = 1  # model calls per grid step
    result_like = "both"  # whose dtype the result has: "output", "sample" or "both" (promoted)
    second_wide = False  # whether the second result is at least float32

    config: Any
    timesteps: Tensor
    sigmas: Tensor
    num_inference_steps: int | None
    _run: PlanRun | None = None
    _run_key: Any = None
    _runs: dict[Any, PlanRun]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # A saved pipeline names the class of its scheduler: diffusers' own loads everywhere.
        cls.__module__ = "diffusers"

    @classmethod
    def from_config(cls, *args: Any, **kwargs: Any) -> Any:
        """As diffusers' `from_config`.

        Raises:
            ValueError: an option that is not covered, by its name.
        """
        made = super().from_config(*args, **kwargs)  # type: ignore[misc]
        (made[0] if isinstance(made, tuple) else made).check_config()
        return made

    def check_config(self) -> None:
        """Raises ValueError for options that are not covered."""
        variance = self.config.get("variance_type")
        if variance in ("learned", "learned_range"):
            self.refuse("variance_type", variance)
        kind = self.config.get("prediction_type")
        flow = bool(self.config.get("use_flow_sigmas"))
        if (flow and kind == "v_prediction") or (kind == "flow_prediction" and not flow):
            self.refuse("prediction_type", kind, f"with use_flow_sigmas={flow}")

    def refuse(self, option: str, value: Any, when: str = "") -> None:
        """The error for what is not covered."""
        raise ValueError(
            f"px.integrations.diffusers: {type(self).__name__} does not cover {option}={value!r}"
            f"{' ' + when if when else ''}; use the scheduler of diffusers for it"
        )

    def reject_index(self, timestep: Any) -> None:
        """diffusers' error for an index in the place of a timestep."""
        if isinstance(timestep, (int, torch.IntTensor, torch.LongTensor)):
            raise ValueError(
                f"{type(self).__name__}.step: argument 'timestep' expected an entry of "
                f"scheduler.timesteps, got an integer ({timestep})"
            )

    # What the subclasses say.

    def points(self) -> list[Point]:
        """The run's levels in the scale in which the scheduler keeps its sample."""
        raise NotImplementedError

    def solver(self, begin: int, points: list[Point], **options: Any) -> tuple[str, dict[str, Any]]:
        """Name and options for `solver_plan` of a run that begins at grid point `begin`."""
        raise NotImplementedError

    def noise_schedule(self) -> NoiseSchedule:
        """Says how predictions convert; its own levels do not matter."""
        return NoiseSchedule.ve()

    def prediction(self) -> str:
        """The solver's name of `prediction_type`."""
        return str(self.config.prediction_type)

    def limits(self) -> dict[str, Any]:
        """`clip_sample` or `threshold` of the plan."""
        if self.config.get("thresholding"):
            return {
                "threshold": {
                    "ratio": self.config.dynamic_thresholding_ratio,
                    "max_value": self.config.sample_max_value,
                }
            }
        if self.config.get("clip_sample"):
            return {"clip_sample": self.config.clip_sample_range}
        return {}

    def second_result(self, plan: SolverPlan, k: int) -> LinearForm | None:
        """What stage k returns beside the sample; here nothing."""
        return None

    # The run.

    def make_run(self, begin: int, points: list[Point], **options: Any) -> PlanRun:
        """The plan of a run from grid point `begin`, ready to step."""
        self.check_config()
        name, arguments = self.solver(begin, points, **options)
        plan = solver_plan(
            name,
            self.noise_schedule(),
            points,  # type: ignore[arg-type]
            **{
                "prediction_type": self.prediction(),
                "compat": self.compat,
                **self.limits(),
                **arguments,
            },
        )
        originals = [self.second_result(plan, k) for k in range(len(plan.stages))]
        return PlanRun(plan, originals, begin * self.evaluations)

    def run_at(self, timestep: Any, **options: Any) -> PlanRun:
        """The run with its stage for this step."""
        if self.num_inference_steps is None:
            raise ValueError(f"{type(self).__name__}.step: call set_timesteps first")
        if self.step_index is None:  # type: ignore[attr-defined]
            self._init_step_index(timestep)  # type: ignore[attr-defined]
        k: int = self._step_index
        key = (self.timesteps, options, self.compat)
        run, known = self._run, self._run_key
        same = run is not None and known[0] is key[0] and known[1:] == key[1:]
        if not same or (run.has_history and k != run.begin + run.index):  # type: ignore[union-attr]
            run = self._start(k, options)
            self._run, self._run_key = run, key
        assert run is not None
        run.index = k - run.begin
        return run

    def _start(self, k: int, options: dict[str, Any]) -> PlanRun:
        """A plan of an earlier run with the same levels, or a new one."""
        points = self.points()
        if not hasattr(self, "_runs"):
            self._runs = {}
        begin = (k + self.evaluations - 1) // self.evaluations
        run = self._plan_from(0, points, options)
        if run.has_history and begin:  # without memory one plan serves every begin
            run = self._plan_from(begin, points, options)
        return run.reset()

    def _plan_from(self, begin: int, points: list[Point], options: dict[str, Any]) -> PlanRun:
        key = (begin, tuple(points), self.compat, repr(options))
        if key not in self._runs:
            if len(self._runs) >= 8:
                self._runs.clear()
            self._runs[key] = self.make_run(begin, points[begin:], **options)
        return self._runs[key]

    def advance(
        self,
        run: PlanRun,
        model_output: Tensor,
        sample: Tensor,
        noise: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """One stage of the run: the next sample and the second result."""
        if torch.is_grad_enabled() and (sample.requires_grad or model_output.requires_grad):
            raise ValueError(
                f"px.integrations.diffusers: {type(self).__name__}.step has no gradients; "
                "call it under torch.no_grad() or use the scheduler of diffusers"
            )
        x, y = sample.dtype, model_output.dtype
        kept = x if x == y else torch.promote_types(x, y)
        like = self.result_like
        dtype = y if like == "output" else x if like == "sample" else kept
        second = torch.promote_types(kept, torch.float32) if self.second_wide else kept
        result = run.step(
            model_output.contiguous(), sample.contiguous(), noise, dtype, kept, second
        )
        if run.begin >= 0:
            self._step_index: int = run.begin + run.index
        return result


class PairScheduler(FusedScheduler):
    """Two model calls a step; timesteps and sigmas are listed twice."""

    evaluations = 2

    def step_sigmas(self) -> Tensor:
        """One per step, and the last."""
        count = (len(self.timesteps) + 1) // 2
        return torch.cat([self.sigmas[::2][:count], self.sigmas[-1:]])

    @property
    def state_in_first_order(self) -> bool:
        """Whether the next call is the first of its step."""
        index = self.step_index  # type: ignore[attr-defined]
        return index is None or index % 2 == 0


class EDMNetwork(FusedScheduler):
    """The model answers with the raw output of an EDM network."""

    def noise_schedule(self) -> NoiseSchedule:
        return NoiseSchedule("ve", sigma_data=self.config.sigma_data)

    def prediction(self) -> str:
        return {"epsilon": "edm", "v_prediction": "edm_v"}[self.config.prediction_type]


def vp_points(sigmas: Tensor, times: Any = None) -> list[Point]:
    """sigma / alpha to points with alpha^2 + sigma^2 = 1."""
    points = []
    for i, ratio in enumerate(sigmas.tolist()):
        alpha = 1 / math.hypot(1.0, ratio)
        points.append(Point(alpha, ratio * alpha, times[i] if times is not None else 0.0))
    return points


def ve_points(sigmas: Tensor) -> list[Point]:
    """x = x0 + sigma noise."""
    return [Point(1.0, sigma, 0.0) for sigma in sigmas.tolist()]


def flow_points(sigmas: Tensor) -> list[Point]:
    """x = (1 - sigma) x0 + sigma noise."""
    return [Point(1 - sigma, sigma, 0.0) for sigma in sigmas.tolist()]


def trained_point(alphas_cumprod: Tensor, time: int, final: Tensor | float = 1.0) -> Point:
    """The point of a trained time; `final` where it lies below 0."""
    bar = float(alphas_cumprod[time] if time >= 0 else final)
    return Point(math.sqrt(bar), math.sqrt(1 - bar), float(time))


def original_sample(schedule: NoiseSchedule, plan: SolverPlan, k: int) -> LinearForm:
    """The predicted sample of a stage."""
    stage = plan.stages[k]
    if stage.passes[0].outputs == [f"limited{k}"]:
        return LinearForm.of(f"limited{k}")
    a, b = conversion(schedule, plan.prediction_type, "sample", stage.point)
    form = LinearForm({stage.sample: a, stage.output: b})
    return form.without_zeros()


def normal(
    like: Tensor, generator: Any, dtype: torch.dtype | None = None, size: Any = None
) -> Tensor:
    """Noise as diffusers draws it."""
    return randn_tensor(
        size or like.shape, generator=generator, device=like.device, dtype=dtype or like.dtype
    )
