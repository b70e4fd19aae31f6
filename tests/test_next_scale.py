"""The pass over several scales, teacher forcing and editing, on random weights."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from next_scale_models import random_var

from pixleap.decode import NextScaleDecoder
from pixleap.decode.next_scale import Pyramid, Sampling
from pixleap.decode.next_scale.sampling import SOFT_STREAM
from pixleap.reference.philox import uniform_open, words

LABELS = torch.tensor([0, 4, -1, 2, 2, 1])


@pytest.fixture(scope="module")
def decoder() -> NextScaleDecoder:
    return NextScaleDecoder(random_var())


def other_tokens(decoder: NextScaleDecoder) -> list[torch.Tensor]:
    return decoder.tokens(LABELS, seed=99, cfg=0.0)[0]


@pytest.mark.parametrize("cuts", [(4,), (1, 4), (2, 4), (1, 3, 4), (1, 2, 3, 4)])
@pytest.mark.parametrize("guided", [True, False])
def test_passes_over_many_scales_have_the_bits_of_passes_over_one(
    decoder: NextScaleDecoder, cuts: tuple[int, ...], guided: bool
) -> None:
    packed, tokens = decoder.packed, other_tokens(decoder)
    pyramid = Pyramid(decoder.codebook, len(LABELS))
    for t in tokens[:-1]:
        pyramid.add(t)
    single, grouped = (packed.start(LABELS, guided=guided) for _ in range(2))
    expected = [packed.run(single, pyramid.maps, k + 1)[0].clone() for k in range(4)]
    got = [x.clone() for stop in cuts for x in packed.run(grouped, pyramid.maps, stop)]
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))
    # One masked attention call rounds otherwise, over a prefix too.
    for begin in (0, 2):
        grouped.rollback(begin)
        masked = packed.run(grouped, pyramid.maps, 4, same_bits=False)
        for a, b in zip(expected[begin:], masked, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
        grouped.rollback(0)
        packed.run(grouped, pyramid.maps, 4)
    # Forgotten scales come again.
    grouped.rollback(1)
    again = packed.run(grouped, pyramid.maps, 4, logits_from=2)
    assert len(again) == 2
    assert all(torch.equal(a, b) for a, b in zip(expected[2:], again, strict=True))


def test_pyramid_rollback_is_exact(decoder: NextScaleDecoder) -> None:
    tokens = other_tokens(decoder)
    plain, kept = (Pyramid(decoder.codebook, len(LABELS), h) for h in (False, True))
    for t in tokens:
        plain.add(t)
    for t in [*tokens[:2], torch.zeros_like(tokens[2])]:
        kept.add(t)
    kept.rollback(2)
    for t in tokens[2:]:
        kept.add(t)
    assert torch.equal(plain.f_hat, kept.f_hat) and kept.scales == 4
    assert all(torch.equal(a, b) for a, b in zip(plain.maps, kept.maps, strict=True))
    assert torch.equal(kept.features_after(4), plain.f_hat)
    assert not kept.features_after(0).any()


@pytest.mark.parametrize("make", [{}, {"shared_aln": True}, {"share_phi": 1, "l2_norm": False}])
def test_log_probabilities_equal_the_models_forward(make: dict[str, Any]) -> None:
    model = random_var(**make)
    decoder = NextScaleDecoder(model)
    tokens = other_tokens(decoder)
    got = torch.cat(decoder.log_probabilities(tokens, LABELS), dim=1)
    known = torch.where(LABELS < 0, model.num_classes, LABELS)
    logits = model(known, model.vae.quantize.idxBl_to_var_input(tokens)).double()
    expected = logits.log_softmax(-1).gather(-1, torch.cat(tokens, 1)[..., None])[..., 0]
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-5)
    total = decoder.likelihood(tokens, LABELS)
    torch.testing.assert_close(total, expected.sum(1), rtol=1e-4, atol=0)
    assert float(expected.std()) > 0.3  # not a uniform law


def test_log_probabilities_of_drawn_tokens_under_filters(decoder: NextScaleDecoder) -> None:
    options: dict[str, Any] = {"cfg": 2.0, "top_k": 8, "top_p": 0.9, "temperature": 0.8}
    tokens, _ = decoder.tokens(LABELS, seed=4, **options)
    drawn = torch.cat(decoder.log_probabilities(tokens, LABELS, **options), 1)
    assert torch.isfinite(drawn).all() and float(drawn.max()) <= 1e-6
    free = torch.cat(decoder.log_probabilities(other_tokens(decoder), LABELS, **options), 1)
    assert torch.isneginf(free).any()


@pytest.mark.parametrize(
    "options",
    [
        {"cfg": 1.5},
        {"cfg": 0.0, "top_k": 4},
        {"top_p": 0.6, "temperature": 0.7},
        {"temperature": 0},
    ],
    ids=str,
)
def test_probabilities_are_the_law_of_the_draw(options: dict[str, Any]) -> None:
    sampling = Sampling(**options).check(7)
    torch.manual_seed(0)
    row = torch.randn(2, 1, 7) if sampling.guided else torch.randn(1, 1, 7)
    count = 40_000
    logits = row.repeat_interleave(count, 0)
    p = sampling.probabilities(row, 1, 3)[0, 0]
    seen = torch.bincount(sampling.draw(logits, 1, 3).flatten(), minlength=7) / count
    assert float((seen - p).abs().max()) < 4 * 0.5 / count**0.5
    assert not seen[p == 0].any()


def test_edit_keeps_what_the_mask_leaves_and_draws_the_rest(decoder: NextScaleDecoder) -> None:
    given = other_tokens(decoder)
    mask = torch.zeros(len(LABELS), 8, 8, dtype=torch.bool)  # pixels; the finest grid is 4 x 4
    mask[:, :, 4:] = True
    mask[0] = False
    tokens, f_hat = decoder.edit(given, mask, LABELS, seed=1, coverage=0.6)
    assert torch.equal(tokens[0], given[0])  # half of the 1 x 1 cell is less than 0.6
    for t, g, side in zip(tokens[1:], given[1:], (2, 3, 4), strict=True):
        grid = (t != g).view(-1, side, side)
        assert not grid[:, :, : side // 2 + side % 2].any() and not grid[0].any()
        assert grid[1:, :, side // 2 + side % 2 :].float().mean() > 0.7
    expected = Pyramid(decoder.codebook, len(LABELS))
    for t in tokens:
        expected.add(t)
    assert torch.equal(f_hat, expected.f_hat)


def test_edit_of_everything_is_plain_decoding_and_of_nothing_is_the_image(
    decoder: NextScaleDecoder,
) -> None:
    given = other_tokens(decoder)
    seen: list[int] = []
    everything = torch.ones(4, 4, dtype=torch.bool)
    for options in ({"seed": 3}, {"seed": 3, "more_smooth": True}):
        plain, f_hat = decoder.tokens(LABELS, **options)
        tokens, edited = decoder.edit(given, everything, LABELS, **options)
        assert torch.equal(f_hat, edited)
        assert all(torch.equal(a, b) for a, b in zip(plain, tokens, strict=True))
    same, f_hat = decoder.edit(
        given, ~everything, LABELS, seed=3, progress=lambda k, _: seen.append(k)
    )
    assert all(torch.equal(a, b) for a, b in zip(given, same, strict=True))
    assert seen == [0, 1, 2, 3]
    # The finest scale alone: the rest is one pass, and the draw that of the plain loop there.
    tokens, _ = decoder.edit(given, everything, LABELS, seed=3, keep_scales=3)
    assert torch.equal(torch.cat(tokens[:3], 1), torch.cat(given[:3], 1))
    assert not torch.equal(tokens[3], given[3])


def test_edit_starts_from_an_image(decoder: NextScaleDecoder) -> None:
    image = torch.rand(1, 1, 8, 8) * 2 - 1
    tokens = decoder.codebook.vae.img_to_idxBl(image)
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[1:3, 1:3] = True
    out, f_hat = decoder.edit(tokens, mask, torch.tensor([-1]), cfg=2.0)
    kept = ~mask.flatten()
    assert torch.equal(out[-1][:, kept], tokens[-1][:, kept])
    assert decoder.images(f_hat).shape == image.shape


def test_more_smooth_does_not_depend_on_the_batch(decoder: NextScaleDecoder) -> None:
    options: dict[str, Any] = {"seed": 3, "more_smooth": True}
    _, together = decoder.tokens(LABELS, **options)
    _, alone = decoder.tokens(LABELS[2:3], first_sample=2, **options)
    torch.testing.assert_close(alone[0], together[2], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(together, decoder.tokens(LABELS, seed=3)[1], atol=1e-3)


def test_soft_codes_are_the_official_gumbel_softmax() -> None:
    sampling = Sampling(cfg=0.0, seed=8)
    torch.manual_seed(0)
    logits = torch.randn(5, 4, 7)
    for scale, logit_scale, tau in ((0, 1.0, 0.27), (1, 1.5, 0.27 * 0.525), (2, 2.0, 0.0135)):
        codes = sampling.soft_codes(logits, scale, 3, torch.eye(7))
        noise = -np.log(-np.log(uniform_open(words(logits.numel(), 8, SOFT_STREAM + scale))))
        gumbel = torch.from_numpy(noise).view(logits.shape)
        expected = ((logits.double() * logit_scale + gumbel) / tau).softmax(-1)
        torch.testing.assert_close(codes.double(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_p": 0.0}, "argument 'top_p' expected a number in"),
        ({"top_p": 1.5}, "argument 'top_p' expected a number in"),
        ({"top_k": 38}, "argument 'top_k' expected 0 to 37, got 38"),
        ({"cfg": float("nan")}, "argument 'cfg' expected a finite"),
        ({"temperature": -1.0}, "argument 'temperature' expected"),
        ({"first_sample": -1}, "argument 'first_sample' expected"),
    ],
)
def test_bad_options(decoder: NextScaleDecoder, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="next_scale: " + message):
        decoder.tokens(LABELS, **options)


def test_edit_refuses_bad_input(decoder: NextScaleDecoder) -> None:
    given, mask = other_tokens(decoder), torch.ones(4, 4, dtype=torch.bool)
    high = [*given[:3], given[3] + 37]
    calls: list[tuple[Any, Any, Any, dict[str, Any], str]] = [
        (given, mask[:3], LABELS, {}, "'mask' expected shape"),
        (given, torch.ones(6, 6, dtype=torch.bool), LABELS, {}, "'mask' expected .* multiple of 4"),
        (given, mask.expand(2, 4, 4), LABELS, {}, "'mask' expected shape"),
        (given[:3], mask, LABELS, {}, "'tokens' expected one tensor for each of the 4 scales"),
        ([*given[:3], given[2]], mask, LABELS, {}, r"'tokens\[3\]' expected shape \(6, 16\)"),
        (high, mask, LABELS, {}, r"'tokens\[3\]' expected numbers from 0 to 36"),
        (given, mask, LABELS[:2], {}, r"'labels' expected shape \(6,\)"),
        (given, mask, LABELS, {"coverage": 0.0}, "'coverage' expected"),
        (given, mask, LABELS, {"keep_scales": 5}, "'keep_scales' expected 0 to 4"),
    ]
    for tokens, m, labels, options, message in calls:
        with pytest.raises(ValueError, match=message):
            decoder.edit(tokens, m, labels, **options)
    with pytest.raises(TypeError, match=r"'mask' expected torch\.bool"):
        decoder.edit(given, mask.float(), LABELS)
    with pytest.raises(ValueError, match="log_probabilities: argument 'labels' expected shape"):
        decoder.log_probabilities(given, LABELS[:2])


def test_the_models_matrices_may_be_freed() -> None:
    model = random_var()
    watched = [weakref.ref(block) for block in model.blocks] + [weakref.ref(model)]
    decoder = NextScaleDecoder(model)
    before = decoder.tokens(torch.tensor([1]), seed=2)[0]
    del model
    gc.collect()
    assert [r() for r in watched] == [None] * len(watched)
    after = decoder.tokens(torch.tensor([1]), seed=2)[0]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
