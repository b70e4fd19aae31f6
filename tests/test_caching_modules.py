"""apply_cache around torch modules and diffusers' transformers, built small and random."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pixleap as px
from pixleap.caching import DeltaCache, FirstBlockCache, Forecast, apply_cache

pytestmark = pytest.mark.usefixtures("inference")


@pytest.fixture
def inference() -> Iterator[None]:
    with torch.no_grad():
        yield


class Block(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(8, 8, generator=generator) / 4)
        self.calls = 0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        return x + torch.tanh(x @ self.weight + t)


class Chain(nn.Module):
    """Six blocks in a row; `added` is what a ControlNet would put between them."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(seed) for seed in range(6))
        self.added = 0.0

    def forward(self, x: Tensor, t: float) -> Tensor:
        for block in self.blocks:
            x = block(x, torch.tensor(t)) + self.added
        return 2 * x

    @property
    def calls(self) -> list[int]:
        return [block.calls for block in self.blocks]


def inputs(step: float) -> tuple[Tensor, float]:
    x = torch.linspace(-1, 1, 32).view(2, 2, 8)
    return torch.sin(x * 3 + 0.1 * step), 0.1 * step


def run(module: nn.Module, steps: int, pace: float = 1.0) -> list[Tensor]:
    return [module(*inputs(pace * step)) for step in range(steps)]


CONFIGS = [
    Forecast(interval=3),
    Forecast(interval=3, target="output"),
    DeltaCache(blocks=2, boundary=3),
    FirstBlockCache(threshold=0.5),
]


@pytest.mark.parametrize(
    "config",
    [
        Forecast(interval=1),
        Forecast(interval=1, target="output"),
        DeltaCache(blocks=2, boundary=3, interval=1),
        FirstBlockCache(threshold=0.0),
    ],
)
def test_without_skips_the_bits_are_the_modules(config: Any) -> None:
    module = Chain()
    expected = run(module, 5)
    with apply_cache(module, config) as cache:
        got = run(module, 5)
        assert (cache.statistics.full, cache.statistics.forecast) == (5, 0)
        assert (cache.statistics.blocks_computed, cache.statistics.blocks_saved) == (30, 0)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("config", CONFIGS)
def test_removal_restores_the_module(config: Any) -> None:
    module = Chain()
    before = [dict(vars(m)) for m in module.modules()]
    expected = run(module, 4)
    cache = apply_cache(module, config)
    assert "forward" in vars(module.blocks[0])
    run(module, 4)
    cache.remove()
    for then, m in zip(before, module.modules(), strict=True):
        now = dict(vars(m))
        assert now.pop("calls", None) is not None or "calls" not in then
        then.pop("calls", None)
        assert now == then
    assert all(torch.equal(a, b) for a, b in zip(run(module, 4), expected, strict=True))
    with pytest.raises(RuntimeError, match=r"CacheHandle.remove: expected a cache in place"):
        cache.remove()
    with apply_cache(module, config):  # and may be cached again
        pass


@pytest.mark.parametrize("target", ["residual", "output"])
def test_forecast_skips_blocks_and_is_the_ring_of_their_sum(target: str) -> None:
    module = Chain()
    config = Forecast(interval=3, order=2, target=target)
    with apply_cache(module, config) as cache:
        got = run(module, 8)
        assert module.calls == [3] * 6  # steps 0, 3, 6
        assert (cache.statistics.full, cache.statistics.forecast) == (3, 5)
        assert (cache.statistics.blocks_computed, cache.statistics.blocks_saved) == (18, 30)
    exact = run(module, 8)
    ring = px.caching.FeatureRing(2)
    for step in range(8):
        x = inputs(step)[0] if target == "residual" else torch.zeros(2, 2, 8)
        if step % 3 == 0:
            ring.push(step, exact[step] / 2 - x)
        torch.testing.assert_close(got[step], 2 * (x + ring.forecast(step)), atol=2e-6, rtol=0)
    assert not torch.equal(got[1], exact[1])


def test_higher_order_is_closer_and_lagrange_beats_taylor() -> None:
    module = Chain()
    exact = run(module, 20, 0.03)

    def error(**options: Any) -> float:
        with apply_cache(module, Forecast(interval=4, **options)):
            got = run(module, 20, 0.03)
        pairs = zip(got[13:], exact[13:], strict=True)
        return max(float((a - b).abs().max()) for a, b in pairs)

    lagrange = [error(order=order) for order in range(4)]
    assert lagrange[0] > 2 * lagrange[1] > 4 * lagrange[2] > 8 * lagrange[3]
    assert error(order=3, formula="taylor") > 5 * lagrange[3]


