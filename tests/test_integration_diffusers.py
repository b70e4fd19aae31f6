"""The drop-in schedulers against diffusers' own: whole runs, and inside its pipelines."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import pixleap as px

diffusers = pytest.importorskip("diffusers", reason="the diffusers extra is not installed")
drop_ins = px.integrations.diffusers

RUNS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("DDIMScheduler", {}, {}),
    ("DDIMScheduler", {"thresholding": True, "sample_max_value": 1.5}, {"eta": 1.0}),
    ("DDIMScheduler", {"clip_sample_range": 0.5}, {"use_clipped_model_output": True}),
    ("DDPMScheduler", {}, {}),
    ("DDPMScheduler", {"variance_type": "fixed_large", "thresholding": True}, {}),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True}, {}),
    ("EulerAncestralDiscreteScheduler", {"prediction_type": "v_prediction"}, {}),
    ("HeunDiscreteScheduler", {"clip_sample": True}, {}),
    ("LMSDiscreteScheduler", {}, {}),
    ("KDPM2DiscreteScheduler", {}, {}),
    ("KDPM2AncestralDiscreteScheduler", {}, {}),
    ("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1}, {}),
    ("PNDMScheduler", {}, {}),
    ("DPMSolverMultistepScheduler", {}, {}),
    ("DPMSolverMultistepScheduler", {"thresholding": True, "solver_order": 3}, {}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, {}),
    ("DPMSolverSinglestepScheduler", {"solver_order": 3}, {}),
    ("DPMSolverSinglestepScheduler", {"algorithm_type": "sde-dpmsolver++"}, {}),
    ("UniPCMultistepScheduler", {}, {}),
    ("UniPCMultistepScheduler", {"solver_order": 3, "thresholding": True}, {}),
    ("DEISMultistepScheduler", {}, {}),
    ("SASolverScheduler", {}, {}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, {}),
    ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}, {}),
    ("FlowMatchHeunDiscreteScheduler", {}, {}),
    ("LCMScheduler", {"clip_sample": True}, {}),
    ("TCDScheduler", {}, {}),
    ("EDMEulerScheduler", {}, {}),
    ("EDMDPMSolverMultistepScheduler", {}, {}),
]
IDS = [f"{name}{i}" for i, (name, _, _) in enumerate(RUNS)]
SHAPE = (2, 3, 8, 8)


@pytest.fixture(autouse=True)
def quiet() -> None:
    diffusers.utils.logging.set_verbosity_error()


def network(dtype: torch.dtype = torch.float32) -> Any:
    """A smooth function of sample and time that is not linear."""
    mixing = torch.randn(3, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def model(x: torch.Tensor, t: Any) -> torch.Tensor:
        wide = torch.einsum("oc,bchw->bohw", mixing * 0.4, x.double())
        return torch.tanh(wide + float(t) / 1000).to(dtype)

    return model


def run(
    scheduler: Any,
    call: dict[str, Any],
    *,
    steps: int = 8,
    begin: int = 0,
    dtype: torch.dtype = torch.float32,
    return_dict: bool = False,
) -> list[torch.Tensor]:
    """All samples of a run and the second results; clones nothing, so reused memory would show."""
    torch.manual_seed(1)
    generator = torch.Generator().manual_seed(2)
    scheduler.set_timesteps(steps)
    times = scheduler.timesteps[begin:]
    if begin and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    x = torch.randn(SHAPE, generator=generator).to(dtype) * float(
        getattr(scheduler, "init_noise_sigma", 1.0)
    )
    import inspect

    if "generator" in inspect.signature(scheduler.step).parameters:
        call = {**call, "generator": generator}
    model, kept = network(dtype), []
    for t in times:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        given = scheduler.step(model(scaled, t), t, x, return_dict=return_dict, **call)
        results = list(given.values()) if return_dict else list(given)
        x = results[0]
        kept += results
    return kept


def worst(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    """Largest difference of corresponding tensors, relative to their largest value."""
    assert len(ours) == len(theirs)
    pairs = zip(ours, theirs, strict=True)
    return max(
        float((a.double() - b.double()).abs().max() / b.double().abs().max()) for a, b in pairs
    )


def both(name: str, config: dict[str, Any]) -> tuple[Any, Any]:
    theirs = getattr(diffusers, name)(**config)
    return getattr(drop_ins, name).from_config(theirs.config), theirs


@pytest.mark.parametrize(("name", "config", "call"), RUNS, ids=IDS)
def test_runs(name: str, config: dict[str, Any], call: dict[str, Any]) -> None:
    """Samples, second results and noise as diffusers', twice in a row, for both kinds of return."""
    steps = 4 if name in ("LCMScheduler", "TCDScheduler") else 8
    ours, theirs = both(name, config)
    expected = run(theirs, call, steps=steps)
    assert all(torch.isfinite(x).all() for x in expected)
    first = run(ours, call, steps=steps)
    copies = [x.clone() for x in first]
    assert worst(first, expected) < 1e-5
    again = run(ours, call, steps=steps, return_dict=True)
    assert worst(again, expected) < 1e-5
    assert all(torch.equal(a, b) for a, b in zip(first, copies, strict=True))  # not written again
    assert isinstance(ours, type(theirs)) and ours.order == theirs.order


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("name", "config", "call"), RUNS, ids=IDS)
def test_half(name: str, config: dict[str, Any], call: dict[str, Any], dtype: torch.dtype) -> None:
    """Samples and model in half precision: the dtypes of diffusers, and its values to rounding."""
    steps = 4 if name in ("LCMScheduler", "TCDScheduler") else 8
    if dtype == torch.float16 and "EDM" in name:
        dtype = torch.bfloat16
    ours, theirs = both(name, config)
    expected = run(theirs, call, steps=steps, dtype=dtype)
    got = run(ours, call, steps=steps, dtype=dtype)
    assert [x.dtype for x in got] == [x.dtype for x in expected]
    bound = 0.1 if dtype == torch.bfloat16 else 0.02
    assert worst(got[-1:], expected[-1:]) < bound


