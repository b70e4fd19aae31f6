"""Collaborative decoding of two models over one tokeniser."""

from __future__ import annotations

import pytest
import torch
from next_scale_models import random_var, sibling

from pixleap.decode import CollaborativeDecoder, NextScaleDecoder, collaborative
from pixleap.decode.next_scale import Pyramid, Sampling

LABELS = torch.tensor([0, 4, -1, 2, 2, 1])


@pytest.mark.parametrize("cfg", [1.5, 0.0])
def test_ends_are_the_models_alone(cfg: float) -> None:
    model = random_var()
    large = NextScaleDecoder(model)
    small = NextScaleDecoder(sibling(model))
    for drawn, alone in ((4, large), (0, small)):
        tokens, f_hat = CollaborativeDecoder(large, small, drawn).tokens(LABELS, seed=2, cfg=cfg)
        expected, features = alone.tokens(LABELS, seed=2, cfg=cfg)
        assert all(torch.equal(a, b) for a, b in zip(tokens, expected, strict=True))
        assert torch.equal(f_hat, features)


def test_hands_over_after_the_given_scales() -> None:
    model = random_var()
    large = NextScaleDecoder(model)
    small = NextScaleDecoder(sibling(model))
    seen: list[int] = []
    decoder = CollaborativeDecoder(large, small, 2)
    tokens, f_hat = decoder.tokens(LABELS, seed=2, progress=lambda k, _: seen.append(k))
    expected, _ = large.tokens(LABELS, seed=2)
    assert torch.equal(tokens[0], expected[0]) and torch.equal(tokens[1], expected[1])
    # The small model, forced along the result one pass at a time, draws the rest.
    passes, pyramid = small.packed.start(LABELS), Pyramid(small.codebook, len(LABELS))
    for scale in range(4):
        logits = small.packed.run(passes, pyramid.maps, scale + 1)[0]
        if scale >= 2:
            assert torch.equal(Sampling(seed=2).draw(logits, scale, 4), tokens[scale])
        pyramid.add(tokens[scale])
    assert seen == [0, 1, 2, 3] and torch.equal(f_hat, pyramid.f_hat)
    images = collaborative(large, small, LABELS, 2, seed=2)
    assert torch.equal(images, decoder(LABELS, seed=2)) and images.shape == (6, 1, 8, 8)


def test_memory_is_that_of_the_buffers() -> None:
    model = random_var()
    large = NextScaleDecoder(model)
    decoder = CollaborativeDecoder(large, sibling(model), 3)
    memory = decoder.memory(5)
    caches = large.packed.start(torch.zeros(5, dtype=torch.int64), scales=3).caches
    held = sum(2 * c.max_length * 10 * 3 * 16 * 4 for c in caches)
    small = decoder.small.packed.cache_bytes(5, 4)
    assert memory["caches"] == max(held, small) < memory["caches_large_alone"]
    parameters = sum(p.numel() for p in model.parameters())
    assert 0.95 < memory["weights_large"] / (4 * parameters) < 1.1
    assert memory["weights_small"] < memory["weights_large"]


def test_refuses_models_that_do_not_fit() -> None:
    large = random_var()
    small = sibling(large)
    with pytest.raises(ValueError, match="'draft_scales' expected 0 to 4, got 5"):
        CollaborativeDecoder(large, small, 5)
    with pytest.raises(ValueError, match="'small' expected the tokeniser of 'large'"):
        CollaborativeDecoder(large, random_var(seed=2), 2)
    with pytest.raises(ValueError, match=r"'small' expected patch_nums \(1, 2, 3, 4\)"):
        CollaborativeDecoder(large, random_var(sides=(1, 2, 4)), 2)
    with pytest.raises(ValueError, match=r"a codebook of shape \(37, 8\) as 'large' has"):
        CollaborativeDecoder(large, random_var(vocabulary=36), 2)
    with pytest.raises(ValueError, match="expected 5 classes as 'large' has, got 4"):
        CollaborativeDecoder(large, sibling(large, classes=4), 2)
    with pytest.raises(ValueError, match="argument 'labels' expected"):
        CollaborativeDecoder(large, small, 2).tokens(torch.tensor([6]))
