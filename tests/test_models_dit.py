"""DiT: official names, the forward pass, guidance, schedule, loading, and the embedded digits."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from pixleap.decode import diffusion, noise_schedule  # noqa: E402
from pixleap.models import DiT, load_classifier, load_digits_dit, load_dit  # noqa: E402
from pixleap.models.checkpoint import save_checkpoint  # noqa: E402
from pixleap.models.dit_load import EMBEDDED, infer_dit_config  # noqa: E402


def small_dit(**settings: Any) -> DiT:
    """A random model whose gates are far from 0, so that every layer matters."""
    torch.manual_seed(0)
    base = {"input_size": 6, "patch_size": 2, "in_channels": 3, "hidden_size": 16, "depth": 2,
            "num_heads": 2, "num_classes": 5}  # fmt: skip
    model = DiT(**{**base, **settings})
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn(value.shape), alpha=0.2)
    return model.eval().requires_grad_(False)


def inputs(model: DiT, n: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    x = torch.randn(n, model.in_channels, model.input_size, model.input_size)
    return x, torch.linspace(0.5, 999, n), torch.arange(n) % model.num_classes


# ---- names and shapes of the official checkpoints


def official_shapes(
    *, width: int, depth: int, side: int, patch: int, channels: int, classes: int
) -> dict[str, tuple[int, ...]]:
    """Names and shapes as facebookresearch/DiT saves them (learn_sigma, CFG, mlp_ratio 4)."""
    shapes: dict[str, tuple[int, ...]] = {
        "pos_embed": (1, side * side, width),
        "x_embedder.proj.weight": (width, channels, patch, patch),
        "x_embedder.proj.bias": (width,),
        "t_embedder.mlp.0.weight": (width, 256),
        "t_embedder.mlp.0.bias": (width,),
        "t_embedder.mlp.2.weight": (width, width),
        "t_embedder.mlp.2.bias": (width,),
        "y_embedder.embedding_table.weight": (classes + 1, width),
        "final_layer.linear.weight": (patch * patch * 2 * channels, width),
        "final_layer.linear.bias": (patch * patch * 2 * channels,),
        "final_layer.adaLN_modulation.1.weight": (2 * width, width),
        "final_layer.adaLN_modulation.1.bias": (2 * width,),
    }
    for i in range(depth):
        shapes |= {
            f"blocks.{i}.attn.qkv.weight": (3 * width, width),
            f"blocks.{i}.attn.qkv.bias": (3 * width,),
            f"blocks.{i}.attn.proj.weight": (width, width),
            f"blocks.{i}.attn.proj.bias": (width,),
            f"blocks.{i}.mlp.fc1.weight": (4 * width, width),
            f"blocks.{i}.mlp.fc1.bias": (4 * width,),
            f"blocks.{i}.mlp.fc2.weight": (width, 4 * width),
            f"blocks.{i}.mlp.fc2.bias": (width,),
            f"blocks.{i}.adaLN_modulation.1.weight": (6 * width, width),
            f"blocks.{i}.adaLN_modulation.1.bias": (6 * width,),
        }
    return shapes


def test_names_and_shapes_are_the_official_ones() -> None:
    model = small_dit()
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert shapes == official_shapes(width=16, depth=2, side=3, patch=2, channels=3, classes=5)


@pytest.mark.parametrize(
    ("width", "depth", "heads", "side", "patch", "millions"),
    [  # and the parameters as the paper's table rounds them
        (384, 12, 6, 16, 2, 33),  # S/2 at 256 px: a latent of 32
        (768, 12, 12, 8, 4, 130),  # B/4
        (1024, 24, 16, 4, 8, 458),  # L/8
        (1152, 28, 16, 16, 2, 675),  # XL/2 at 256 px
        (1152, 28, 16, 32, 2, 675),  # XL/2 at 512 px
    ],
    ids=["S/2", "B/4", "L/8", "XL/2", "XL/2-512"],
)
def test_official_configs_are_read_off_the_shapes(
    width: int, depth: int, heads: int, side: int, patch: int, millions: int
) -> None:
    shapes = official_shapes(
        width=width, depth=depth, side=side, patch=patch, channels=4, classes=1000
    )
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    config = infer_dit_config(state)
    expected = {"input_size": side * patch, "patch_size": patch, "in_channels": 4,
                "hidden_size": width, "depth": depth, "num_heads": heads, "mlp_ratio": 4.0,
                "class_dropout_prob": 0.1, "num_classes": 1000, "learn_sigma": True}  # fmt: skip
    assert config == expected
    model = load_dit(state)
    assert model.config == {**config, "diffusion": model.diffusion}
    assert {k: tuple(v.shape) for k, v in model.state_dict().items()} == shapes
    numbers = sum(value.numel() for value in model.state_dict().values())
    assert numbers == pytest.approx(millions * 1e6, rel=0.01)
    assert model.diffusion["prediction_type"] == "epsilon"
    side_px = side * patch
    out = model(torch.empty(2, 4, side_px, side_px, device="meta"), 7.0,
                torch.empty(2, dtype=torch.long, device="meta"))  # fmt: skip
    assert out.shape == (2, 8, side_px, side_px)


# ---- the forward pass


def numpy_forward(model: DiT, x: np.ndarray, t: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The model written down a second time, in float64 and with loops over images and heads."""
    w = {name: value.double().numpy() for name, value in model.state_dict().items()}
    p, heads = model.patch_size, model.config["num_heads"]
    side, width = model.input_size // p, model.config["hidden_size"]

    def linear(h: np.ndarray, name: str) -> np.ndarray:
        return h @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def silu(h: np.ndarray) -> np.ndarray:
        return h / (1 + np.exp(-h))

    def gelu(h: np.ndarray) -> np.ndarray:
        return h / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))

    def norm(h: np.ndarray, shift: np.ndarray, scale: np.ndarray) -> np.ndarray:
        h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-6)
        return h * (1 + scale) + shift

    images = []
    for image, time, label in zip(x.astype(np.float64), t, y, strict=True):
        angles = time * 10000.0 ** (-np.arange(128) / 128)
        c = np.concatenate([np.cos(angles), np.sin(angles)])
        c = linear(silu(linear(c, "t_embedder.mlp.0")), "t_embedder.mlp.2")
        c = silu(c + w["y_embedder.embedding_table.weight"][label])
        kernel = w["x_embedder.proj.weight"].reshape(width, -1)
        h = np.empty((side * side, width))
        for i in range(side):
            for j in range(side):
                patch = image[:, i * p : (i + 1) * p, j * p : (j + 1) * p].reshape(-1)
                h[i * side + j] = kernel @ patch + w["x_embedder.proj.bias"]
        h += w["pos_embed"][0]
        for b in range(len(model.blocks)):
            six = np.split(linear(c, f"blocks.{b}.adaLN_modulation.1"), 6)
            q, k, v = np.split(linear(norm(h, six[0], six[1]), f"blocks.{b}.attn.qkv"), 3, axis=1)
            out = []
            for part in np.split(np.arange(width), heads):
                scores = q[:, part] @ k[:, part].T / math.sqrt(len(part))
                weights = np.exp(scores - scores.max(1, keepdims=True))
                out.append(weights / weights.sum(1, keepdims=True) @ v[:, part])
            h = h + six[2] * linear(np.concatenate(out, axis=1), f"blocks.{b}.attn.proj")
            hidden = gelu(linear(norm(h, six[3], six[4]), f"blocks.{b}.mlp.fc1"))
            h = h + six[5] * linear(hidden, f"blocks.{b}.mlp.fc2")
        shift, scale = np.split(linear(c, "final_layer.adaLN_modulation.1"), 2)
        patches = linear(norm(h, shift, scale), "final_layer.linear")
        image = np.empty((model.out_channels, side * p, side * p))
        for i in range(side):
            for j in range(side):
                patch = patches[i * side + j].reshape(p, p, -1).transpose(2, 0, 1)
                image[:, i * p : (i + 1) * p, j * p : (j + 1) * p] = patch
        images.append(image)
    return np.stack(images)