def test_set_time_gives_the_weights_their_times() -> None:
    module, times = Chain(), [0.0, 1.0, 4.0, 5.0, 9.0]
    ring = px.caching.FeatureRing(2)
    with apply_cache(module, Forecast(full_steps=[0, 1, 2])) as cache:
        got = []
        for time in times:
            cache.set_time(torch.tensor(time))
            got.append(module(*inputs(time)))
    for time in times[:3]:
        ring.push(time, module(*inputs(time)) / 2 - inputs(time)[0])
    for time, result in zip(times[3:], got[3:], strict=True):
        expected = 2 * (ring.forecast(time) + inputs(time)[0])
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)
    with apply_cache(module, Forecast(interval=1)) as cache:
        cache.set_time(3.0)
        module(*inputs(0))
        with pytest.raises(
            ValueError, match=r"argument 'time' expected a time other than \(3.0,\)"
        ):
            module(*inputs(1))


def test_contexts_are_apart() -> None:
    module = Chain()
    with apply_cache(module, Forecast(interval=3)):
        alone = run(module, 7)
    with apply_cache(module, Forecast(interval=3)) as cache:
        got = []
        for step in range(7):
            x, t = inputs(step)
            with cache.context("cond"):
                got.append(module(x, t))
            with cache.context("uncond"):
                module(-x[:1], t)
    assert all(torch.equal(a, b) for a, b in zip(got, alone, strict=True))


def test_reset_starts_a_new_run() -> None:
    module = Chain()
    with apply_cache(module, Forecast(interval=4, steps=6)) as cache:
        first = run(module, 6)
        with pytest.raises(RuntimeError, match=r"at most 6 calls in a run.*call reset\(\)"):
            module(*inputs(6))
        cache.reset()
        assert cache.statistics == px.caching.Statistics()
        second = run(module, 6)
        cache.reset()
        module(inputs(0)[0][:, :1], 0.0)  # other shapes in another run
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_what_is_added_between_blocks_is_not_counted_twice() -> None:
    module = Chain()
    module.added = 0.25
    expected = module(*inputs(0))
    with apply_cache(module, Forecast(interval=3)):
        torch.testing.assert_close(module(*inputs(0)), expected)
        torch.testing.assert_close(module(*inputs(0)), expected, atol=2e-6, rtol=0)


def test_blocks_may_write_into_their_arguments() -> None:
    class InPlace(Block):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return x.add_(torch.tanh(x @ self.weight + t))

    module = Chain()
    module.blocks = nn.ModuleList(InPlace(seed) for seed in range(3))
    expected = module(*inputs(0))
    for config in (Forecast(interval=3), FirstBlockCache(threshold=9.0)):
        with apply_cache(module, config):
            for _ in range(3):
                torch.testing.assert_close(module(*inputs(0)), expected, atol=2e-6, rtol=0)


def test_delta_cache_skips_the_rear_and_then_the_front() -> None:
    module = Chain()
    with apply_cache(module, DeltaCache(blocks=2, boundary=3)) as cache:
        got = run(module, 6)
        assert module.calls == [
            4,
            4,
            6,
            6,
            5,
            5,
        ]  # full 0, 2, 4; 1 skips the rear, 3 and 5 the front
        assert cache.statistics.blocks_saved == 6 and cache.statistics.forecast == 3
    blocks: Callable[..., Tensor]

    def blocks(x: Tensor, step: int, first: int, last: int) -> Tensor:
        for k in range(first, last):
            x = module.blocks[k](x, torch.tensor(inputs(step)[1]))
        return x

    def delta(step: int, first: int, last: int) -> Tensor:
        x = blocks(inputs(step)[0], step, 0, first)
        return blocks(x, step, first, last) - x

    rear = 2 * (blocks(inputs(1)[0], 1, 0, 4) + delta(0, 4, 6))
    torch.testing.assert_close(got[1], rear, atol=2e-6, rtol=0)
    for step in (3, 5):
        x = inputs(step)[0] + delta(step - 1, 0, 2)
        torch.testing.assert_close(got[step], 2 * blocks(x, step, 2, 6), atol=2e-6, rtol=0)


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_first_block_cache_goes_by_the_change_of_the_first_residual(norm: str) -> None:
    module = Chain()
    steps = [0.0, 0.1, 0.2, 5.0, 5.1, 9.0]

    def residual(step: float) -> Tensor:
        x, t = inputs(step)
        return module.blocks[0](x, torch.tensor(t)) - x

    p = 1 if norm == "l1" else 2
    threshold, computed, expected_changes, expected_calls = 0.05, residual(0.0), [], [0.0]
    for step in steps[1:]:
        r = residual(step)
        change = float((r - computed).norm(p) / computed.norm(p))
        expected_changes.append(change)
        if change >= threshold:
            computed = r
            expected_calls.append(step)
    assert 1 < len(expected_calls) < len(steps)
    for block in module.blocks:
        block.calls = 0
    with apply_cache(module, FirstBlockCache(threshold=threshold, norm=norm)) as cache:
        got = [module(*inputs(step)) for step in steps]
        assert module.calls == [6] + [len(expected_calls)] * 5
        assert cache.statistics.changes == pytest.approx(expected_changes, rel=1e-4)
    x, t = inputs(0.1)
    head = module.blocks[0](x, torch.tensor(t))
    tail = module(*inputs(0.0)) / 2 - module.blocks[0](inputs(0.0)[0], torch.tensor(0.0))
    torch.testing.assert_close(got[1], 2 * (head + tail), atol=2e-6, rtol=0)


