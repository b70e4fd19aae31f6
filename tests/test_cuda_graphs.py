"""Decoding steps captured as CUDA graphs, emulated on the CPU (tests/graph_emulation.py) and, where
there is one, on a GPU."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from graph_emulation import HostReads, assert_replay_equals_eager, emulated_graphs, names, same_bits
from torch import Tensor

import pixleap as px
from pixleap.decode.graphs import Graphs, HostRead

CPU = torch.device("cpu")


def mixed(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Views, calls in place, new tensors, native ops."""
    wide = torch.cat((x, y), 1)
    wide[:, :2] *= 3.0
    normal = px.ops.layer_norm(wide[None], eps=1e-5)[0]
    total = torch.zeros_like(x).add_(normal[:, : x.shape[1]]).sum(1, keepdim=True)
    return torch.where(total > 0, normal, wide), total.view(-1)


def test_a_replay_equals_a_call_with_the_inputs_of_the_replay() -> None:
    torch.manual_seed(0)
    first, second = (tuple(torch.randn(3, 4) for _ in range(2)) for _ in range(2))
    assert_replay_equals_eager(mixed, first, second)


@pytest.mark.parametrize(
    "step",
    [
        lambda x: x * float(x[0, 0]),
        lambda x: x * x.sum().item(),
        lambda x: x if bool((x > 0).any()) else -x,
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: torch.from_numpy(x.numpy() + 1),
        lambda x: x.cpu() + 1,
        lambda x: x + torch.tensor([1.0, 2.0, 3.0, 4.0]),
        lambda x: x + torch.randn(3, 4),
        lambda x: x * max(x[0].tolist()),
        lambda x: x if torch.equal(x, x + 0) else -x,
    ],
    ids=["float", "item", "bool", "mask", "nonzero", "numpy", "cpu", "from_host", "randn", "tolist",
         "equal"],
)  # fmt: skip
def test_what_a_graph_cannot_do_is_refused(step: Callable[[Tensor], Tensor]) -> None:
    x = torch.ones(3, 4)
    with emulated_graphs():
        steps = Graphs(CPU)
        steps("s", step, x)
        with pytest.raises(RuntimeError, match="graphs: step 's' cannot be captured as a CUDA gr"):
            steps("s", step, x)


def test_steps_may_change_buffers_in_place() -> None:
    """The warm-up counts, a capture does not."""
    with emulated_graphs() as backend:
        steps, total = Graphs(CPU), torch.zeros(2)
        for i in range(1, 6):
            steps("add", lambda x: total.add_(x), torch.full((2,), float(i)))
            assert total.tolist() == [i * (i + 1) / 2] * 2
        assert (backend.warm_ups, backend.replays, len(steps)) == (1, 4, 1)


@pytest.mark.parametrize("gone", [0, 1])
def test_memory_that_is_gone_is_an_error(gone: int) -> None:
    with emulated_graphs():
        steps, held, x = Graphs(CPU), [torch.ones(2, 3), torch.ones(3)], torch.ones(1, 2, 3)

        def step(x: Tensor) -> Tensor:
            normal = px.ops.layer_norm(x, weight=held[0][1])
            return normal + held[1]

        for _ in range(3):
            steps("s", step, x)
        held[gone] = torch.ones(3)
        with pytest.raises(RuntimeError, match=f"uses {(24, 12)[gone]} bytes of memory that were"):
            steps("s", step, x)


def test_outputs_last_until_the_next_step() -> None:
    with emulated_graphs():
        steps, x = Graphs(CPU), torch.arange(3.0)
        for _ in range(2):
            one = steps("one", lambda x: x + 1, x)
            assert one.tolist() == [1, 2, 3]
            two = steps("two", lambda x: x * 2, x)
        assert two.tolist() == [0, 2, 4] and one.tolist() != [1, 2, 3]
        # Other shapes are another graph.
        assert steps("two", lambda x: x * 2, torch.ones(2)).tolist() == [2, 2]


def test_pythons_numbers_are_those_of_the_capture() -> None:
    with emulated_graphs():
        steps, x = Graphs(CPU), torch.ones(1)
        got = [float(steps("n", lambda x, n=n: x + n, x)) for n in range(4)]
        assert got == [1, 2, 2, 2]


def test_without_a_gpu_steps_are_plain_calls() -> None:
    steps = Graphs(CPU)
    assert not steps.active
    for n in range(3):
        assert steps("n", lambda x, n=n: float(x) + n, torch.ones(1)) == 1 + n
    assert len(steps) == 0


def test_host_reads_are_counted() -> None:
    x = torch.ones(2, 2)
    with HostReads() as host:
        _ = x + 1
        assert host.reads == []
        if bool(x.sum() > 3) and int(x[0, 0]) == 1:
            _ = x.tolist(), x.numpy(), x.sum().item(), x[x > 0]
    assert names(host.reads) == {
        "__bool__": 1, "__int__": 1, "tolist": 1, "numpy": 1, "_local_scalar_dense": 1, "index": 1,
    }  # fmt: skip


def test_a_cache_follows_what_a_replay_appended() -> None:
    cache = px.KVCache(1, 2, 4, 6, like=torch.zeros(1))
    cache.append(torch.randn(1, 3, 3, 2, 4))
    cache.rollback(np.array([1]))
    cache.advance_to(5)
    assert cache.length == 5 and cache.keys.shape == (1, 2, 5, 4) and cache.lengths.tolist() == [5]
    for length in (-1, 7):
        with pytest.raises(ValueError, match="advance_to: argument 'length' expected 0 to 6, got"):
            cache.advance_to(length)


def test_host_read_gives_the_numbers() -> None:
    read = HostRead(torch.zeros(2, dtype=torch.int64))
    assert read(torch.tensor([3, 4])) == [3, 4]
    read.start(torch.tensor([5, 6]))
    assert read.wait() == [5, 6]
    assert same_bits(torch.tensor([float("nan")]), torch.tensor([float("nan")]))
