"""The drop-in for the official VAR, on a stand-in with the official names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from next_scale_models import random_var, shared_noise

import pixleap as px
from pixleap.decode import NextScaleDecoder
from pixleap.models import VAR, VQVAE
from pixleap.models.var import class_labels


class Official(torch.nn.Module):
    """Parameters and attributes of the official module, its buffers included."""

    def __init__(self, model: VAR, as_tuple: bool = True) -> None:
        super().__init__()
        for name, child in model.named_children():
            self.add_module(name, child)
        self.pos_start, self.pos_1LC = model.pos_start, model.pos_1LC
        self.register_buffer("lvl_1L", model.lvl_1L)
        self.register_buffer("attn_bias_for_masking", torch.zeros(1, 1, model.L, model.L))
        self.patch_nums, self.num_heads = model.patch_nums, model.num_heads
        if as_tuple:
            self.vae_proxy = (model.vae,)
        else:
            self.vae = model.vae


LABELS = torch.tensor([0, 4, -1, 2])


@pytest.mark.parametrize("as_tuple", [True, False])
@pytest.mark.parametrize("make", [{}, {"shared_aln": True, "share_phi": 1, "l2_norm": False}])
def test_equals_the_models_loop_on_the_same_noise(make: dict[str, Any], as_tuple: bool) -> None:
    model = random_var(**make)
    fast = px.integrations.var.accelerate(Official(model, as_tuple))
    assert fast.patch_nums == model.patch_nums  # the model's own attributes
    for options in ({}, {"cfg": 3.0, "top_k": 9, "top_p": 0.8}, {"top_k": 1000}):
        got = fast.autoregressive_infer_cfg(4, LABELS, g_seed=7, **options)
        plain = model.autoregressive_infer_cfg(4, LABELS, draw=shared_noise(model, 4, 7), **options)
        torch.testing.assert_close(got, plain, atol=2e-4, rtol=0)


def test_labels_and_seeds() -> None:
    model = random_var()
    fast = px.integrations.var.accelerate(Official(model))
    sample = fast.autoregressive_infer_cfg
    assert torch.equal(sample(3, 2, 1), sample(3, torch.tensor([2, 2, 2]), 1))
    assert torch.equal(sample(3, -1, 1), sample(3, model.num_classes, 1))
    assert torch.equal(sample(3, None, 1), sample(3, None, 1))
    for seed in (1, 2):
        drawn = class_labels(8, None, model.num_classes, torch.Generator().manual_seed(seed))
        assert torch.equal(sample(8, None, seed), sample(8, drawn, seed))
    assert not torch.equal(sample(3, 2), sample(3, 2))
    torch.manual_seed(3)
    first = sample(3, 2)
    torch.manual_seed(3)
    assert torch.equal(first, sample(3, 2))
    smooth = sample(3, 2, 1, more_smooth=True)
    expected = NextScaleDecoder(model)(torch.tensor([2, 2, 2]), seed=1, more_smooth=True)
    assert torch.equal(smooth, expected) and not torch.equal(smooth, sample(3, 2, 1))


def test_settings_that_names_do_not_tell() -> None:
    vae = VQVAE(
        vocab_size=11, z_channels=4, ch=8, ch_mult=(1, 1), in_channels=1, num_res_blocks=1,
        norm_groups=4, patch_nums=(1, 2), quant_resi=0.3,
    )  # fmt: skip
    model = VAR(
        vae, num_classes=3, depth=1, embed_dim=24, num_heads=3, norm_eps=1e-2, patch_nums=(1, 2),
        attn_l2_norm=False,
    ).eval()  # fmt: skip
    ours = px.integrations.var.accelerate(Official(model)).decoder
    assert ours.packed.config == model.config and ours.codebook.vae.config == vae.config


def test_refuses_what_is_no_var() -> None:
    accelerate = px.integrations.var.accelerate
    model = random_var()
    with pytest.raises(ValueError, match="'model' expected a VAR with its tokeniser"):
        accelerate(torch.nn.Linear(2, 2))
    other = Official(model)
    del other.blocks[1]
    other.blocks.append(torch.nn.Linear(3, 3))
    with pytest.raises(ValueError, match="missing"):
        accelerate(other)
    with pytest.raises(ValueError, match="expected parameters on the CPU, got 'pos_start' on meta"):
        accelerate(Official(random_var()).to("meta"))
    fast = accelerate(Official(random_var()))
    with pytest.raises(ValueError, match=r"'top_p' expected a number in \[0, 1\], got 1.5"):
        fast.autoregressive_infer_cfg(2, 1, 0, top_p=1.5)
    with pytest.raises(ValueError, match="beyond the 5 classes"):
        fast.autoregressive_infer_cfg(2, 6, 0)
    with pytest.raises(ValueError, match=r"must be \(2,\)"):
        fast.autoregressive_infer_cfg(2, torch.tensor([1, 2, 3]), 0)


def test_int8_weights() -> None:
    model = random_var()
    fast = px.integrations.var.accelerate(Official(model), weights="int8")
    assert fast.decoder.packed.head.packed.dtype == torch.int8
    images = fast.autoregressive_infer_cfg(4, LABELS, g_seed=7)
    assert torch.equal(images, NextScaleDecoder(model, "int8")(LABELS, seed=7, cfg=1.5))
    with pytest.raises(ValueError, match="'weights' expected one of"):
        px.integrations.var.accelerate(Official(model), weights="int4")