@pytest.mark.parametrize("learn_sigma", [True, False])
def test_forward_equals_numpy(learn_sigma: bool) -> None:
    model = small_dit(learn_sigma=learn_sigma, mlp_ratio=3.0)
    x, t, y = inputs(model)
    y[-1] = model.num_classes  # no label
    expected = numpy_forward(model, x.numpy(), t.numpy(), y.numpy())
    assert expected.shape == (3, 6 if learn_sigma else 3, 6, 6) and abs(expected).max() > 1
    np.testing.assert_allclose(model(x, t, y).numpy(), expected, rtol=1e-3, atol=1e-3)
    exact = model.double()(x.double(), t, y).numpy()
    np.testing.assert_allclose(exact, expected, rtol=1e-10, atol=1e-10)


def test_positions_and_times() -> None:
    """First half of the width: column, second half: row; a time for all or for each image."""
    model = small_dit()
    omega = 10000.0 ** (-np.arange(4) / 4)
    for token in range(9):
        row, column = divmod(token, 3)
        expected = np.concatenate([f(k * omega) for k in (column, row) for f in (np.sin, np.cos)])
        np.testing.assert_allclose(model.pos_embed[0, token].numpy(), expected, atol=1e-6)
    x, _, y = inputs(model)
    assert torch.equal(model(x, 41.5, y), model(x, torch.full((3,), 41.5), y))
    assert not torch.allclose(model(x, 41.5, y), model(x, 41, y), atol=1e-4)


