"""STARFlow: inversion, causality, windows behind the cache, published names, guidance, loading."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from pixleap.models import StarFlow, load_starflow, save_checkpoint  # noqa: E402
from pixleap.models.starflow import guide  # noqa: E402

PUBLISHED: dict[str, Any] = {"txt_dim": 12}
OTHER: dict[str, Any] = {
    "txt_dim": 12, "cond_top_only": False, "seq_order": "R2L", "sos": False, "softplus": False,
    "soft_clip": 0.0, "swiglu": True, "qk_norm": True, "post_norm": True, "bias": False,
    "norm_type": "rms_norm", "num_kv_heads": 1, "final_norm": False,
}  # fmt: skip
UNCONDITIONAL: dict[str, Any] = {"top_block_channels": 96}


def random_flow(**changes: Any) -> StarFlow:
    """Blocks of 1, 2 and 2 layers over 3 channels in patches of 2 x 2."""
    torch.manual_seed(0)
    model = StarFlow(3, 2, 64, [1, 2, 2], 4, head_dim=32, **changes)
    for name, p in model.named_parameters():
        scale = 0.02 if "proj_out" in name else 0.15 if p.dim() > 1 else 0.1
        torch.nn.init.normal_(p, std=scale)
    return model.eval().requires_grad_(False)


def text(model: StarFlow, batch: int, seed: int = 0) -> Any:
    if not model.txt_dim:
        return None
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 5, model.txt_dim, generator=generator)


CONFIGS = pytest.mark.parametrize(
    "config",
    [PUBLISHED, OTHER, UNCONDITIONAL],
    ids=["published", "other", "unconditional"],
)


@CONFIGS
@pytest.mark.parametrize("size", [(6, 6), (4, 10)])
def test_reverse_inverts_forward(config: dict[str, Any], size: tuple[int, int]) -> None:
    model = random_flow(**config)
    x, y = torch.randn(2, 3, *size), text(model, 2)
    z, outputs, logdet = model(x, y)
    assert z.shape == x.shape and len(outputs) == 3 and logdet.shape == (2,)
    assert float((z - x).abs().max()) > 0.1
    kept, calls = z.clone(), []
    got = model.reverse(z, y, progress=lambda *done: calls.append(done))
    torch.testing.assert_close(got, x, atol=1e-4, rtol=0)
    assert torch.equal(z, kept)
    total = 3 * (size[0] * size[1] // 4 - (not config.get("sos", True)))
    assert calls == [(i + 1, total) for i in range(total)]
    assert torch.equal(model.unpatchify(model.patchify(x), size[0] // 2, size[1] // 2), x)


@CONFIGS
def test_logdet_is_that_of_the_jacobian(config: dict[str, Any]) -> None:
    model = random_flow(**config).double()
    x, y = torch.randn(1, 3, 4, 4, dtype=torch.float64), text(model, 1)
    y = None if y is None else y.double()
    jacobian = torch.autograd.functional.jacobian(lambda v: model(v, y)[0].flatten(), x)
    expected = torch.linalg.slogdet(jacobian.view(48, 48))[1] / 48
    torch.testing.assert_close(model(x, y)[2][0], expected)


@CONFIGS
@pytest.mark.parametrize("index", [0, 1, 2])
def test_windows_behind_the_cache_are_the_forward_pass(config: dict[str, Any], index: int) -> None:
    """Teacher forcing in windows of several sizes, with windows evaluated again after others: the
    scales and shifts of one pass over all rows; and those invert the block's z."""
    model = random_flow(**config)
    block, y = model.blocks[index], text(model, 2)
    x = torch.randn(2, 12, 12)
    z, _ = block(x, 3, 4, y)
    x, z = block.order(x), block.order(z)
    rows = block.rows(x)
    assert rows.shape[1] == 12 - block.first_output
    whole = block.step(rows, 0, block.start(2, 3, 4, y))
    outputs = slice(block.first_output, None)
    torch.testing.assert_close(z[:, outputs] * whole[0] + whole[1], x[:, outputs])
    for window in (1, 3, 5):
        cache = block.start(2, 3, 4, y)
        for first in range(0, rows.shape[1], window):
            part = rows[:, first : first + window]
            block.step(torch.randn_like(part), first, cache)  # a wrong guess leaves no trace
            got = block.step(part, first, cache)
            assert cache.length == first + part.shape[1]
            for a, b in zip(got, whole, strict=True):
                torch.testing.assert_close(a, b[:, first : first + window], atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match=r"argument 'length' expected 0 to 1[12], got 13"):
        cache.rollback(13)


