"""Continuous batching: whoever is in the batch, a request's bits are those of it alone."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from next_scale_models import random_var

from pixleap import ops
from pixleap.decode import ContinuousBatcher, NextScaleDecoder
from pixleap.decode.continuous import _StepCost
from pixleap.models import load_var

REQUESTS: list[tuple[int, dict[str, Any]]] = [
    (0, {"seed": 1}),
    (4, {"seed": 2, "cfg": 3.0, "top_k": 9}),
    (-1, {"seed": 3, "cfg": 0.0}),
    (2, {"seed": 4, "top_p": 0.8, "first_sample": 3}),
    (1, {"seed": 5, "temperature": 0.0}),
    (3, {"seed": 6, "more_smooth": True}),
    (2, {"seed": 7}),
]


def check(
    decoder: NextScaleDecoder, done: dict[int, Any], label: int, number: int, **o: Any
) -> None:
    tokens, f_hat = decoder.tokens(torch.tensor([label]), **o)
    assert all(torch.equal(a, b) for a, b in zip(done[number].tokens, tokens, strict=True))
    assert torch.equal(done[number].f_hat, f_hat)


@pytest.mark.parametrize("make", [{}, {"shared_aln": True, "l2_norm": False}])
@pytest.mark.parametrize("room", [1, 3, 16])
def test_requests_equal_decoding_alone(room: int, make: dict[str, Any]) -> None:
    decoder = NextScaleDecoder(random_var(**make))
    overhead = math.inf if room < 16 else None
    batcher = ContinuousBatcher(decoder, room, step_overhead=overhead)
    done, waiting, steps = {}, list(enumerate(REQUESTS)), 0
    seen: list[int] = []
    while waiting or len(batcher):
        if waiting and steps % 2 == 0:  # they join at different scales
            number, (label, options) = waiting.pop(0)
            progress = (lambda k, _: seen.append(k)) if number == 0 else None
            assert batcher.add(label, progress=progress, **options) == number
        done.update({r.request: r for r in batcher.step()})
        steps += 1
    assert sorted(done) == list(range(len(REQUESTS))) and seen == [0, 1, 2, 3]
    for number, (label, options) in enumerate(REQUESTS):
        check(decoder, done, label, number, **options)


def test_digits_in_one_batch_and_as_they_come() -> None:
    decoder = NextScaleDecoder(load_var())
    batcher = ContinuousBatcher(decoder, 4)
    for label in range(6):
        batcher.add(label, seed=label, top_k=64)
    done = {r.request: r for r in batcher.run()}
    assert len(done) == 6 and len(batcher) == 0 and batcher.step() == []
    for label in range(6):
        check(decoder, done, label, label, seed=label, top_k=64)


def test_refuses_bad_input() -> None:
    with pytest.raises(ValueError, match="'max_requests' expected a number >= 1, got 0"):
        ContinuousBatcher(random_var(), 0)
    for bad in (-1, math.nan):
        with pytest.raises(ValueError, match=f"'step_overhead' expected a number >= 0, got {bad}"):
            ContinuousBatcher(random_var(), step_overhead=bad)
    batcher = ContinuousBatcher(random_var())
    with pytest.raises(ValueError, match="argument 'labels' expected numbers below 6"):
        batcher.add(6)
    with pytest.raises(ValueError, match="argument 'top_k' expected"):
        batcher.add(1, top_k=-1)
    assert len(batcher) == 0


@pytest.mark.parametrize(("room", "steps"), [(1, 24), (4, 8), (6, 4), (9, 4)])
def test_as_many_requests_at_a_time_as_allowed(room: int, steps: int) -> None:
    batcher = ContinuousBatcher(random_var(), room)
    for label in range(6):
        batcher.add(label - 1)
    count = 0
    while len(batcher):
        batcher.step()
        count += 1
    assert count == steps


def test_one_call_per_layer_and_one_draw_per_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs that join at every step: all are rows of one append and one attention per layer."""
    decoder = NextScaleDecoder(random_var())
    batcher = ContinuousBatcher(decoder, 8, step_overhead=math.inf)
    done, calls = {}, Counter[str]()
    for name in ("attention", "attention_varlen", "kv_append_varlen", "sample_tokens"):
        native = getattr(ops, name)

        def counted(*args: Any, name: str = name, op: Any = native, **kw: Any) -> Any:
            calls[name] += 1
            return op(*args, **kw)

        monkeypatch.setattr(ops, name, counted)
    options = {"cfg": 2.0, "top_k": 20, "first_sample": 2}
    for step in range(7):
        if step < 4:
            for i in (2 * step, 2 * step + 1):
                batcher.add(i % 5, seed=100 + i, **options)
        calls.clear()
        done.update({r.request: r for r in batcher.step()})
        assert calls["attention_varlen"] == calls["kv_append_varlen"] == 2  # layers
        assert calls["attention"] == 0 and calls["sample_tokens"] == min(4, step + 1, 7 - step)
    monkeypatch.undo()
    assert len(done) == 8
    for i in range(8):
        check(decoder, done, i % 5, i, seed=100 + i, **options)


