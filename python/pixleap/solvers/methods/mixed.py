"""A solver of its own at every step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..method import Method, Step, Value, find_method, method

Entry = tuple[str, dict[str, Any]]


def _of_kind(value: Any, kind: str, flow: bool) -> Value:
    """What a method wants of (sample, noise)."""
    if kind == "both":
        return value
    sample, noise = value
    if kind == "sample":
        return sample
    if kind == "velocity" or (kind == "derivative" and flow):
        return noise - sample
    return noise


def _entries(count: int, schedule: Sequence[str | Entry]) -> list[tuple[Method, dict[str, Any]]]:
    if len(schedule) != count:
        raise ValueError(
            f"per_step: option 'solvers' expected one entry for each of {count} steps, "
            f"got {len(schedule)}"
        )
    pairs = [(e, {}) if isinstance(e, str) else e for e in schedule]
    return [find_method(name, dict(options)) for name, options in pairs]


@method(
    "per_step",
    prediction="both",
    order=1,
    history=4,
    source="Liu et al. 2023, arXiv 2312.07243 (USF: a solver schedule)",
)
def per_step(
    s: Step, x: Value, *, solvers: Sequence[str | Entry] = (), noise_of_clipped: bool = True
) -> Any:
    """`solvers`: for each step a name, or (name, options): ("dpmpp", {"order": 2}). Multistep ones
    use the predictions of earlier steps, whatever solver made them, so their order holds across a
    change of solver; which noise levels the steps have is the plan's grid. A step's method keeps
    the state of the step before (UniPC's corrector) where both have the same."""
    entries = _entries(len(s.points) - 1, solvers)
    found, options = entries[s.index]
    flow = s.schedule.kind == "flow"
    orders = []
    for i, (inner, its) in enumerate(entries):
        order = min(int(its.get("order", inner.order)), i + 1)
        velocity = inner.prediction == "velocity" or (flow and inner.prediction == "derivative")
        if s.points[0].alpha == 0 and not velocity:
            order = min(order, max(1, i))
        last = i == len(entries) - 1 and s.next.sigma == 0 and inner.multistep
        orders.append(1 if last else order)
    same = s.index > 0 and entries[s.index - 1][0] is found
    inside = s.replaced(
        options=options,
        past=[(_of_kind(v, found.prediction, flow), p) for v, p in s.past],
        state=s.state if same else {},
        order=orders[s.index],
        orders=orders,
        _velocity=flow and found.prediction in ("derivative", "velocity"),
    )
    generator = found.function(inside, x, **options)
    form, point = next(generator)
    while True:
        value = yield form, point
        try:
            form, point = generator.send(_of_kind(value, found.prediction, flow))
        except StopIteration as stop:
            return stop.value
