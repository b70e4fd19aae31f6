"""The noise schedule of a DiT and a plain DDIM loop (Song et al. 2020, arXiv 2010.02502)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .dit import DiT


def alpha_sigma(
    t: float | np.ndarray, diffusion: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """alpha and sigma (float64, shape of t) at times t in [0, num_train_timesteps - 1].

    At whole t: alpha^2 is the product of 1 - beta up to t, sigma^2 = 1 - alpha^2. In between,
    log(sigma / alpha) is linear in t.
    """
    if diffusion["beta_schedule"] != "linear":
        raise ValueError(
            f"alpha_sigma: beta_schedule must be 'linear', got {diffusion['beta_schedule']!r}"
        )
    steps = diffusion["num_train_timesteps"]
    t = np.asarray(t, dtype=np.float64)
    if not np.all((t >= 0) & (t <= steps - 1)):
        raise ValueError(f"alpha_sigma: t must be 0 to {steps - 1}, got {t.min():g} to {t.max():g}")
    betas = np.linspace(diffusion["beta_start"], diffusion["beta_end"], steps)
    log_alpha2 = np.cumsum(np.log1p(-betas))
    log_ratio = 0.5 * (np.log(-np.expm1(log_alpha2)) - log_alpha2)  # log(sigma / alpha)
    ratio = np.exp(np.interp(t, np.arange(steps), log_ratio))
    alpha = 1 / np.hypot(1, ratio)
    return alpha, alpha * ratio


def trailing_timesteps(steps: int, num_train_timesteps: int = 1000) -> np.ndarray:
    """`steps` times, evenly from num_train_timesteps - 1 down, a step above the clean image."""
    if not 1 <= steps <= num_train_timesteps:
        raise ValueError(f"steps must be 1 to {num_train_timesteps}, got {steps}")
    return num_train_timesteps * np.arange(steps, 0, -1) / steps - 1


@torch.no_grad()
def ddim_sample(
    model: DiT,
    y: Tensor,
    *,
    steps: int = 50,
    cfg_scale: float = 2.0,
    seed: int = 0,
    noise: Tensor | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Images (N, C, S, S) of the classes y (N,), by the deterministic DDIM loop in plain torch.

    Args:
        steps: network evaluations (of 2 N images unless cfg_scale is 1).
        cfg_scale: uncond + cfg_scale (cond - uncond); 1 is no guidance.
        seed: of the noise, drawn on the CPU; `noise` (N, C, S, S) overrides it.
        progress: called as progress(done, steps) after every step.

    The learnt variance of a model with learn_sigma is not used. Nothing is clipped.
    """
    weight = model.x_embedder.proj.weight
    shape = (len(y), model.in_channels, model.input_size, model.input_size)
    if noise is None:
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    elif noise.shape != shape:
        raise ValueError(f"ddim_sample: noise must be {shape}, got {tuple(noise.shape)}")
    kind = model.diffusion["prediction_type"]
    if kind not in ("epsilon", "v_prediction"):
        raise ValueError(
            f"ddim_sample: prediction_type must be epsilon or v_prediction, got {kind}"
        )
    x, y = noise.to(weight), y.to(weight.device)
    both = torch.cat((y, torch.full_like(y, model.num_classes)))
    times = trailing_timesteps(steps, model.diffusion["num_train_timesteps"])
    alphas, sigmas = alpha_sigma(times, model.diffusion)
    alphas, sigmas = np.append(alphas, 1.0), np.append(sigmas, 0.0)
    for i, t in enumerate(times):
        if cfg_scale == 1:
            out = model(x, float(t), y)
        else:
            out = model.forward_with_cfg(torch.cat((x, x)), float(t), both, cfg_scale)[: len(y)]
        out = out[:, : model.in_channels]
        a, s = float(alphas[i]), float(sigmas[i])
        if kind == "epsilon":
            eps, x0 = out, (x - s * out) / a
        else:
            eps, x0 = s * x + a * out, a * x - s * out
        x = float(alphas[i + 1]) * x0 + float(sigmas[i + 1]) * eps
        if progress:
            progress(i + 1, steps)
    return x