def steps_of(batcher: ContinuousBatcher, *joining: int) -> list[list[int]]:
    """Adds so many requests before each step; which are done after it."""
    result = []
    for count in joining:
        for _ in range(count):
            batcher.add(0)
        result.append([r.request for r in batcher.step()])
    return result


def test_when_requests_join() -> None:
    """Four scales. At once where a step costs much whatever is in it, else when nothing is left."""
    decoder = NextScaleDecoder(random_var())
    at_once = ContinuousBatcher(decoder, 4, step_overhead=math.inf)
    assert steps_of(at_once, 1, 1, 0, 1, 0, 0, 0) == [[], [], [], [0], [1], [], [2]]
    by_batch = ContinuousBatcher(decoder, 4, step_overhead=0)
    assert steps_of(by_batch, 1, 1, 0, 1, 0, 0, 0, 0) == [[], [], [], [0], [], [], [], [1, 2]]
    # Another image delays one by 60 tokens; 4 steps of 30 are twice that.
    for overhead, done in ((30, [[], [], [], [0], [1]]), (29.9, [[], [], [], [0], []])):
        batcher = ContinuousBatcher(decoder, 4, step_overhead=overhead)
        assert steps_of(batcher, 1, 1, 0, 0, 0) == done


def test_more_than_fit_join_when_all_have_left() -> None:
    batcher = ContinuousBatcher(random_var(), 4, step_overhead=math.inf)
    assert steps_of(batcher, 2, 3, 0, 0) == [[], [], [], [0, 1]]
    assert steps_of(batcher, 0, 0, 0, 0) == [[], [], [], [2, 3, 4]]


def test_overhead_of_a_step_is_measured() -> None:
    cost = _StepCost()
    assert cost.overhead == 0
    for tokens in (2, 8, 18, 32, 98, 2, 8, 18):
        cost.add(tokens, 0.003 + 0.0001 * tokens)
    assert cost.overhead == pytest.approx(30)
    for _ in range(2000):  # newer steps count
        for tokens in (2, 8, 18):
            cost.add(tokens, 0.001 * tokens)
    assert cost.overhead == pytest.approx(0, abs=1e-6)
    falling = _StepCost()
    for tokens in (2, 8, 18, 32):
        falling.add(tokens, 0.003 - 0.00001 * tokens)
    assert falling.overhead == math.inf
    batcher = ContinuousBatcher(random_var(), 2)
    steps_of(batcher, 1, 0, 0, 0, 1, 0, 0, 0)
    assert batcher.step_overhead >= 0 and batcher._cost._sums[0] > 5


def test_seeds_are_checked_when_a_request_is_added() -> None:
    batcher = ContinuousBatcher(random_var())
    with pytest.raises(ValueError, match="argument 'seed' expected 64 bits with a sign, got 9223"):
        batcher.add(1, seed=2**63)
    batcher.add(1, seed=-(2**63))
    batcher.add(1, seed=2**63 - 1)
    assert len(list(batcher.run())) == 2
