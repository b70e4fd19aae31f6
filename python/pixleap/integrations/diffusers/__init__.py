"""diffusers' schedulers with `step` as one fused pass, and its models with native attention; needs
torch and diffusers.

    import pixleap as px
    pipe.scheduler = px.integrations.diffusers.UniPCMultistepScheduler.from_config(
        pipe.scheduler.config
    )

Each class is a subclass of diffusers' class of its name: configuration, timesteps, `add_noise`,
`scale_model_input` are diffusers', `step` gives the same numbers and takes the same noise from the
same generator. What is not covered (`s_churn`, learned variances, gradients, ...) raises ValueError
with the option's name. `scheduler.compat = "consistent"` replaces diffusers' deviations from the
published methods.

`apply_attention(pipe)` gives all attention layers of a pipeline processors that run
`pixleap.ops.attention`; `attention_processor` makes one; `remove_attention` takes them out.
"""

from __future__ import annotations

from .attention import (
    HIDIFFUSION_LAYERS,
    apply_attention,
    attention_processor,
    remove_attention,
    window_masks,
)
from .multistep import (
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EDMDPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    SASolverScheduler,
    UniPCMultistepScheduler,
)
from .sigma import (
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LMSDiscreteScheduler,
)
from .trained import DDIMScheduler, DDPMScheduler, LCMScheduler, PNDMScheduler, TCDScheduler

__all__ = [
    "HIDIFFUSION_LAYERS",
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EDMDPMSolverMultistepScheduler",
    "EDMEulerScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
    "apply_attention",
    "attention_processor",
    "remove_attention",
    "window_masks",
]
