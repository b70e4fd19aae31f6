"""Which buffer holds which named value of a plan: values share buffers once they are dead."""

from __future__ import annotations

from .plan import Pass, SolverPlan


def passes_of(plan: SolverPlan) -> list[tuple[int, Pass]]:
    """Every pass with the index of its stage, -1 ahead of the first evaluation."""
    stages = [(k, p) for k, stage in enumerate(plan.stages) for p in stage.passes]
    return [(-1, p) for p in plan.before] + stages


def allocate(plan: SolverPlan) -> tuple[dict[str, int], int]:
    """Linear scan over the passes: {value: buffer}, and how many buffers there are.

    An output may take the buffer of an input that dies in the same pass: `lincomb` reads an element
    of every input before it writes that element. The start and the model's outputs are the
    caller's and get none.
    """
    passes = passes_of(plan)
    last: dict[str, int] = {}
    for position, (k, p) in enumerate(passes):
        for name in (*p.inputs, *p.outputs):
            last[name] = position
        if k >= 0:  # the model's input lives until its answer is there
            sample = plan.stages[k].sample
            last[sample] = max(last.get(sample, 0), position)
    last[plan.stages[-1].result] = len(passes)
    buffer: dict[str, int] = {}
    live: set[str] = set()
    free: list[int] = []
    count = 0
    for position, (_, p) in enumerate(passes):
        dead = {name for name in live if last[name] <= position}
        free += sorted(buffer[name] for name in dead)
        live -= dead
        for name in p.outputs:
            if not free:
                free.append(count)
                count += 1
            buffer[name] = free.pop()
            live.add(name)
    return buffer, count