def test_a_new_model_is_the_identity_with_zero_output() -> None:
    model = DiT(6, 2, 3, 16, 2, 2, num_classes=5).eval()
    x, t, y = inputs(model)
    assert torch.equal(model(x, t, y), torch.zeros(3, 6, 6, 6))
    tokens, c = model.embed(x), model.condition(t, y)
    assert tokens.abs().max() > 0.1 and c.abs().max() > 0.001
    for block in model.blocks:
        assert torch.equal(block(tokens, c), tokens)


def test_labels_are_dropped_in_training_only() -> None:
    model = small_dit(class_dropout_prob=1.0)
    x, t, y = inputs(model)
    without = model(x, t, torch.full_like(y, 5))
    assert not torch.allclose(model(x, t, y), without, atol=1e-3)
    assert torch.equal(model.train()(x, t, y), without)
    assert small_dit(class_dropout_prob=0.0).y_embedder.embedding_table.weight.shape == (5, 16)


@pytest.mark.parametrize("guided", [None, 2])
def test_guidance(guided: int | None) -> None:
    model = small_dit()
    x, t, y = inputs(model)
    none = torch.full_like(y, 5)
    both = model.forward_with_cfg(
        torch.cat((x, torch.full_like(x, 9))), t.repeat(2), torch.cat((y, none)), 2.5, guided
    )
    cond, uncond = model(x, t, y), model(x, t, none)
    first = 3 if guided is None else guided
    mixed = uncond + 2.5 * (cond - uncond)
    expected = torch.cat((
        torch.cat((mixed[:, :first], cond[:, first:]), 1),
        torch.cat((mixed[:, :first], uncond[:, first:]), 1),
    ))  # fmt: skip
    torch.testing.assert_close(both, expected, rtol=0, atol=1e-4)


# ---- schedule and DDIM loop


def test_schedule() -> None:
    schedule = noise_schedule(small_dit())
    betas = np.linspace(1e-4, 0.02, 1000)
    points = [schedule.at_time(t) for t in range(1000)]
    np.testing.assert_allclose([p.alpha**2 for p in points], np.cumprod(1 - betas), rtol=1e-12)
    middle = math.sqrt(points[300].ratio * points[301].ratio)
    assert schedule.at_time(300.5).ratio == pytest.approx(middle, rel=1e-12)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("cfg_scale", [1.0, 3.0])