def test_first_block_cache_with_a_large_threshold_reuses() -> None:
    module = Chain()
    with apply_cache(module, FirstBlockCache(threshold=99.0, first=2)) as cache:
        run(module, 5)
        assert module.calls == [5, 2, 2, 2, 2, 2]
        assert (cache.statistics.full, cache.statistics.forecast) == (2, 3)


class TwoStreams(nn.Module):
    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor) -> tuple[Any, ...]:
        encoder = encoder_hidden_states + hidden_states.mean()
        return encoder, hidden_states + torch.cos(encoder_hidden_states.mean())


class Dual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoStreams() for _ in range(3))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        for block in self.layers:
            c, x = block(x, encoder_hidden_states=c)
        return x.mean(dim=1) + c.mean(dim=1)


def test_streams_are_matched_by_shape_or_by_name() -> None:
    module, x = Dual(), torch.rand(2, 5, 4)
    config = Forecast(interval=3)
    expected = module(x, x[:, :3])
    with apply_cache(module, config):
        for _ in range(2):
            torch.testing.assert_close(module(x, x[:, :3]), expected)
    expected = module(x, x + 1)
    with (
        apply_cache(module, config),
        pytest.raises(ValueError, match=r"shapes that tell which .*TwoStreams.*streams=\(...\)"),
    ):
        module(x, x + 1)
    for options in (
        {"config": config, "streams": ("encoder_hidden_states", "hidden_states")},
        {"config": Forecast(interval=3, target="output")},
    ):
        with apply_cache(module, **options):  # type: ignore[arg-type]
            for _ in range(2):
                torch.testing.assert_close(module(x, x + 1), expected)
    with (
        apply_cache(module, config, streams=("hidden_states", "encoder_hidden_states")),
        pytest.raises(ValueError, match=r"TwoStreams to return element 0 in the shape"),
    ):
        module(x, x[:, :3])


def test_errors() -> None:
    module = Chain()
    with pytest.raises(TypeError, match=r"argument 'module' expected a torch.nn.Module, got int"):
        apply_cache(3, CONFIGS[0])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"argument 'config' expected Forecast.*got dict"):
        apply_cache(module, {})  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"argument 'blocks' .*got 'stages'; Chain has blocks \(6\)"
    ):
        apply_cache(module, CONFIGS[0], blocks="stages")
    with pytest.raises(ValueError, match=r"expected lists of blocks.*; Block has no ModuleList"):
        apply_cache(Block(0), CONFIGS[0])
    with pytest.raises(ValueError, match=r"DeltaCache: argument 'blocks' expected at most the 6"):
        apply_cache(module, DeltaCache(blocks=7, boundary=0))
    with apply_cache(module, CONFIGS[0]) as cache:
        with pytest.raises(ValueError, match=r"expected a module without a cache, got a Chain"):
            apply_cache(module, CONFIGS[0])
        with torch.enable_grad(), pytest.raises(RuntimeError, match=r"no_grad.*got grad mode"):
            module(*inputs(0))
        with torch.inference_mode():
            module(*inputs(0))
        cache.reset()
        module(*inputs(0))
        with pytest.raises(
            ValueError, match=r"argument x of shape \(2, 2, 8\) as.*got \(1, 2, 8\)"
        ):
            module(inputs(1)[0][:1], 0.0)  # the forecast would not fit
    module.other_blocks = nn.ModuleList([Block(0)])
    with pytest.raises(ValueError, match=r"in the order in which they run.*other_blocks"):
        apply_cache(module, CONFIGS[0])
    twice = Chain()
    twice.blocks.append(twice.blocks[0])
    with pytest.raises(ValueError, match=r"expected each block once"):
        apply_cache(twice, CONFIGS[0])


def test_a_change_of_shape_and_a_failed_call_ask_for_reset() -> None:
    module = Chain()
    with apply_cache(module, Forecast(interval=2, target="output")):
        module(*inputs(0))
        with pytest.raises(ValueError, match=r"argument x of shape .*call reset\(\)"):
            module(inputs(0)[0][:1], 0.0)
    with apply_cache(module, Forecast(interval=1)) as cache:
        module(*inputs(0))
        with pytest.raises(ValueError, match=r"FeatureRing.push: .*clear the ring between runs"):
            module(inputs(0)[0][:1], 0.0)
        with pytest.raises(RuntimeError, match=r"one that failed halfway; reset\(\)"):
            module(*inputs(1))
        cache.reset()
        module(*inputs(1))


def test_a_block_that_is_not_called_is_named() -> None:
    class Skipping(Chain):
        def forward(self, x: Tensor, t: float) -> Tensor:
            for block in list(self.blocks)[:-1]:
                x = block(x, torch.tensor(t))
            return x

    module = Skipping()
    with (
        apply_cache(module, CONFIGS[0]),
        pytest.raises(RuntimeError, match=r"every block from blocks\[0\] to blocks\[5\]"),
    ):
        module(*inputs(0))
