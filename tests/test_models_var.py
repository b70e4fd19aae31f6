"""VAR and its tokeniser: official names, the KV-cached loop, loading, and the embedded digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from pixleap.models import VAR, VQVAE, load_var, load_var_draft, load_vqvae  # noqa: E402
from pixleap.models.checkpoint import save_checkpoint  # noqa: E402
from pixleap.models.quantizer import PATCH_NUMS_256, PATCH_NUMS_512, phi_index  # noqa: E402
from pixleap.models.token_sampling import filter_top_k_top_p_  # noqa: E402
from pixleap.models.var_load import infer_var_config, infer_vqvae_config  # noqa: E402

SIDES = (1, 2, 3, 4)
DIGITS = Path(__file__).parent / "data" / "digits_held_out.npz"  # 4 per class, never trained on


def small_vae(patch_nums: tuple[int, ...] = SIDES, **settings: Any) -> VQVAE:
    torch.manual_seed(0)
    base = {"vocab_size": 24, "z_channels": 8, "ch": 8, "ch_mult": (1, 2), "num_res_blocks": 1,
            "norm_groups": 4, "in_channels": 1}  # fmt: skip
    return VQVAE(patch_nums=patch_nums, **{**base, **settings}).eval().requires_grad_(False)


def small_var(vae: VQVAE | None = None, **settings: Any) -> VAR:
    """A random model whose gates are far from 0, so that every layer matters."""
    vae = vae or small_vae()
    base = {"num_classes": 5, "depth": 2, "embed_dim": 32, "num_heads": 4}
    model = VAR(vae, patch_nums=vae.patch_nums, **{**base, **settings})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn(value.shape, generator=generator), alpha=0.1)
    return model.eval().requires_grad_(False)


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    with np.load(DIGITS) as file:
        images = torch.from_numpy(file["images"].astype(np.float32))
        return images.unsqueeze(1) / 127.5 - 1, torch.from_numpy(file["labels"].astype(np.int64))


# ---- names and shapes of the official checkpoints


def official_var_names(depth: int, shared_aln: bool) -> set[str]:
    names = {"pos_start", "pos_1LC", "word_embed.weight", "word_embed.bias", "class_emb.weight",
             "lvl_embed.weight", "head_nm.ada_lin.1.weight", "head_nm.ada_lin.1.bias",
             "head.weight", "head.bias"}  # fmt: skip
    if shared_aln:
        names |= {"shared_ada_lin.1.weight", "shared_ada_lin.1.bias"}
    block = ["attn.scale_mul_1H11", "attn.q_bias", "attn.v_bias", "attn.mat_qkv.weight",
             "attn.proj.weight", "attn.proj.bias", "ffn.fc1.weight", "ffn.fc1.bias",
             "ffn.fc2.weight", "ffn.fc2.bias"]  # fmt: skip
    block += ["ada_gss"] if shared_aln else ["ada_lin.1.weight", "ada_lin.1.bias"]
    return names | {f"blocks.{i}.{name}" for i in range(depth) for name in block}


@pytest.mark.parametrize(
    ("depth", "patch_nums", "shared_aln", "millions"),
    [
        (16, PATCH_NUMS_256, False, 310),
        (20, PATCH_NUMS_256, False, 600),
        (24, PATCH_NUMS_256, False, 1000),
        (30, PATCH_NUMS_256, False, 2000),
        (36, PATCH_NUMS_512, True, 2300),
    ],
)
def test_official_var(
    depth: int, patch_nums: tuple[int, ...], shared_aln: bool, millions: int
) -> None:
    width = 64 * depth
    with torch.device("meta"):
        vae = VQVAE(patch_nums=patch_nums)
        model = VAR(vae, depth=depth, embed_dim=width, num_heads=depth, shared_aln=shared_aln,
                    patch_nums=patch_nums)  # fmt: skip
    state = model.state_dict()
    assert set(state) == official_var_names(depth, shared_aln)
    published = pytest.approx(millions * 1e6, rel=0.04)  # the official README's rounded figure
    assert sum(v.numel() for v in state.values()) == published
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    assert shapes["pos_1LC"] == (1, sum(n * n for n in patch_nums), width)
    assert shapes["class_emb.weight"] == (1001, width)
    assert shapes["word_embed.weight"] == (width, 32)
    assert shapes["head.weight"] == (4096, width)
    assert shapes["blocks.0.attn.scale_mul_1H11"] == (1, depth, 1, 1)
    assert shapes["blocks.0.attn.mat_qkv.weight"] == (3 * width, width)
    assert shapes["blocks.0.ffn.fc1.weight"] == (4 * width, width)
    if shared_aln:
        assert shapes["blocks.0.ada_gss"] == (1, 1, 6, width)
    inferred = infer_var_config(state)
    assert inferred == {key: model.config[key] for key in inferred}
    assert "patch_nums" in inferred and "num_heads" in inferred


def test_official_vqvae() -> None:
    with torch.device("meta"):
        model = VQVAE()
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert sum(v.numel() for v in model.state_dict().values()) == 108_948_355
    assert len(shapes) == 323
    expected = {
        "encoder.conv_in.weight": (160, 3, 3, 3),
        "encoder.down.0.downsample.conv.weight": (160, 160, 3, 3),
        "encoder.down.2.block.0.nin_shortcut.weight": (320, 160, 1, 1),
        "encoder.down.4.attn.1.qkv.weight": (1920, 640, 1, 1),
        "encoder.mid.attn_1.proj_out.bias": (640,),
        "encoder.norm_out.weight": (640,),
        "encoder.conv_out.weight": (32, 640, 3, 3),
        "decoder.conv_in.weight": (640, 32, 3, 3),
        "decoder.mid.block_2.norm2.bias": (640,),
        "decoder.up.4.attn.2.norm.weight": (640,),
        "decoder.up.3.block.0.conv1.weight": (320, 640, 3, 3),
        "decoder.up.1.upsample.conv.bias": (160,),
        "decoder.conv_out.weight": (3, 160, 3, 3),
        "quantize.embedding.weight": (4096, 32),
        "quantize.quant_resi.qresi_ls.3.weight": (32, 32, 3, 3),
        "quant_conv.weight": (32, 32, 3, 3),
        "post_quant_conv.bias": (32,),
    }
    assert {name: shapes.get(name) for name in expected} == expected
    assert not [name for name in shapes if "up.0.upsample" in name or "down.4.downsample" in name]
    inferred = infer_vqvae_config(model.state_dict())
    assert inferred == {key: model.config[key] for key in inferred}


@pytest.mark.parametrize(
    ("share", "name"), [(0, "3.weight"), (1, "qresi.weight"), (2, "qresi_ls.1.bias")]
)
def test_names_of_phi(share: int, name: str) -> None:
    vae = small_vae(share_quant_resi=share)
    assert f"quantize.quant_resi.{name}" in vae.state_dict()
    assert infer_vqvae_config(vae.state_dict())["share_quant_resi"] == share


def test_tick_rule_of_shared_phi() -> None:
    """Which phi the official code picks for each of S scales; 4 layers have narrower margins."""
    assert [phi_index(k, 10, 4) for k in range(10)] == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    assert [phi_index(k, 5, 4) for k in range(5)] == [0, 1, 2, 2, 3]
    assert [phi_index(k, 10, 6) for k in range(10)] == [0, 0, 1, 1, 2, 3, 3, 4, 5, 5]
    assert [phi_index(k, 5, 2) for k in range(5)] == [0, 0, 0, 1, 1]
    assert [phi_index(k, 10, 10) for k in range(10)] == list(range(10))
    vae = small_vae((1, 2, 3, 4, 5), share_quant_resi=4)
    layers = vae.quantize.quant_resi.layers()
    assert [layers.index(vae.quantize.phi(k)) for k in range(5)] == [0, 1, 2, 2, 3]


# ---- the tokeniser


def test_tokenizer_is_consistent() -> None:
    """Codes, partial sums, images and teacher-forcing inputs tell the same story."""
    vae = small_vae()
    images = torch.rand(3, 1, 8, 8) * 2 - 1
    codes = vae.img_to_idxBl(images)
    assert [tuple(c.shape) for c in codes] == [(3, n * n) for n in SIDES]
    rebuilt = vae.img_to_reconstructed_img(images, last_one=False)
    again = vae.idxBl_to_img(codes, last_one=False)
    for a, b in zip(rebuilt, again, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    f_hat = torch.zeros(3, 8, 4, 4)
    pooled = []
    for k, (side, index) in enumerate(zip(SIDES, codes, strict=True)):
        grid = vae.quantize.embedding(index).transpose(1, 2).reshape(3, 8, side, side)
        f_hat, after = vae.quantize.get_next_autoregressive_input(k, len(SIDES), f_hat, grid)
        pooled.append(after.flatten(2).transpose(1, 2))
    torch.testing.assert_close(vae.fhat_to_img(f_hat), rebuilt[-1], rtol=0, atol=1e-5)
    forced = vae.quantize.idxBl_to_var_input(codes)
    torch.testing.assert_close(forced, torch.cat(pooled[:-1], 1), rtol=0, atol=1e-6)


def test_quantizer_picks_the_nearest_code_of_the_pooled_rest() -> None:
    vae = small_vae((1, 2))
    features = torch.randn(2, 8, 2, 2)
    codes = vae.quantize.f_to_idxBl_or_fhat(features, to_fhat=False)
    distance = torch.cdist(features.mean((2, 3)), vae.quantize.embedding.weight)
    assert codes[0].flatten().tolist() == distance.argmin(1).tolist()


# ---- the plain sampling loop


@pytest.mark.parametrize(
    "settings", [{}, {"shared_aln": True}, {"attn_l2_norm": False}], ids=["plain", "shared", "dot"]
)
def test_cached_loop_equals_teacher_forcing(settings: dict[str, Any]) -> None:
    model = small_var(**settings)
    labels = torch.tensor([0, 3, 4])
    seen: list[torch.Tensor] = []
    drawn: list[torch.Tensor] = []
    generator = torch.Generator().manual_seed(2)

    def draw(logits: torch.Tensor, scale: int) -> torch.Tensor:
        assert scale == len(seen) and logits.dtype == torch.float32
        seen.append(logits.clone())
        drawn.append(torch.randint(24, logits.shape[:2], generator=generator))
        return drawn[-1]

    images = model.autoregressive_infer_cfg(3, labels, cfg=2.0, draw=draw)
    assert [tuple(x.shape) for x in seen] == [(3, n * n, 24) for n in SIDES]
    inputs = model.vae.quantize.idxBl_to_var_input(drawn)
    with_label = model(labels, inputs)
    without = model(torch.full_like(labels, 5), inputs)
    assert (with_label - without).abs().max() > 0.1  # the label matters in this random model
    ends = np.cumsum([n * n for n in SIDES])
    for k, logits in enumerate(seen):
        span = slice(ends[k] - SIDES[k] ** 2, ends[k])
        t = 2.0 * k / 3
        expected = (1 + t) * with_label[:, span] - t * without[:, span]
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    expected = (model.vae.idxBl_to_img(drawn)[0] + 1) / 2
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-5)


def test_later_scales_do_not_leak_into_earlier_ones() -> None:
    model = small_var()
    inputs = torch.randn(1, model.L - 1, 8)
    changed = inputs.clone()
    changed[:, 4:] += 1  # tokens 5.. : scales of side 3 and 4
    label = torch.tensor([1])
    a, b = model(label, inputs), model(label, changed)
    assert torch.equal(a[:, :5], b[:, :5])
    assert (a[:, 5:] - b[:, 5:]).abs().amin(dim=(0, 2)).max() > 0


def test_seed_labels_and_state() -> None:
    model = small_var()
    state = torch.random.get_rng_state()
    first = model.autoregressive_infer_cfg(4, None, g_seed=7, top_k=5, top_p=0.9)
    assert first.shape == (4, 1, 8, 8) and first.min() >= 0 and first.max() <= 1
    assert torch.equal(first, model.autoregressive_infer_cfg(4, None, 7, 1.5, 5, 0.9))
    assert torch.equal(state, torch.random.get_rng_state())
    assert not torch.equal(first, model.autoregressive_infer_cfg(4, None, 8, 1.5, 5, 0.9))
    unlabelled = model.autoregressive_infer_cfg(2, -1, g_seed=0)
    assert torch.equal(unlabelled, model.autoregressive_infer_cfg(2, torch.tensor([5, -3]), 0))
    smooth = model.autoregressive_infer_cfg(2, 1, g_seed=0, more_smooth=True)
    assert smooth.shape == (2, 1, 8, 8) and bool(torch.isfinite(smooth).all())
    assert not model.training and not smooth.requires_grad


def test_a_failed_call_leaves_nothing_behind() -> None:
    model = small_var()
    before = model.autoregressive_infer_cfg(2, 1, g_seed=0)

    def fail(logits: torch.Tensor, scale: int) -> torch.Tensor:
        if scale == 2:
            raise KeyboardInterrupt
        return logits.argmax(-1)

    with pytest.raises(KeyboardInterrupt):
        model.autoregressive_infer_cfg(3, 1, draw=fail)
    assert torch.equal(before, model.autoregressive_infer_cfg(2, 1, g_seed=0))


def test_progress_sees_every_scale() -> None:
    model = small_var()
    seen: list[tuple[int, torch.Tensor]] = []
    images = model.autoregressive_infer_cfg(
        2, 1, g_seed=0, progress=lambda k, f_hat: seen.append((k, model.vae.fhat_to_img(f_hat)))
    )
    assert [k for k, _ in seen] == [0, 1, 2, 3]
    torch.testing.assert_close((seen[-1][1] + 1) / 2, images)
    assert not torch.equal(seen[0][1], seen[-1][1])


def test_bad_requests_are_refused() -> None:
    model = small_var()
    with pytest.raises(ValueError, match=r"label 6 is beyond the 5 classes"):
        model.autoregressive_infer_cfg(2, torch.tensor([0, 6]))
    with pytest.raises(ValueError, match=r"label_B must be \(2,\), got \(3,\)"):
        model.autoregressive_infer_cfg(2, torch.tensor([0, 1, 2]))
    with pytest.raises(TypeError, match="integers"):
        model.autoregressive_infer_cfg(1, torch.tensor([0.5]))
    with pytest.raises(ValueError, match="top_p"):
        model.autoregressive_infer_cfg(1, 0, top_p=1.5)
    with pytest.raises(ValueError, match="patch_nums"):
        VAR(small_vae(), patch_nums=(1, 2, 4), embed_dim=32, num_heads=4, depth=1)


def test_filters_keep_what_they_should() -> None:
    logits = torch.tensor([[[2.0, 1.0, 1.0, 0.0, -1.0]]])
    kept = filter_top_k_top_p_(logits.clone(), 2, 0.0).isfinite().flatten().tolist()
    assert kept == [True, True, True, False, False]  # ties with the second largest stay
    probability = torch.tensor([0.1, 0.4, 0.3, 0.2])
    kept = filter_top_k_top_p_(probability.log(), 0, 0.65).isfinite().tolist()
    assert kept == [False, True, True, False]
    kept = filter_top_k_top_p_(probability.log(), 0, 1e-30).isfinite().tolist()
    assert kept == [False, True, False, False]  # the largest always stays
    assert filter_top_k_top_p_(probability.log(), 0, 0.0).isfinite().all()


# ---- loading


@pytest.fixture
def official_files(tmp_path: Path) -> tuple[Path, VAR, Path]:
    """Small random models saved as the official repository saves its own, buffers included."""
    vae = small_vae(PATCH_NUMS_256, share_quant_resi=4, norm_groups=32, ch=32, ch_mult=(1, 1))
    model = small_var(vae, depth=1, embed_dim=64, num_heads=1)
    vae_path = tmp_path / "vae_ch160v4096z32.pth"
    torch.save({**vae.state_dict(), "quantize.ema_vocab_hit_SV": torch.zeros(10, 24)}, vae_path)
    extra = {"lvl_1L": torch.zeros(1, 680, dtype=torch.long),
             "attn_bias_for_masking": torch.zeros(1, 1, 680, 680),
             "blocks.0.attn.zero_k_bias": torch.zeros(64)}  # fmt: skip
    path = tmp_path / "var_d1.pth"
    torch.save({**model.state_dict(), **extra}, path)
    return path, model, vae_path


def test_official_files_load(official_files: tuple[Path, VAR, Path]) -> None:
    path, model, vae_path = official_files
    loaded = load_var(path)  # finds its tokeniser beside it
    assert loaded.patch_nums == PATCH_NUMS_256 and loaded.num_classes == 5
    for mine, theirs in ((loaded, model), (loaded.vae, model.vae)):
        for name, value in theirs.state_dict().items():
            assert torch.equal(mine.state_dict()[name], value), name
    assert not any(p.is_meta or p.requires_grad for p in loaded.parameters())
    labels, inputs = torch.tensor([1]), torch.randn(1, 679, 8)
    assert torch.equal(loaded(labels, inputs), model(labels, inputs))
    vae_path.rename(vae_path.with_name("elsewhere.pth"))
    with pytest.raises(FileNotFoundError, match="vae_path"):
        load_var(path)
    assert load_var(path, vae_path.with_name("elsewhere.pth")).depth == 1


def test_unfit_files_are_explained(official_files: tuple[Path, VAR, Path]) -> None:
    path, model, vae_path = official_files
    state = dict(model.state_dict())
    del state["head.bias"]
    state["blocks.0.surplus"] = torch.zeros(1)
    state["head.weight"] = torch.zeros(23, 64)
    torch.save(state, path)
    with pytest.raises(ValueError, match="VAR") as error:
        load_var(path)
    for part in ("missing: head.bias", "unexpected: blocks.0.surplus", "head.weight: expected"):
        assert part in str(error.value)
    with pytest.raises(ValueError, match=r"no 'class_emb.weight' in this file"):
        load_var(vae_path)
    with pytest.raises(ValueError, match=r"no 'quantize.embedding.weight' in this file"):
        load_vqvae(path)
    odd = small_var(small_vae((1, 2)))
    torch.save(odd.state_dict(), path)
    with pytest.raises(ValueError, match="5 tokens fit no official patch_nums"):
        load_var(path)


def test_own_files_round_trip(tmp_path: Path) -> None:
    model = small_var(shared_aln=True)
    save_checkpoint(tmp_path / "vae.npz", model.vae.config, model.vae.state_dict())
    save_checkpoint(tmp_path / "var.npz", model.config, model.state_dict())
    loaded = load_var(tmp_path / "var.npz", tmp_path / "vae.npz")
    assert loaded.config == model.config and loaded.vae.config == model.vae.config
    a = model.autoregressive_infer_cfg(2, 1, draw=lambda logits, _: logits.argmax(-1))
    b = loaded.autoregressive_infer_cfg(2, 1, draw=lambda logits, _: logits.argmax(-1))
    torch.testing.assert_close(a, b, rtol=0, atol=0.02)  # weights are stored in fp16
    with pytest.raises(ValueError, match=r"no 'class_emb.weight' in this file"):
        load_var(tmp_path / "vae.npz")
    with pytest.raises(ValueError, match=r"no 'quantize.embedding.weight' in this file"):
        load_vqvae(tmp_path / "var.npz")


# ---- the embedded digit models


def test_embedded_tokenizer_rebuilds_held_out_digits() -> None:
    images, _ = digits()
    rebuilt = load_vqvae().img_to_reconstructed_img(images)[0]
    assert (rebuilt - images).square().mean() < 0.02  # the digits' own variance is 0.37


def test_embedded_models_fit_the_data_and_the_package() -> None:
    """Held-out cross-entropy per token in nats (uniform: 5.55), and the size of the files."""
    images, labels = digits()
    model, draft = load_var(), load_var_draft()
    codes = model.vae.img_to_idxBl(images)
    inputs, target = model.vae.quantize.idxBl_to_var_input(codes), torch.cat(codes, 1)
    loss, draft_loss = (
        torch.nn.functional.cross_entropy(m(labels, inputs).transpose(1, 2), target).item()
        for m in (model, draft)
    )
    assert loss < 2.6 and loss < draft_loss < 2.9
    assert draft.patch_nums == model.patch_nums and draft.V == model.V
    assert sum(p.numel() for p in draft.parameters()) < 0.2 * sum(
        p.numel() for p in model.parameters()
    )
    weights = Path(load_var.__code__.co_filename).parent / "weights"
    assert sum(f.stat().st_size for f in weights.glob("v*_digits*.npz")) < 6e6


def test_embedded_samples_are_the_digits_asked_for() -> None:
    from pixleap.models import load_classifier

    labels = torch.arange(10).repeat(10)
    images = load_var().autoregressive_infer_cfg(100, labels, g_seed=0, cfg=1.5)
    logits = load_classifier()(images * 2 - 1)
    assert (logits.argmax(1) == labels).float().mean() >= 0.95