MIDDLE = [
    r
    for r in RUNS
    if r[0] not in ("LMSDiscreteScheduler",) and not (r[0] == "PNDMScheduler" and not r[1])
]


@pytest.mark.parametrize(("name", "config", "call"), MIDDLE, ids=[m[0] for m in MIDDLE])
def test_middle(name: str, config: dict[str, Any], call: dict[str, Any]) -> None:
    """A run that begins in the middle, as image-to-image does."""
    ours, theirs = both(name, config)
    steps = 4 if name in ("LCMScheduler", "TCDScheduler") else 8
    begin = 2 * theirs.order
    expected = run(theirs, call, steps=steps, begin=begin)
    assert worst(run(ours, call, steps=steps, begin=begin), expected) < 1e-5


def test_configuration_round_trip(tmp_path: Path) -> None:
    """Saved by ours, loaded by diffusers, and back; a copy runs like the original."""
    ours, theirs = both("DPMSolverMultistepScheduler", {"solver_order": 3, "use_lu_lambdas": True})
    ours.save_pretrained(tmp_path)
    loaded = diffusers.DPMSolverMultistepScheduler.from_pretrained(tmp_path)
    assert type(loaded) is diffusers.DPMSolverMultistepScheduler
    assert all(
        loaded.config[name] == theirs.config[name] for name in theirs.config if name[0] != "_"
    )
    back = drop_ins.DPMSolverMultistepScheduler.from_pretrained(tmp_path)
    assert worst(run(back, {}), run(theirs, {})) < 1e-5
    assert worst(run(copy.deepcopy(back), {}), run(theirs, {})) < 1e-5
    # from another scheduler's configuration, as people swap them
    swapped = drop_ins.UniPCMultistepScheduler.from_config(theirs.config)
    other = diffusers.UniPCMultistepScheduler.from_config(theirs.config)
    assert worst(run(swapped, {}), run(other, {})) < 1e-5


def test_passed_noise() -> None:
    ours, theirs = both("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"})
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))
    call = {"variance_noise": noise}
    assert worst(run(ours, call), run(theirs, call)) < 1e-5


def test_caller_may_change_the_sample() -> None:
    """Inpainting writes a new sample between steps."""
    results = []
    for scheduler in both("UniPCMultistepScheduler", {}):
        scheduler.set_timesteps(6)
        x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(2))
        for t in scheduler.timesteps:
            x = scheduler.step(network()(x, t), t, x).prev_sample * 0.9 + 0.05
        results.append(x)
    assert worst(results[:1], results[1:]) < 1e-5


