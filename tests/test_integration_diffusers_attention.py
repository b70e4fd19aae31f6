"""Native attention in diffusers' models: the values of its own processors, and native indeed."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import pixleap as px
from pixleap.integrations import _attention

diffusers = pytest.importorskip("diffusers", reason="the diffusers extra is not installed")
from diffusers.models import attention_processor as processors  # noqa: E402

apply_attention = px.integrations.diffusers.apply_attention
remove_attention = px.integrations.diffusers.remove_attention


def unet() -> tuple[Any, dict[str, Any]]:
    model = diffusers.UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), layers_per_block=1,
        cross_attention_dim=32, attention_head_dim=(4, 8), norm_num_groups=8,
    )  # fmt: skip
    return model, {
        "sample": torch.randn(2, 4, 16, 16),
        "timestep": torch.tensor([3, 700]),
        "encoder_hidden_states": torch.randn(2, 7, 32),
        "encoder_attention_mask": torch.tensor([[1] * 7, [1, 1, 1, 0, 0, 0, 0]]).bool(),
    }


def dit() -> tuple[Any, dict[str, Any]]:
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=3, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2,
        sample_size=8, patch_size=2, num_embeds_ada_norm=1000, norm_num_groups=4,
    )  # fmt: skip
    return model, {
        "hidden_states": torch.randn(2, 4, 8, 8),
        "timestep": torch.tensor([3, 700]),
        "class_labels": torch.tensor([1, 4]),
    }


def pixart() -> tuple[Any, dict[str, Any]]:
    model = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=8, num_layers=2,
        sample_size=8, cross_attention_dim=24, caption_channels=16, norm_num_groups=4,
        use_additional_conditions=False,
    )  # fmt: skip
    return model, {
        "hidden_states": torch.randn(2, 4, 8, 8),
        "timestep": torch.tensor([3, 700]),
        "encoder_hidden_states": torch.randn(2, 6, 16),
        "encoder_attention_mask": torch.tensor([[1] * 6, [1, 1, 0, 0, 0, 0]]).float(),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


def sd3() -> tuple[Any, dict[str, Any]]:
    model = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=3, attention_head_dim=8,
        num_attention_heads=4, joint_attention_dim=32, caption_projection_dim=32,
        pooled_projection_dim=16, out_channels=4, dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip
    return model, {
        "hidden_states": torch.randn(2, 4, 8, 8),
        "timestep": torch.tensor([3, 700]),
        "encoder_hidden_states": torch.randn(2, 9, 32),
        "pooled_projections": torch.randn(2, 16),
    }


def flux() -> tuple[Any, dict[str, Any]]:
    model = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    return model, {
        "hidden_states": torch.randn(2, 16, 4),
        "timestep": torch.tensor([0.3, 0.7]),
        "encoder_hidden_states": torch.randn(2, 5, 32),
        "pooled_projections": torch.randn(2, 32),
        "img_ids": torch.cartesian_prod(*[torch.arange(n).float() for n in (1, 4, 4)]),
        "txt_ids": torch.zeros(5, 3),
    }


MODELS: dict[str, tuple[Callable[[], Any], int]] = {
    "unet": (unet, 8), "dit": (dit, 2), "pixart": (pixart, 4), "sd3": (sd3, 4), "flux": (flux, 2),
}  # fmt: skip


def build(name: str) -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(4)
    model, inputs = MODELS[name][0]()
    with torch.no_grad():
        for p in model.parameters():  # zero-initialised outputs would hide everything
            p.add_(torch.randn_like(p) * 0.02)
    return model.eval().requires_grad_(False), inputs


def cast(x: Any, dtype: torch.dtype) -> Any:
    floating = isinstance(x, Tensor) and x.is_floating_point() and x.ndim > 1
    return x.to(dtype) if floating else x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_models_keep_their_values(
    name: str, dtype: torch.dtype, calls: list[tuple[int, ...]]
) -> None:
    model, inputs = build(name)
    exact = model.double()(**{k: cast(v, torch.float64) for k, v in inputs.items()}).sample
    model = model.to(dtype)
    inputs = {k: cast(v, dtype) for k, v in inputs.items()}
    before = model(**inputs).sample
    state = list(model.state_dict())
    assert not calls
    assert apply_attention(model) is model
    after = model(**inputs).sample
    assert len(calls) == MODELS[name][1] and list(model.state_dict()) == state
    scale = exact.abs().max().item()
    off = [(x.double() - exact).norm().item() for x in (before, after)]
    if dtype == torch.float32:
        assert (after - before).abs().max().item() <= 1e-5 * scale
    else:  # what roundings of many layers make of it: no more than bfloat16 costs diffusers
        assert (after - before).norm().item() <= max(1e-2 * exact.norm().item(), off[0])
    assert off[1] <= 1.1 * off[0] + 1e-6 * exact.norm().item()
    remove_attention(model)
    calls.clear()
    assert torch.equal(model(**inputs).sample, before) and not calls


ATTENTIONS: dict[str, dict[str, Any]] = {
    "groups, residual, rescale": {
        "norm_num_groups": 4, "residual_connection": True, "rescale_output_factor": 1.7,
        "bias": True, "upcast_softmax": True, "spatial_norm_dim": None,
    },
    "spatial norm": {"spatial_norm_dim": 6},
    "layer norm": {"qk_norm": "layer_norm"},
    "rms norm": {"qk_norm": "rms_norm"},
    "cross": {"cross_attention_dim": 24, "cross_attention_norm": "layer_norm"},
}  # fmt: skip


@pytest.mark.parametrize("name", ATTENTIONS)
def test_options_of_the_attention_module(name: str, calls: list[tuple[int, ...]]) -> None:
    torch.manual_seed(2)
    options = ATTENTIONS[name]
    attn = processors.Attention(32, heads=4, dim_head=8, **options).eval().requires_grad_(False)
    images = "norm_num_groups" in options or "spatial_norm_dim" in options
    x = torch.randn(2, 32, 4, 4) if images else torch.randn(2, 11, 32)
    extra: dict[str, Any] = {}
    if name == "spatial norm":
        extra["temb"] = torch.randn(2, 6, 4, 4)
    if name == "cross":
        extra["encoder_hidden_states"] = torch.randn(2, 5, 24)
    keys = 5 if name == "cross" else 16 if images else 11
    mask = torch.zeros(2, 1, keys).masked_fill_(torch.rand(2, 1, keys) < 0.3, -1e4)
    wanted = [attn(x, **extra), attn(x, **extra, attention_mask=mask)]
    attn.set_processor(px.integrations.diffusers.attention_processor())
    assert isinstance(attn.processor, processors.AttnProcessor2_0)
    got = [attn(x, **extra), attn(x, **extra, attention_mask=mask)]
    assert len(calls) == 2
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_output_is_laid_out_for_the_projection() -> None:
    projection = torch.randn(2, 5, 3 * 24)
    q, k, v = (x.unflatten(-1, (3, 8)).transpose(1, 2) for x in projection.chunk(3, -1))
    out = _attention.scaled_dot_product_attention(q, k, v)
    assert out is not None
    joined = out.transpose(1, 2).reshape(2, 5, 24)
    assert joined.data_ptr() == out.data_ptr()
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(out, want, atol=2e-6, rtol=0)


def test_what_the_op_does_not_cover_goes_to_torch(calls: list[tuple[int, ...]]) -> None:
    sdpa = _attention.scaled_dot_product_attention
    q, k, v = torch.randn(3, 1, 4, 6, 8)
    cases: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((q.clone().requires_grad_(), k, v), {}),
        ((q, k, v), {"dropout_p": 0.1}),
        ((q.double(), k.double(), v.double()), {}),
        ((q[0], k[0], v[0]), {}),
        ((q, k[..., :4], v), {}),
        ((q, k, v[..., :4]), {}),
        ((q.repeat(1, 1, 1, 40), k.repeat(1, 1, 1, 40), v.repeat(1, 1, 1, 40)), {}),
        ((q[:, :, :3], k, v), {"is_causal": True}),
        ((q, k[:, :2], v[:, :2]), {}),
        ((q, k, v, torch.zeros(6, 6, dtype=torch.float64)), {}),
        ((torch.empty_like(q, device="meta"), k, v), {}),
    ]
    for args, kwargs in cases:
        assert sdpa(*args, **kwargs) is None
    assert not calls
    for args, kwargs in [
        ((q, k, v), {"is_causal": True}),
        ((q, k[:, :2], v[:, :2]), {"enable_gqa": True, "scale": 0.3}),
        ((q, k, v, torch.rand(6, 6) < 0.7), {}),
        ((q.bfloat16(), k.bfloat16(), v.bfloat16(), torch.randn(1, 1, 6, 6).bfloat16()), {}),
        ((q.mT.contiguous().mT, k, v), {}),
    ]:
        got, want = sdpa(*args, **kwargs), torch.nn.functional.scaled_dot_product_attention(
            *args, **kwargs
        )  # fmt: skip
        assert got is not None and got.dtype == want.dtype
        close = 2e-2 if want.dtype == torch.bfloat16 else 2e-6
        torch.testing.assert_close(got, want, atol=close, rtol=0)
    assert len(calls) == 5


def test_autocast_and_gradients(calls: list[tuple[int, ...]]) -> None:
    model, inputs = build("dit")
    with torch.autocast("cpu", torch.bfloat16):
        before = model(**inputs).sample
        after = apply_attention(model)(**inputs).sample
    assert len(calls) == 2 and after.dtype == before.dtype
    torch.testing.assert_close(after, before, atol=2e-2 * before.abs().max().item(), rtol=0)
    calls.clear()
    model.requires_grad_(True)
    model(**inputs).sample.square().mean().backward()
    assert not calls
    grads = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    remove_attention(model)(**inputs).sample.square().mean().backward()
    for a, p in zip(grads, model.parameters(), strict=True):
        assert torch.equal(a, p.grad)
    apply_attention(model)
    with torch.no_grad():
        model(**inputs)
    assert calls


def test_pipelines_and_layers(calls: list[tuple[int, ...]]) -> None:
    model, inputs = build("dit")
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    pipe = diffusers.DiTPipeline(model, vae, diffusers.DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)

    def images() -> Any:
        return pipe(
            [1, 2], num_inference_steps=3, generator=torch.manual_seed(1), output_type="np"
        ).images

    before = images()
    assert apply_attention(pipe) is pipe
    assert abs(images() - before).max() < 1e-4
    assert len(calls) == 3 * 2 + 1  # a step's two layers, the decoder's one
    remove_attention(pipe)
    calls.clear()
    apply_attention(model, layers=["transformer_blocks.1."])
    model(**inputs)
    assert len(calls) == 1
    with pytest.raises(ValueError, match=r"attention layers with a processor named \('up',\)"):
        apply_attention(model, layers=["up"])
    with pytest.raises(ValueError, match="with a processor, got none in Linear"):
        apply_attention(torch.nn.Linear(1, 1))


def test_processors_keep_class_state_and_signature(calls: list[tuple[int, ...]]) -> None:
    make = px.integrations.diffusers.attention_processor
    adapter = processors.IPAdapterAttnProcessor2_0(32, 16, num_tokens=(4,))
    fast = make(adapter)
    assert isinstance(fast, processors.IPAdapterAttnProcessor2_0)
    assert fast.to_k_ip[0].weight is adapter.to_k_ip[0].weight
    assert list(fast.state_dict()) == list(adapter.state_dict())
    for other in (copy.deepcopy(make()), copy.copy(make()), make(make())):
        attn = processors.Attention(16, heads=2, dim_head=8, processor=other).eval()
        calls.clear()
        with torch.no_grad():
            attn(torch.randn(1, 3, 16))
        assert len(calls) == 1
    assert isinstance(pickle.loads(pickle.dumps(make())), processors.AttnProcessor2_0)
    with pytest.raises(ValueError, match="diffusers' attention function, got AttnProcessor"):
        make(processors.AttnProcessor())
    attn.set_processor(processors.AttnProcessor())
    with pytest.raises(ValueError, match="expected attention layers with a processor"):
        apply_attention(attn)


def test_perturbed_attention_guidance(calls: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 9, 16)
    for processor in (
        processors.PAGIdentitySelfAttnProcessor2_0(),
        processors.PAGCFGIdentitySelfAttnProcessor2_0(),
    ):
        attn = processors.Attention(16, heads=2, dim_head=8).eval().requires_grad_(False)
        batch = x if "CFG" not in type(processor).__name__ else torch.cat([x, x[:1]])
        attn.set_processor(processor)
        want = attn(batch)
        calls.clear()
        attn.set_processor(px.integrations.diffusers.attention_processor(processor))
        torch.testing.assert_close(attn(batch), want, atol=1e-5, rtol=0)
        assert len(calls) == 1  # the perturbed part has no attention to compute


def test_compiled_models_keep_torchs_attention() -> None:
    model, inputs = build("dit")
    want = model(**inputs).sample
    compiled = torch.compile(apply_attention(model), backend="eager")
    torch.testing.assert_close(compiled(**inputs).sample, want, atol=1e-5, rtol=0)


def rolled_windows(attn: Any, x: Tensor, rows: int, columns: int, quarter: int) -> Tensor:
    """HiDiffusion's way: roll, partition, attend, reverse, roll back."""
    high, wide = rows // 2, columns // 2
    shift = high // 4 * quarter, wide // 4 * quarter
    grid = x.unflatten(1, (rows, columns)).roll((-shift[0], -shift[1]), (1, 2))
    windows = grid.unflatten(2, (2, wide)).unflatten(1, (2, high)).permute(0, 1, 3, 2, 4, 5)
    y = attn(windows.reshape(-1, high * wide, x.shape[2]))
    y = y.view(len(x), 2, 2, high, wide, -1).permute(0, 1, 3, 2, 4, 5).flatten(1, 2).flatten(2, 3)
    return y.roll(shift, (1, 2)).flatten(1, 2)