def test_ddim_solves_what_it_can_solve_exactly(kind: str, cfg_scale: float) -> None:
    """For data x0 = +-r the exact score is known: DDIM tends to the flow's solution sign(x) r."""
    model = small_dit(diffusion={"prediction_type": kind})
    calls: list[int] = []

    def exact(x: torch.Tensor, t: Any, y: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        point = noise_schedule(model).at_time(float(t))
        alpha, sigma = point.alpha, point.sigma
        x0 = 0.5 * torch.tanh(0.5 * alpha * x / sigma**2)
        eps = (x - alpha * x0) / sigma
        out = eps if kind == "epsilon" else alpha * eps - sigma * x0
        return torch.cat((out, torch.full_like(out, 1e6)), dim=1)  # a learnt variance

    model.forward = exact  # type: ignore[method-assign]
    noise = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(3))
    noise += 0.3 * noise.sign()
    seen: list[tuple[int, int]] = []
    out = diffusion(model, torch.tensor([0, 1]), solver="ddim", steps=40, sigmas="trailing",
                    guidance_scale=cfg_scale, noise=noise,
                    progress=lambda done, total: seen.append((done, total)))  # fmt: skip
    torch.testing.assert_close(out, 0.5 * noise.sign(), rtol=0, atol=1e-3)
    assert calls == [2 if cfg_scale == 1 else 4] * 40
    assert seen == [(i + 1, 40) for i in range(40)]


def test_ddim_equals_diffusers() -> None:
    scheduler_class = pytest.importorskip("diffusers", reason="diffusers: an optional peer")
    model = small_dit(diffusion={"prediction_type": "v_prediction"}, learn_sigma=False)
    scheduler = scheduler_class.DDIMScheduler(
        **model.diffusion, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True
    )
    scheduler.set_timesteps(10)
    x, _, y = inputs(model)
    ours = diffusion(model, y, solver="ddim", steps=10, sigmas="trailing", noise=x)
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, t, y), t, x).prev_sample
    torch.testing.assert_close(ours, x, rtol=1e-4, atol=1e-4)


# ---- loading


def test_training_files_give_their_ema(tmp_path: Path) -> None:
    model, other = small_dit(), small_dit()
    for value in other.parameters():
        value.add_(1)
    ema = {f"module.{k}": v for k, v in model.state_dict().items()}
    path = tmp_path / "0400000.pt"
    torch.save({"model": other.state_dict(), "ema": ema, "opt": {}, "args":
                argparse.Namespace(model="DiT-S/2")}, path)  # fmt: skip
    loaded = load_dit(path, num_heads=2)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    x, t, y = inputs(model)
    assert torch.equal(loaded(x, t, y), model(x, t, y))
    torch.save(model.state_dict(), path)  # bare, as the published ones
    assert torch.equal(load_dit(path, num_heads=2)(x, t, y), model(x, t, y))
    plain = small_dit(learn_sigma=False)
    assert torch.equal(load_dit(plain.state_dict(), num_heads=2)(x, t, y), plain(x, t, y))


def test_own_files_round_trip(tmp_path: Path) -> None:
    model = small_dit(diffusion={"prediction_type": "v_prediction"}, learn_sigma=False)
    save_checkpoint(tmp_path / "dit.npz", model.config, model.state_dict())
    loaded = load_dit(tmp_path / "dit.npz")
    assert loaded.config == model.config
    assert loaded.diffusion["prediction_type"] == "v_prediction"
    x, t, y = inputs(model)
    torch.testing.assert_close(loaded(x, t, y), model(x, t, y), rtol=0, atol=0.05)  # fp16 weights


def test_unfit_state_dicts_are_explained() -> None:
    state = dict(small_dit().state_dict())
    with pytest.raises(ValueError, match=r"num_heads is not in the file, and width 16"):
        load_dit(state)
    changed = {**state, "blocks.0.surplus": torch.zeros(1), "blocks.1.attn.qkv.bias":
               torch.zeros(7)}  # fmt: skip
    del changed["t_embedder.mlp.0.bias"]
    with pytest.raises(ValueError, match="DiT") as error:
        load_dit(changed, num_heads=2)
    for part in ("missing: t_embedder.mlp.0.bias", "unexpected: blocks.0.surplus",
                 "wrong shape: blocks.1.attn.qkv.bias: expected (48,), got (7,)"):  # fmt: skip
        assert part in str(error.value)
    with pytest.raises(ValueError, match=r"not a DiT state dict: missing x_embedder.proj.weight"):
        load_dit({"head.weight": torch.zeros(2)})
    with pytest.raises(ValueError, match="holds no state dict"):
        load_dit({"args": 1})
    with pytest.raises(ValueError, match=r"final_layer.linear.weight must have 12 rows, or twice"):
        load_dit({**state, "final_layer.linear.weight": torch.zeros(36, 16)}, num_heads=2)
    with pytest.raises(ValueError, match="a square of tokens, got 8"):
        load_dit({**state, "pos_embed": torch.zeros(1, 8, 16)}, num_heads=2)


