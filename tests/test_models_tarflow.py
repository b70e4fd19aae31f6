"""TarFlow: inversion, causality, published names, loading, and what the embedded model samples."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from pixleap.models import TarFlow, load_classifier, load_tarflow, save_checkpoint  # noqa: E402


def small_flow(**changes) -> TarFlow:
    """Random weights, 3 x 3 patches of 2 x 2 pixels and 2 channels; no layer left at zero."""
    torch.manual_seed(0)
    config = {"in_channels": 2, "img_size": 6, "patch_size": 2, "channels": 16, "num_blocks": 3}
    config |= {"layers_per_block": 2, "head_dim": 8, "num_classes": 4}
    model = TarFlow(**(config | changes)).eval()
    for block in model.blocks:
        torch.nn.init.normal_(block.proj_out.weight, std=0.05)
        if block.class_embed is not None:
            torch.nn.init.normal_(block.class_embed)
    return model


LABELS = torch.tensor([0, 3, -1, 2])


@pytest.mark.parametrize("nvp", [True, False])
@pytest.mark.parametrize("y", [LABELS, None])
def test_reverse_inverts_forward(nvp, y):
    model = small_flow(nvp=nvp)
    x = torch.randn(4, 2, 6, 6)
    z, outputs, logdet = model(x, y)
    kept = z.clone()
    images = model.reverse(z.detach(), y, return_sequence=True)
    assert model.num_patches % 2 == 1 and len(outputs) == 3 and logdet.shape == (4,)
    torch.testing.assert_close(images[-1], x, atol=1e-4, rtol=0)
    torch.testing.assert_close(images[1], model.unpatchify(outputs[-2]), atol=1e-4, rtol=0)
    model.blocks[0].reverse(z.detach(), y)
    torch.testing.assert_close(z, kept, atol=0, rtol=0)  # inputs stay as they were


def test_logdet_is_that_of_the_jacobian():
    model = small_flow(in_channels=1, channels=8).double()
    x, y = torch.randn(1, 1, 6, 6, dtype=torch.float64), torch.tensor([1])
    jacobian = torch.autograd.functional.jacobian(lambda v: model(v, y)[0].flatten(), x)
    expected = torch.linalg.slogdet(jacobian.view(36, 36))[1] / 36
    torch.testing.assert_close(model(x, y)[2][0], expected)


@pytest.mark.parametrize("index", [0, 1])
def test_blocks_are_causal_in_their_order(index):
    """Patch t of the output may depend on the patches up to t in the block's order alone."""
    block = small_flow().blocks[index]
    x = torch.randn(1, 9, 8)
    changed = x.clone()
    changed[:, 4] += 1
    moved = (block(x, None)[0] != block(changed, None)[0]).any(dim=-1)[0]
    expected = torch.arange(9) <= 4 if index else torch.arange(9) >= 4
    assert moved.tolist() == expected.tolist()


def test_unconditional_labels_agree():
    model = small_flow()
    x = torch.randn(4, 2, 6, 6)
    none, negative = model(x, None)[0], model(x, torch.full((4,), -1))[0]
    torch.testing.assert_close(none, negative)
    assert not torch.allclose(none, model(x, LABELS.clamp(min=0))[0])


def test_guidance_and_temperature():
    model = small_flow()
    z = torch.randn(4, 9, 8)
    plain = model.reverse(z, LABELS)
    guided = model.reverse(z, LABELS, guidance=2.0)
    torch.testing.assert_close(guided[2], plain[2])  # label -1: nothing to guide towards
    assert not torch.allclose(guided[0], plain[0])
    for other in ({"guide_what": "b"}, {"annealed_guidance": True}, {"attn_temp": 0.5}):
        assert not torch.allclose(model.reverse(z, LABELS, guidance=2.0, **other)[0], guided[0])
    torch.testing.assert_close(model.reverse(z, LABELS, guidance=2.0, guide_what=""), plain)