@pytest.mark.parametrize("size", [(16, 16), (8, 24)])
def test_window_attention(size: tuple[int, int], calls: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    attn = processors.Attention(16, heads=2, dim_head=8).eval().requires_grad_(False)
    x, (rows, columns) = torch.randn(2, size[0] * size[1], 16), size
    wanted = [rolled_windows(attn, x, rows, columns, quarter) for quarter in range(4)]
    whole = attn(x)
    latent = () if rows == columns else (8 * rows, 8 * columns)  # any multiple of the grid
    masks = px.integrations.diffusers.window_masks(
        *latent, generator=torch.Generator().manual_seed(5)
    )
    attn.set_processor(px.integrations.diffusers.attention_processor(mask=masks))
    draws = torch.Generator().manual_seed(5)
    seen = set()
    for _ in range(40):
        drawn = torch.rand(1, generator=draws).item()
        quarter = 0 if drawn <= 0.25 else 1 if drawn <= 0.5 else 2 if drawn <= 0.75 else 3
        torch.testing.assert_close(attn(x), wanted[quarter], atol=2e-6, rtol=0)
        seen.add(quarter)
    assert seen == {0, 1, 2, 3} and len(calls) == 40
    # Cross-attention is left whole.
    attn(x, encoder_hidden_states=x)
    torch.testing.assert_close(attn(x, encoder_hidden_states=x), whole, atol=2e-6, rtol=0)
    with pytest.raises(ValueError, match="expected a grid of even sides, got 15"):
        attn(x[:, :15])
    with pytest.raises(ValueError, match="'mask' expected inference on tensors"):
        attn(x.requires_grad_())


def test_window_attention_in_a_model(calls: list[tuple[int, ...]]) -> None:
    model, inputs = build("unet")
    apply_attention(model)
    whole = model(**inputs).sample
    layers = ["down_blocks.1.attentions", "up_blocks.0.attentions"]
    masks = px.integrations.diffusers.window_masks()
    apply_attention(model, layers=layers, mask=masks)
    calls.clear()
    torch.manual_seed(0)
    windows = model(**inputs).sample
    assert (windows - whole).abs().max() > 1e-4 and len(calls) == MODELS["unet"][1]
    torch.manual_seed(0)
    assert torch.equal(model(**inputs).sample, windows)
    apply_attention(model)
    assert torch.equal(model(**inputs).sample, whole)


def test_identity_attention(calls: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    attn = processors.Attention(16, heads=2, dim_head=8).eval().requires_grad_(False)
    x = torch.randn(2, 7, 16)
    attn.set_processor(
        px.integrations.diffusers.attention_processor(mask=lambda tokens: px.masks.identity())
    )
    torch.testing.assert_close(attn(x), attn.to_out[0](attn.to_v(x)), atol=1e-6, rtol=0)
    attn.set_processor(  # an additive array, which keeps the first 3 tokens to themselves
        px.integrations.diffusers.attention_processor(
            mask=lambda tokens: torch.zeros(tokens, tokens).index_fill_(
                1, torch.arange(3, tokens), -torch.inf
            )
        )
    )
    plain = processors.Attention(16, heads=2, dim_head=8).eval().requires_grad_(False)
    plain.load_state_dict(attn.state_dict())
    want = plain(x, encoder_hidden_states=x[:, :3])
    torch.testing.assert_close(attn(x), want, atol=2e-6, rtol=0)
    assert len(calls) == 2