@pytest.mark.parametrize(
    ("name", "config", "call", "message"),
    [
        ("DDPMScheduler", {"variance_type": "learned_range"}, {}, "variance_type='learned_range'"),
        ("DDPMScheduler", {"variance_type": "fixed_large_log"}, {}, "fixed_large_log"),
        ("PNDMScheduler", {"prediction_type": "v_prediction"}, {}, "prediction_type"),
        ("SASolverScheduler", {"algorithm_type": "noise_prediction"}, {}, "algorithm_type"),
        ("DPMSolverMultistepScheduler", {"prediction_type": "flow_prediction"}, {}, "flow_pred"),
        ("EulerDiscreteScheduler", {}, {"s_churn": 1.0}, "s_churn=1.0"),
        (
            "FlowMatchEulerDiscreteScheduler",
            {},
            {"per_token_timesteps": torch.ones(2, 4)},
            "per_token_timesteps",
        ),
    ],
)
def test_not_covered(name: str, config: Any, call: Any, message: str) -> None:
    """The error names class, option and value."""
    with pytest.raises(ValueError, match=f"{name} does not cover.*{message}"):
        run(both(name, config)[0], call)


def test_gradients_are_refused() -> None:
    ours, _ = both("EulerDiscreteScheduler", {})
    ours.set_timesteps(4)
    x = torch.zeros(SHAPE, requires_grad=True)
    with pytest.raises(ValueError, match="no gradients"):
        ours.step(x * 2, ours.timesteps[0], x)


def test_import_is_lazy() -> None:
    """`px.integrations` imports neither torch nor diffusers."""
    code = (
        "import sys, pixleap; pixleap.integrations; "
        "sys.exit(any(m in sys.modules for m in ('torch', 'diffusers')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# Pipelines, of tiny random networks.


def images(pipeline: Any, scheduler: Any, **call: Any) -> torch.Tensor:
    pipeline.scheduler = scheduler
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(11)
    return torch.from_numpy(pipeline(generator=generator, output_type="np", **call).images)


def swapped(pipeline: Any, name: str, config: dict[str, Any], **call: Any) -> None:
    """The pipeline's images with diffusers' scheduler and with ours."""
    ours, theirs = both(name, config)
    expected = images(pipeline, theirs, **call)
    assert expected.std() > 1e-3
    got = images(pipeline, ours, **call)
    assert (got - expected).abs().max() < 1e-4


@pytest.fixture(scope="module")
def unet() -> Any:
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
    )


def test_ddpm_pipeline(unet: Any) -> None:
    pipeline = diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler())
    swapped(pipeline, "DDPMScheduler", {}, num_inference_steps=6, batch_size=2)


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_ddim_pipeline(unet: Any, eta: float) -> None:
    pipeline = diffusers.DDIMPipeline(unet, diffusers.DDIMScheduler())
    swapped(pipeline, "DDIMScheduler", {}, num_inference_steps=6, batch_size=2, eta=eta)


def autoencoder() -> Any:
    torch.manual_seed(1)
    return diffusers.AutoencoderKL(
        block_out_channels=(8,),
        norm_num_groups=4,
        latent_channels=4,
        layers_per_block=1,
        sample_size=8,
    )


@pytest.mark.parametrize("name", ["DDIMScheduler", "DPMSolverMultistepScheduler"])
def test_dit_pipeline(name: str) -> None:
    torch.manual_seed(2)
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        norm_num_groups=4,
        sample_size=8,
        num_embeds_ada_norm=1000,
    )
    transformer.eval()  # in training labels are dropped at random
    pipeline = diffusers.DiTPipeline(transformer, autoencoder(), diffusers.DDIMScheduler())
    swapped(pipeline, name, {}, class_labels=[1, 3], num_inference_steps=6, guidance_scale=2.0)


SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SD_SCHEDULERS = (
    "DDIMScheduler",
    "PNDMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
    "LCMScheduler",
)


@pytest.fixture(scope="module")
def stable_diffusion() -> Any:
    """Text embeddings are given, so that no text encoder (transformers) is needed."""
    torch.manual_seed(3)
    network = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    return network, autoencoder()


@pytest.mark.parametrize("name", SD_SCHEDULERS)
def test_stable_diffusion_pipeline(stable_diffusion: Any, name: str) -> None:
    pytest.importorskip("transformers", reason="StableDiffusionPipeline imports transformers")
    network, vae = stable_diffusion
    pipeline = diffusers.StableDiffusionPipeline(
        vae,
        None,
        None,
        network,
        diffusers.DDIMScheduler(**SD),
        None,
        None,
        requires_safety_checker=False,
    )
    torch.manual_seed(4)
    call = {
        "prompt_embeds": torch.randn(1, 5, 8),
        "negative_prompt_embeds": torch.randn(1, 5, 8),
        "num_inference_steps": 5,
        "guidance_scale": 7.5,
        "height": 8,
        "width": 8,
    }
    config = {**SD, "skip_prk_steps": True} if name == "PNDMScheduler" else SD
    swapped(pipeline, name, config, **call)
