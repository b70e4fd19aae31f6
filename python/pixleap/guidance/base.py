"""What all rules share: the scale, the interval in which it acts, and which outputs are needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .._arrays import Array
from ..solvers.linear_form import LinearForm
from ..solvers.schedule import Point, choose
from .weighting import Number, batch_of, check_scale, columns, scale_of

if TYPE_CHECKING:
    from ..solvers import Solver

LEVELS = ("ratio", "sigma", "time")
Scale = Any  # number | sequence of numbers | callable | (B,) array


class Guidance:
    """A rule by which several model outputs become one; what `px.solvers.Solver` takes.

    Args:
        scale: a number; a list or tuple with one number per model evaluation; a callable
            (stage, point) -> number, asked when the Solver is made; or a (B,) array, NumPy or
            torch, with a scale per sample.
        interval: (low, high): guidance acts where low <= level <= high; elsewhere the first output
            stands alone and the others need not be computed (Kynkaanniemi et al. 2024,
            arXiv 2404.07724). None: everywhere.
        interval_in: what the level is: "ratio" (sigma / alpha, the sigma of Karras et al. and of
            the paper), "sigma" (a flow's sigma in [0, 1]) or "time" (what the model is told).

    Raises:
        TypeError, ValueError: scales that are no finite numbers, more than one dimension, an
        interval that is not low <= high.
    """

    names: Sequence[str] = ("cond", "uncond")

    def __init__(
        self,
        scale: Scale,
        *,
        interval: tuple[float, float] | None = None,
        interval_in: str = "ratio",
    ) -> None:
        where = self.where
        self.interval_in = choose(interval_in, LEVELS, where, "interval_in")
        self.interval: tuple[float, float] | None = None
        if interval is not None:
            low, high = (float(v) for v in interval)
            if not 0 <= low <= high:
                raise ValueError(
                    f"{where}: argument 'interval' expected 0 <= low <= high, got {interval}"
                )
            self.interval = (low, high)
        self.scale: Any
        if callable(scale):
            self.scale = scale
        elif isinstance(scale, (list, tuple)):
            self.scale = [scale_of(s, where) for s in scale]
        else:
            self.scale = scale_of(scale, where)

    @property
    def where(self) -> str:
        return f"guidance.{type(self).__name__}"

    def reset(self) -> None:
        """Forgets the run before; `Solver.start` calls it."""

    def active(self, point: Point) -> bool:
        """Whether the noise level lies in the interval."""
        if self.interval is None:
            return True
        return bool(self.interval[0] <= getattr(point, self.interval_in) <= self.interval[1])

    def scale_at(self, stage: int, point: Point) -> Number:
        """The scale of a model evaluation: a float, or (B,) float64."""
        if callable(self.scale):
            return scale_of(self.scale(stage, point), self.where)
        if isinstance(self.scale, list):
            if stage >= len(self.scale):
                raise ValueError(
                    f"{self.where}: argument 'scale' expected a number for each evaluation, "
                    f"got {len(self.scale)} for evaluation {stage}"
                )
            return self.scale[stage]
        return self.scale

    def weights(self, scale: Number) -> tuple[Number, ...]:
        """Of the outputs, in the order of `names`; here of CFG between two."""
        return scale, 1.0 - scale

    def form(self, stage: int, point: Point) -> LinearForm | None:
        """The outputs' combination by numbers known beforehand, or None; see `solvers.Guidance`."""
        if not self.active(point):
            return LinearForm.of(self.names[0])
        scale = self.scale_at(stage, point)
        if not isinstance(scale, float):
            return None
        return LinearForm(dict(zip(self.names, self.weights(scale), strict=True)))

    def needs(self, stage: int, point: Point) -> tuple[str, ...]:
        """Names of the outputs that this evaluation uses; for the others pass None."""
        form = self.form(stage, point)
        return tuple(n for n in self.names if form is None or form.terms.get(n))

    def combine(
        self, stage: int, point: Point, outputs: Sequence[Array], sample: Array
    ) -> tuple[list[Array], Array]:
        """The arrays that take part and their weights (B, arrays); here for a scale per sample."""
        scale = self.scale_at(stage, point)
        check_scale(scale, outputs[0], self.where)
        values = [w + 0 * scale for w in self.weights(scale)]
        return list(outputs), columns(values, batch_of(outputs[0]), outputs[0])


def sample(
    solver: Solver, models: Mapping[str, Callable[[Array, float], Array]], x: Array
) -> Array:
    """Runs a whole guided plan and calls only the models whose output is needed.

    Args:
        solver: with a guidance of this package.
        models: name of the output ("cond", "uncond", ...) -> model(x, time) -> array like x.
        x: (B, ...) the start, as `solver.start` takes.

    Returns:
        The result, a buffer of the solver.

    Raises:
        ValueError: a solver without guidance, a name without a model.
    """
    guidance = solver.guidance
    if guidance is None:
        raise ValueError("guidance.sample: argument 'solver' expected one with guidance, got none")
    missing = [name for name in guidance.names if name not in models]
    if missing:
        raise ValueError(
            f"guidance.sample: argument 'models' expected {', '.join(guidance.names)}, "
            f"got none for {', '.join(missing)}"
        )
    x = solver.start(x)
    for k, stage in enumerate(solver.plan.stages):
        wanted = guidance.needs(k, stage.point)
        time = stage.point.time
        x = solver.step(*(models[n](x, time) if n in wanted else None for n in guidance.names))
    return x