def test_denoise_follows_the_density():
    model = small_flow().double()
    x = torch.randn(4, 2, 6, 6, dtype=torch.float64)

    def log_p(v):
        z, _, logdet = model(v, LABELS)
        return 72 * logdet - 0.5 * z.square().sum(dim=(1, 2))

    x_new = model.denoise(x, LABELS, 1e-3)
    step = (x_new - x) / 1e-6
    rise = (log_p(x + 1e-6 * step) - log_p(x - 1e-6 * step)) / 2e-6
    torch.testing.assert_close(rise, step.square().sum(dim=(1, 2, 3)), rtol=1e-5, atol=0)


def test_parameter_names_are_the_published_ones():
    layer = r"attention\.(norm|qkv|proj)\.(weight|bias)|mlp\.(norm|main\.[02])\.(weight|bias)"
    rest = r"proj_(in|out)\.(weight|bias)|pos_embed|class_embed|attn_mask"
    pattern = rf"var|blocks\.\d+\.({rest}|attn_blocks\.\d+\.({layer}))"
    state = small_flow().state_dict()
    assert [k for k in state if not re.fullmatch(pattern, k)] == []
    assert len(state) == 1 + 3 * (7 + 2 * 12)
    assert state["blocks.0.class_embed"].shape == (4, 1, 16)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_official_state_dict_loads(tmp_path: Path, prefix):
    model = small_flow(in_channels=3)
    state = model.state_dict()
    if prefix:
        state = {"model": {prefix + k: v for k, v in state.items()}}
    torch.save(state, tmp_path / "flow.pth")
    loaded = load_tarflow(tmp_path / "flow.pth", head_dim=8)
    assert loaded.config == model.config
    z = torch.randn(2, 9, 12)
    torch.testing.assert_close(loaded.reverse(z), model.reverse(z), atol=1e-4, rtol=0)


def test_image_shape_is_asked_for_where_it_is_ambiguous(tmp_path: Path):
    model = small_flow()
    torch.save(model.state_dict(), tmp_path / "flow.pth")
    with pytest.raises(ValueError, match="pass in_channels, img_size and patch_size"):
        load_tarflow(tmp_path / "flow.pth", head_dim=8)
    for given in ({"in_channels": 2}, {"patch_size": 2}, {"img_size": 6}):
        assert load_tarflow(tmp_path / "flow.pth", head_dim=8, **given).config == model.config
    with pytest.raises(ValueError, match="img_size"):
        load_tarflow(tmp_path / "flow.pth", head_dim=8, img_size=7)


def test_a_wrong_state_dict_is_refused_whole(tmp_path: Path):
    model = small_flow()
    state = model.state_dict()
    state["blocks.1.extra"] = state.pop("blocks.1.proj_in.bias")
    state["blocks.2.proj_out.bias"] = torch.zeros(3)
    save_checkpoint(tmp_path / "flow.npz", model.config, state)
    with pytest.raises(ValueError) as error:
        load_tarflow(tmp_path / "flow.npz")
    for line in (
        "missing: blocks.1.proj_in.bias",
        "unexpected: blocks.1.extra",
        "wrong shape: blocks.2.proj_out.bias: expected (16,), got (3,)",
    ):
        assert line in str(error.value)


def test_a_weight_too_large_for_fp16_is_not_saved(tmp_path: Path):
    with pytest.raises(ValueError, match=r"scale: 7e\+04 is too large for fp16"):
        save_checkpoint(tmp_path / "flow.npz", {}, {"scale": torch.tensor([1.0, -7e4])})
    assert not (tmp_path / "flow.npz").exists()


def test_files_that_are_not_models(tmp_path: Path):
    torch.save({"epoch": 3}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="no tensors"):
        load_tarflow(tmp_path / "a.pth")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "b.pth")
    with pytest.raises(ValueError, match="not a TarFlow state dict"):
        load_tarflow(tmp_path / "b.pth")


def test_embedded_model_draws_the_digit_asked_for():
    model, classifier = load_tarflow(), load_classifier()
    y = torch.arange(10).repeat(6)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(60, model.num_patches, model.patch_dim, generator=generator)
    calls = []
    x = model.reverse(z, y, guidance=1.0, progress=lambda *done: calls.append(done))
    x = model.denoise(x, y, model.noise_std)
    assert calls[-1] == (192, 192) and len(calls) == 192
    assert (classifier(x).argmax(dim=1) == y).float().mean() >= 0.85