def test_bad_requests_are_refused() -> None:
    model = small_dit()
    x, t, y = inputs(model)
    with pytest.raises(ValueError, match=r"x must be \(N, 3, 6, 6\), got \(3, 1, 6, 6\)"):
        model(x[:, :1], t, y)
    with pytest.raises(ValueError, match=r"x must be \(N, 3, 6, 6\), got \(3, 3, 4, 6\)"):
        model(x[:, :, :4], t, y)
    with pytest.raises(ValueError, match=r"t must be a number or \(3,\), got \(2,\)"):
        model(x, t[:2], y)
    with pytest.raises(ValueError, match=r"y must be \(3,\) as x has 3 images, got \(2,\)"):
        model(x, t, y[:2])
    with pytest.raises(ValueError, match=r"labels y must be 0 to 5 \(5: no label\), got 6"):
        model(x, t, torch.tensor([0, 6, 1]))
    with pytest.raises(ValueError, match=r"labels y must be 0 to 5 .*, got -1"):
        model(x, t, torch.tensor([0, -1, 1]))
    with pytest.raises(ValueError, match=r"labels y must be 0 to 4, got 5"):
        small_dit(class_dropout_prob=0.0)(x, t, torch.tensor([0, 5, 1]))
    with pytest.raises(TypeError, match=r"y must hold integers, got torch.float32"):
        model(x, t, y.float())
    with pytest.raises(ValueError, match="an even number of images, got 3"):
        model.forward_with_cfg(x, t, y, 2.0)
    with pytest.raises(ValueError, match="guided_channels must be 0 to 3, got 4"):
        model.forward_with_cfg(x[:2], t[:2], y[:2], 2.0, 4)
    with pytest.raises(ValueError, match="input_size=7 is not a multiple of patch_size=2"):
        DiT(7, 2)
    with pytest.raises(ValueError, match="multiple of num_heads=3 and of 4, got 16"):
        DiT(8, 2, hidden_size=16, num_heads=3)
    with pytest.raises(ValueError, match="'steps' expected >= 1, got 0"):
        diffusion(model, y, steps=0)
    with pytest.raises(ValueError, match=r"'noise' expected shape \(3, 3, 6, 6\), got \(1, 3, 6"):
        diffusion(model, y, noise=x[:1])
    odd = small_dit(diffusion={"prediction_type": "eps"})
    with pytest.raises(ValueError, match=r"'prediction_type' expected one of epsilon, .*'eps'"):
        diffusion(odd, y)
    bare = small_dit(class_dropout_prob=0.0)
    with pytest.raises(ValueError, match="labels y must be 0 to 4"):
        diffusion(bare, y, guidance_scale=2.0)  # guidance needs a row for "no label"


# ---- the embedded digits


def test_embedded_samples_are_the_digits_asked_for() -> None:
    model = load_digits_dit()
    assert EMBEDDED.stat().st_size <= 2e6
    assert sum(p.numel() for p in model.parameters()) <= 1e6
    labels = torch.arange(10).repeat(10)
    images = diffusion(model, labels, steps=20, guidance_scale=2.0, seed=0)
    accuracy = (load_classifier()(images.clamp(-1, 1)).argmax(1) == labels).double().mean()
    assert accuracy >= 0.9
    again = diffusion(model, labels[:2], steps=20, guidance_scale=2.0, seed=0)
    assert again.shape == (2, 1, 28, 28) and not images.requires_grad
    # The same noise in a smaller batch; torch's GEMM may round otherwise.
    assert torch.allclose(again, images[:2], atol=1e-3)
    for solver in ("unipc", "euler_ancestral"):
        images = diffusion(model, labels, solver=solver, steps=20, guidance_scale=2.0, seed=0)
        accuracy = (load_classifier()(images.clamp(-1, 1)).argmax(1) == labels).double().mean()
        assert accuracy >= 0.9
