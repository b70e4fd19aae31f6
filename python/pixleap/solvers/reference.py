"""The same descriptions run directly on arrays: what every plan is held to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .method import Step, conversion
from .plan import prepare
from .schedule import Point

Model = Callable[[Any, float], Any]
Limit = Callable[[Any], Any]


def sample(
    name: str,
    schedule: Any,
    sigmas: Any = None,
    *,
    model: Model,
    x: Any,
    noise: Callable[[int, int], Any] | None = None,
    limit: Limit | None = None,
    exact: Callable[[Point], Any] | None = None,
    **arguments: Any,
) -> Any:
    """Samples by plain array arithmetic, without a plan.

    Args:
        name, schedule, sigmas, arguments: as `solver_plan`.
        model: (x, time) -> model output. Arrays of NumPy, torch or JAX.
        x: start.
        noise: (step, number) -> standard normal array.
        limit: applied to the predicted sample, in the place of clip_sample and threshold.
        exact: point -> true sample; taken for the start-up steps of a multistep method, so that an
            order of convergence shows undisturbed by lower-order first steps.

    Returns:
        The last sample.
    """
    run = prepare(name, schedule, sigmas, **arguments)
    if limit is None and run.clip_sample is not None:
        bound = run.clip_sample

        def limit(value: Any) -> Any:
            return np.clip(value, -bound, bound)

    past: list[Any] = []
    state: dict[str, Any] = {}

    def predict(x: Any, point: Any) -> Any:
        output = model(x, point.time)
        kinds = ("sample", "noise") if run.prediction == "both" else (run.prediction,)
        values = []
        for kind in kinds:
            raw = len(kinds) == 2 and kind == "noise" and not run.options.get("noise_of_clipped")
            if limit is None or raw:
                a, b = conversion(schedule, run.prediction_type, kind, point)
                values.append(x * a + output * b)
                continue
            a, b = conversion(schedule, run.prediction_type, "sample", point)
            limited = limit(x * a + output * b)
            a, b = conversion(schedule, "sample", kind, point)
            values.append(x * a + limited * b)
        return tuple(values) if len(kinds) == 2 else values[0]

    for index in range(len(run.points) - 1):

        def draw(k: int, index: int = index) -> Any:
            if noise is None:
                raise ValueError(f"{name}: argument 'noise' is needed, the method is stochastic")
            return noise(index, k)

        generator = run.method(Step(run, index, past, state, draw), x)
        x, point = next(generator)
        first = None
        while True:
            prediction = predict(x, point)
            first = prediction if first is None else first
            try:
                x, point = generator.send(prediction)
            except StopIteration as stop:
                x, state = stop.value if isinstance(stop.value, tuple) else (stop.value, {})
                break
        if exact is not None and run.orders[index] < max(run.orders):
            x = exact(run.points[index + 1])
            if "x" in state:
                state["x"] = exact(run.points[index])
        past = [(first, run.points[index]), *past][: run.history]
    return x