@pytest.mark.parametrize("seq_order", ["L2R", "R2L"])
def test_blocks_are_causal_in_alternating_order(seq_order: str) -> None:
    """With a start token a patch depends on those before it and, as a value, on itself."""
    model = random_flow(seq_order=seq_order)
    for i, block in enumerate(model.blocks):
        x = torch.randn(1, 9, 12)
        changed = x.clone()
        changed[:, 4] += 1
        moved = (block(x, 3, 3)[0] != block(changed, 3, 3)[0]).any(dim=-1)[0]
        backwards = (i % 2 == 1) != (seq_order == "L2R")
        assert block.backwards == backwards
        expected = torch.arange(9) <= 4 if backwards else torch.arange(9) >= 4
        assert moved.tolist() == expected.tolist()


def test_text_reaches_the_blocks_that_read_it() -> None:
    x = torch.randn(1, 3, 4, 4)
    for top_only in (True, False):
        model = random_flow(txt_dim=12, cond_top_only=top_only)
        outputs, others = (model(x, text(model, 1, seed))[1] for seed in (0, 1))
        assert torch.equal(outputs[0], others[0]) == top_only
        assert not torch.equal(outputs[2], others[2])


def test_guidance() -> None:
    """The product of Gaussians p_c^(1+w) / p_u^w by its precisions, and its use in the deep block
    alone; temperature; the same text twice guides nowhere."""
    scale, free = torch.tensor([0.5, 1.0]), torch.tensor([1.0, 0.8])
    shift, free_shift = torch.tensor([0.3, -1.0]), torch.tensor([-0.2, 0.5])
    w = 1.5
    got = guide((scale, shift), (free, free_shift), w)
    wide = torch.maximum(scale, free)
    precision = (1 + w) / scale**2 - w / wide**2
    mean = ((1 + w) * shift / scale**2 - w * free_shift / wide**2) / precision
    torch.testing.assert_close(got[0], precision.rsqrt())
    torch.testing.assert_close(got[1], mean)
    model = random_flow(txt_dim=12)
    z, y, none = torch.randn(2, 3, 4, 4), text(model, 2), text(model, 2, 1)
    plain = model.reverse(z, y)
    assert not torch.allclose(model.reverse(z, y, none, guidance=2.0), plain)
    assert not torch.allclose(model.reverse(z, y, attn_temp=0.5), plain)
    torch.testing.assert_close(model.reverse(z, y, y, guidance=2.0), plain, atol=1e-4, rtol=1e-4)


def test_parameter_names_are_the_published_ones() -> None:
    layer = r"attention\.(norm|qkv|proj)\.(weight|bias)|mlp\.(norm|main\.[02])\.(weight|bias)"
    rest = r"proj_(in|out|txt)\.(weight|bias)|sos_embed|final_norm\.weight"
    pattern = rf"blocks\.\d+\.({rest}|attn_blocks\.\d+\.({layer}))"
    state = random_flow(txt_dim=12).state_dict()
    assert [k for k in state if not re.fullmatch(pattern, k)] == []
    assert len(state) == 3 * 6 + 5 * 12 + 2  # proj_txt in the last block only
    assert state["blocks.2.sos_embed"].shape == (1, 1, 12)
    names = {k.removeprefix("blocks.0.attn_blocks.0.") for k in random_flow(**OTHER).state_dict()}
    parts = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "mlp.post_norm", "mlp.norm")
    parts += ("attention.query_norm", "attention.key_norm", "attention.post_norm")
    assert {f"{part}.weight" for part in parts} <= names


