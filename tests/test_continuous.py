"""Continuous batching: whoever is in the batch, a request's bits are those of it alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from next_scale_models import random_var

from pixleap.decode import ContinuousBatcher, NextScaleDecoder
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
    batcher = ContinuousBatcher(decoder, room)
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
