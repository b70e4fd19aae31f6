"""apply_cache on diffusers' transformers, small and random: every calling convention of blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from pixleap.caching import DeltaCache, FirstBlockCache, Forecast, apply_cache

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.usefixtures("inference")


@pytest.fixture
def inference() -> Iterator[None]:
    with torch.no_grad():
        yield


def fixed(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def timestep(step: int, scale: float = 1.0) -> Tensor:
    return torch.full((2,), 500 - 0.5 * step) * scale


def dit() -> tuple[Any, Callable[[int], dict[str, Any]]]:
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=4,
        sample_size=8,
        norm_num_groups=1,
    )
    return model, lambda step: {
        "hidden_states": fixed(2, 4, 8, 8) * (1 - step / 50),
        "timestep": timestep(step),
        "class_labels": torch.tensor([1, 2]),
    }


def pixart() -> tuple[Any, Callable[[int], dict[str, Any]]]:
    model = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=4,
        sample_size=8,
        cross_attention_dim=16,
        caption_channels=8,
        use_additional_conditions=False,
    )
    return model, lambda step: {
        "hidden_states": fixed(2, 4, 8, 8) * (1 - step / 50),
        "encoder_hidden_states": fixed(2, 5, 8),
        "timestep": timestep(step),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


def flux() -> tuple[Any, Callable[[int], dict[str, Any]]]:
    model = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(4, 4, 8),
    )
    return model, lambda step: {
        "hidden_states": fixed(2, 16, 4) * (1 - step / 50),
        "encoder_hidden_states": fixed(2, 16, 8),  # as many tokens as the image: shapes do not tell
        "pooled_projections": fixed(2, 8),
        "timestep": timestep(step, 1e-3),
        "img_ids": torch.zeros(16, 3),
        "txt_ids": torch.zeros(16, 3),
    }


def sd3() -> tuple[Any, Callable[[int], dict[str, Any]]]:
    model = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        num_layers=4,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        out_channels=4,
    )
    return model, lambda step: {
        "hidden_states": fixed(2, 4, 8, 8) * (1 - step / 50),
        "encoder_hidden_states": fixed(2, 5, 8),
        "pooled_projections": fixed(2, 8),
        "timestep": timestep(step),
    }


def cogvideox() -> tuple[Any, Callable[[int], dict[str, Any]]]:
    model = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=4,
        text_embed_dim=8,
        num_layers=4,
        sample_width=8,
        sample_height=8,
        sample_frames=8,
        max_text_seq_length=8,
    )
    return model, lambda step: {
        "hidden_states": fixed(2, 2, 4, 8, 8) * (1 - step / 50),
        "encoder_hidden_states": fixed(2, 8, 8),
        "timestep": timestep(step),
    }


def auraflow() -> tuple[Any, Callable[[int], dict[str, Any]]]:
    model = diffusers.AuraFlowTransformer2DModel(
        sample_size=8,
        in_channels=4,
        num_mmdit_layers=2,
        num_single_dit_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=32,
        pos_embed_max_size=256,
    )
    return model, lambda step: {
        "hidden_states": fixed(2, 4, 8, 8) * (1 - step / 50),
        "encoder_hidden_states": fixed(2, 5, 32),
        "timestep": timestep(step, 1e-3),
    }


MODELS = [dit, pixart, flux, sd3, cogvideox, auraflow]
Build = Callable[[], tuple[Any, Callable[[int], dict[str, Any]]]]


def built(build: Build) -> tuple[Any, Callable[[int], Tensor]]:
    torch.manual_seed(0)
    model, inputs = build()
    model.eval()
    for p in model.parameters():  # zero-initialised gates would hide the blocks
        p.add_(0.05 * torch.randn_like(p))
    return model, lambda step: model(**inputs(step), return_dict=False)[0]


def errors(got: list[Tensor], exact: list[Tensor]) -> list[float]:
    return [float((a - b).norm() / b.norm()) for a, b in zip(got, exact, strict=True)]


@pytest.mark.parametrize("build", MODELS)
def test_transformers(build: Build) -> None:
    model, call = built(build)
    keys = [set(vars(m)) for m in model.modules()]
    exact = [call(step) for step in range(8)]
    for config in (Forecast(interval=1), FirstBlockCache(threshold=0.0)):
        with apply_cache(model, config):
            got = [call(step) for step in range(8)]
        assert all(torch.equal(a, b) for a, b in zip(got, exact, strict=True)), config

    saved = {
        Forecast(interval=3): 5 * 4,
        Forecast(interval=3, target="output"): 5 * 4,
        DeltaCache(blocks=2, boundary=4): 4 * 2,
        FirstBlockCache(threshold=99.0): 7 * 3,
    }
    for config, count in saved.items():
        with apply_cache(model, config) as cache:
            got = [call(step) for step in range(8)]
            assert cache.statistics.blocks_saved == count, config
            assert cache.statistics.blocks_computed == 8 * 4 - count, config
        apart = errors(got, exact)
        assert apart[0] == 0 and 0 < max(apart) < 0.2, (config, apart)
        # A frozen input: nothing changes, so what is reused must be what is computed.
        with apply_cache(model, config):
            got = [call(0) for _ in range(4)]
        assert max(errors(got, [exact[0]] * 4)) < 1e-5, config
    assert keys == [set(vars(m)) for m in model.modules()]
    assert torch.equal(call(3), exact[3])


def test_cache_context_and_reset_of_diffusers() -> None:
    model, call = built(cogvideox)
    with apply_cache(model, Forecast(interval=3)):
        alone = [call(step) for step in range(5)]
    with apply_cache(model, Forecast(interval=3, steps=5)) as cache:
        for _ in range(2):
            got = []
            for step in range(5):
                with model.cache_context("cond"):
                    got.append(call(step))
                with model.cache_context("uncond"):
                    call(step + 1)
            assert all(torch.equal(a, b) for a, b in zip(got, alone, strict=True))
            model._reset_stateful_cache()  # as pipelines do at their end
        assert cache.statistics.forecast == 12  # and it keeps the statistics
    assert "cache_context" not in vars(model) and "_reset_stateful_cache" not in vars(model)


def test_diffusers_own_cache_is_refused() -> None:
    model, _ = built(cogvideox)
    model.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(ValueError, match=r"CogVideoXTransformer3DModel that has one; remove it"):
        apply_cache(model, Forecast())


def test_first_block_cache_decides_as_diffusers_does() -> None:
    model, call = built(cogvideox)
    steps = [0, 1, 2, 3, 20, 21, 60, 61]
    model.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.3))
    with model.cache_context("cond"):
        theirs = [call(step) for step in steps]
    model.disable_cache()
    with apply_cache(model, FirstBlockCache(threshold=0.3)) as cache:
        ours = [call(step) for step in steps]
        assert 2 <= cache.statistics.full <= 6, cache.statistics
    assert max(errors(ours, theirs)) < 1e-5


def test_interleaved_lists_are_refused() -> None:
    model = diffusers.LatteTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        cross_attention_dim=16,
        caption_channels=8,
    )
    with pytest.raises(ValueError, match=r"LatteTransformer3DModel also has \['temporal_trans"):
        apply_cache(model, Forecast())