@CONFIGS
def test_published_state_dicts_load(tmp_path: Path, config: dict[str, Any]) -> None:
    """With the buffers that the official code registers and never reads."""
    model = random_flow(**config)
    state = dict(model.state_dict())
    state |= {f"blocks.{i}.attn_mask": torch.ones(21, 21) for i in range(3)}
    state |= {"var": torch.ones(16, 12), "feat_rope.freqs_cos": torch.zeros(21, 32)}
    state |= {"feat_rope.freqs_sin": torch.zeros(21, 32)}
    torch.save(state, tmp_path / "flow.pth")
    told = {k: config[k] for k in ("softplus", "soft_clip", "seq_order") if k in config}
    told |= {"patch_size": 2, "head_dim": 32, "pt_seq_len": 4}
    loaded = load_starflow(tmp_path / "flow.pth", **told)
    z, y = torch.randn(2, 3, 4, 4), text(model, 2)
    assert torch.equal(loaded.reverse(z, y), model.reverse(z, y))
    config = {"in_channels": 3, "channels": 64, "layers_per_block": [1, 2, 2]} | told | config
    save_checkpoint(tmp_path / "flow.npz", config, model.half().float().state_dict())
    again = load_starflow(tmp_path / "flow.npz")
    assert torch.equal(again.reverse(z, y), model.reverse(z, y))


def test_foreign_state_dicts_are_refused_with_their_keys(tmp_path: Path) -> None:
    state = dict(random_flow().state_dict())
    told = {"patch_size": 2, "head_dim": 32, "pt_seq_len": 4}
    del state["blocks.1.proj_in.bias"]
    state["learnable_self_denoiser.proj_in.weight"] = torch.zeros(2, 2)
    state["blocks.0.proj_out.bias"] = torch.zeros(3)
    torch.save(state, tmp_path / "flow.pth")
    with pytest.raises(ValueError) as error:
        load_starflow(tmp_path / "flow.pth", **told)
    for line in (
        "missing: blocks.1.proj_in.bias",
        "unexpected: learnable_self_denoiser.proj_in.weight",
        "wrong shape: blocks.0.proj_out.bias: expected (24,), got (3,)",
    ):
        assert line in str(error.value)
    torch.save({"weight": torch.zeros(2)}, tmp_path / "flow.pth")
    with pytest.raises(ValueError, match=r"not a StarFlow state dict: missing blocks.0.proj_in"):
        load_starflow(tmp_path / "flow.pth")


def test_bad_arguments() -> None:
    model = random_flow(txt_dim=12)
    z, y = torch.randn(2, 3, 4, 4), text(model, 2)
    for latent, given, options, message in (
        (z[:, :2], y, {}, r"expected latents \(B, 3, H, W\) with H and W multiples of 2"),
        (z[..., :3], y, {}, r"got \(2, 3, 4, 3\)"),
        (z, None, {}, r"argument 'y' expected text embeddings \(B, L, 12\), got None"),
        (z, y[..., :3], {}, r"got \(2, 5, 3\)"),
        (z, y, {"guidance": 1.0}, r"argument 'y' expected text embeddings .*got None"),
    ):
        with pytest.raises(ValueError, match=message):
            model.reverse(latent, given, **options)
    with pytest.raises(ValueError, match="argument 'guidance' expected 0 without text, got 1"):
        random_flow().reverse(z, guidance=1.0)
    for change, message in (
        ({"seq_order": "up"}, "seq_order expected 'L2R' or 'R2L', got 'up'"),
        ({"norm_type": "none"}, "norm_type expected one of layer_norm, rms_norm, got 'none'"),
        ({"num_kv_heads": 3}, "channels=64 in heads of 32 do not fit num_kv_heads=3"),
    ):
        with pytest.raises(ValueError, match=message):
            random_flow(**change)
    with pytest.raises(ValueError, match=r"layers_per_block expected numbers >= 1, got \[1, 0\]"):
        StarFlow(3, 2, 64, [1, 0], 4)
