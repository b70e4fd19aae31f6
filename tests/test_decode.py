"""The native decoders against the plain loops of the same models, on random weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from next_scale_models import random_var, shared_noise

import pixleap as px
from pixleap.decode import FlowDecoder, Frontier, NextScaleDecoder, Sequential
from pixleap.models import TarFlow, load_var


def random_flow(side: int, classes: int = 3, nvp: bool = True) -> TarFlow:
    torch.manual_seed(side)
    model = TarFlow(1, side, 1, 32, 2, 2, head_dim=16, num_classes=classes, nvp=nvp)
    for block in model.blocks:
        torch.nn.init.normal_(block.proj_out.weight, std=0.04)
    return model.eval().requires_grad_(False)


def noise(model: TarFlow, batch: int) -> torch.Tensor:
    return px.ops.random_normal((batch, *model.var.shape), seed=5, like=model.var)


LABELS = torch.tensor([0, 2, -1, 1])
OPTIONS: list[dict[str, Any]] = [
    {},
    {"guidance": 1.5},
    {"guidance": 0.7, "guide_what": "a", "annealed_guidance": True},
    {"guidance": 0.7, "guide_what": "b", "attn_temp": 1.3},
    {"guidance": 1.0, "guide_what": "ab", "attn_temp": 0.8, "annealed_guidance": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("side", [3, 4, 5])
def test_flow_equals_plain_loop(side: int, options: dict[str, Any]) -> None:
    model = random_flow(side)
    decoder, z = FlowDecoder(model), noise(model, 4)
    plain = model.reverse(z, LABELS, **options)
    assert torch.isfinite(plain).all()
    for solver in (Sequential(), Frontier(tol=1e-6), Frontier(tol=1e-6, window=7)):
        result = decoder(z, LABELS, solver=solver, **options)
        torch.testing.assert_close(result.images, plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("window", ["auto", 2, 3, 16, 100])
def test_frontier_with_tolerance_zero_is_the_sequential_loop(window: Any) -> None:
    """Up to rounding: attention sums in another order for many queries than for one."""
    model = random_flow(5)
    decoder, z = FlowDecoder(model), noise(model, 2)
    exact = decoder(z, LABELS[:2], solver=Sequential(), guidance=1.0)
    result = decoder(z, LABELS[:2], solver=Frontier(tol=0.0, window=window), guidance=1.0)
    torch.testing.assert_close(result.images, exact.images, atol=1e-5, rtol=1e-5)
    assert exact.sweeps == [24, 24] and exact.evaluations == [24, 24]


def test_windows_save_sweeps_and_do_not_depend_on_threads() -> None:
    model = random_flow(6)
    decoder, z = FlowDecoder(model), noise(model, 1)
    results = []
    threads = px.num_threads()
    for n in (1, 3):
        px.set_num_threads(n)
        results.append(decoder(z, LABELS[:1], solver=Frontier(tol=1e-3)))
    px.set_num_threads(threads)
    assert torch.equal(results[0].images, results[1].images)
    assert results[0].sweeps == results[1].sweeps
    assert sum(results[0].sweeps) < 60  # of 70 tokens
    assert all(len(r) == s for r, s in zip(results[0].residuals, results[0].sweeps, strict=True))


def test_flow_without_classes_or_scales() -> None:
    for model in (random_flow(4, classes=0), random_flow(4, nvp=False)):
        z = noise(model, 2)
        result = FlowDecoder(model)(z, return_sequence=True)
        torch.testing.assert_close(result.images, model.reverse(z), atol=1e-4, rtol=1e-4)
        assert len(result.sequence) == 3


def test_flow_refuses_bad_input() -> None:
    model = random_flow(3)
    decoder, z = FlowDecoder(model), noise(model, 2)
    for bad, labels, message in (
        (z[:, :5], None, r"argument 'z' expected shape \(\*, 9, 1\), got \(2, 5, 1\)"),
        (z[0], None, "argument 'z' expected shape"),
        (z * torch.nan, None, "expected finite values"),
        (z, LABELS, r"argument 'labels' expected shape \(2,\) of integers, got \(4,\)"),
        (z, torch.tensor([0, 3]), "argument 'labels' expected numbers below 3, got 3"),
    ):
        with pytest.raises(ValueError, match=message):
            decoder(bad, labels)
    with pytest.raises(ValueError, match="window expected an integer"):
        Frontier(window=0)
    with pytest.raises(ValueError, match="tol expected"):
        Frontier(tol=-1.0)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        ({}, {"cfg": 1.5}),
        ({}, {"cfg": 0.0, "top_k": 5}),
        ({"shared_aln": True}, {"cfg": 3.0, "top_k": 20, "top_p": 0.9}),
        ({"share_phi": 1, "l2_norm": False}, {"cfg": 1.0, "top_p": 0.8}),
        ({"share_phi": 0}, {"cfg": 1.0}),
    ],
    ids=str,
)
def test_next_scale_equals_plain_loop(make: dict[str, Any], options: dict[str, Any]) -> None:
    model = random_var(**make)
    labels = torch.tensor([0, 4, -1, 2, 2, 1])
    seen: list[int] = []
    native = NextScaleDecoder(model)(
        labels, seed=11, progress=lambda scale, _: seen.append(scale), **options
    )
    plain = model.autoregressive_infer_cfg(
        len(labels), labels, draw=shared_noise(model, len(labels), 11), **options
    )
    torch.testing.assert_close(native, plain, atol=2e-4, rtol=0)
    assert seen == [0, 1, 2, 3]


def test_next_scale_sample_alone_equals_sample_in_batch() -> None:
    decoder = NextScaleDecoder(random_var())
    labels = torch.tensor([3, 0, 1])
    together, _ = decoder.tokens(labels, seed=3)
    for i in range(3):
        alone, _ = decoder.tokens(labels[i : i + 1], seed=3, first_sample=i)
        for a, t in zip(alone, together, strict=True):
            assert torch.equal(a[0], t[i])


def test_next_scale_refuses_bad_labels() -> None:
    decoder = NextScaleDecoder(random_var())
    for labels in (torch.tensor([6]), torch.tensor([[1]]), torch.tensor([0.5])):
        with pytest.raises(ValueError, match="argument 'labels' expected"):
            decoder(labels)


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_short_weights_stay_close(weights: str) -> None:
    model = random_flow(4)
    z = noise(model, 2)
    exact = FlowDecoder(model)(z).images
    close = FlowDecoder(model, weights=weights)(z).images
    assert 0 < float((exact - close).abs().max()) < 0.1


def test_short_weights_of_next_scale() -> None:
    model, labels = load_var(), torch.tensor([3, 8])
    size, logits = {}, {}
    for weights in ("float32", "bfloat16", "int8"):
        decoder = NextScaleDecoder(model, weights)
        packed = decoder.packed
        size[weights] = packed.weight_bytes
        passes = packed.start(labels, guided=False)
        logits[weights] = packed.run(passes, [], 1)[0].clone()
        assert packed.word_embed.packed.dtype == torch.float32
    for weights, limit in (("bfloat16", 4e-3), ("int8", 0.012)):
        error = (logits[weights] - logits["float32"]).abs().max() / logits["float32"].abs().max()
        assert 0 < float(error) < limit
    saved = size["float32"] - size["bfloat16"]
    assert 1.4 * saved < size["float32"] - size["int8"] < 1.5 * saved  # scales take the rest


@pytest.mark.parametrize("weights", ["int4", "fp8", "", None, torch.bfloat16])
def test_unknown_weights(weights: Any) -> None:
    for decoder, model in ((NextScaleDecoder, random_var()), (FlowDecoder, random_flow(4))):
        with pytest.raises(
            ValueError, match="'weights' expected one of float32, bfloat16, int8, got"
        ):
            decoder(model, weights)
