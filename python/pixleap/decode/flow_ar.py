"""Scale-wise autoregression with flow matching (FlowAR, Ren et al. 2024, arXiv:2412.15205).

An image's latent is drawn as maps of rising size. Per scale a causal model gives conditions z from
the maps before it, each upsampled to the size of the scale after it; a flow-matching head that sees
the whole map carries noise to the map given z. The last map is the latent (maps are versions of it
at lower resolution, not residuals).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from .. import ops, solvers
from .._arrays import Array, empty
from ..reference.next_scale_update import upsampling_matrix
from ..solvers.schedule import choose
from .denoising import Conditioned, Counts, Key, condition_pair, denoise
from .token_draws import as_array, check_floats

UPSAMPLING = ("bicubic", "nearest")
Progress = Callable[[int, int], None]


class FlowARModel(Protocol):
    """Anything that can be called so."""

    def __call__(self, maps: list[Array], scale: int) -> Any:
        """Conditions of the scale's positions.

        Args:
            maps: `scale` arrays; maps[i] (B, h w, D) float32 is the result of scale i, upsampled to
                the size (h, w) of scale i + 1. A call follows those of the scales before it in the
                same run, so that a model with a `pixleap.KVCache` feeds the last alone.
            scale: 0, 1, ...; at 0 the cache begins anew.

        Returns:
            (B, h w, C) for the size (h, w) of this scale, or with guidance the pair (conditions,
            conditions without the class).
        """


class FlowARHead(Protocol):
    """Anything that can be called so."""

    def __call__(self, x: Array, t: Array, z: Array) -> Array:
        """Prediction for maps x (N, L, D) float32 at times t (N,) float32, as
        `SolverPlan.timesteps` has them, with conditions z (N, L, C); like x. N is B, or 2 B with
        guidance."""


@dataclass
class FlowARResult:
    """maps: (B, h w, D) float32 of every scale, the last being the latent; calls of the model and
    of the head."""

    maps: list[Array]
    calls: int
    head_calls: int


def flow_ar(
    model: FlowARModel,
    head: FlowARHead,
    scales: Sequence[int | tuple[int, int]],
    plan: solvers.SolverPlan | Sequence[solvers.SolverPlan],
    *,
    batch: int,
    channels: int,
    like: Array = None,
    guidance_scale: float | Sequence[float] = 1.0,
    upsampling: str = "bicubic",
    noise: Sequence[Array] | None = None,
    seed: int = 0,
    first_sample: int = 0,
    progress: Progress | None = None,
) -> FlowARResult:
    """Draws a latent, scale by scale.

    Args:
        model: see `FlowARModel`; called once per scale.
        head: see `FlowARHead`.
        scales: sizes of the maps, n for (n, n), or (h, w).
        plan: of `px.solvers.solver_plan`, one for all scales or one for each; as "euler" or "heun"
            on `NoiseSchedule.flow()` with prediction_type "flow_prediction", where the head answers
            noise - data at t = 1000 sigma. (Heads trained for data - noise at the time 1 - sigma
            need a wrapper that converts both.)
        batch, channels: B and D.
        like: an array whose framework and device the maps take; None gives NumPy.
        guidance_scale: w of uncond + w (cond - uncond), one for all scales or one for each; 1 uses
            the conditions alone.
        upsampling: "bicubic" or "nearest", as torch's interpolate without align_corners.
        noise: standard normal starts (B, h w, D) float32 of every scale; None draws them.
        seed: of the Philox streams. Noise depends on seed, scale, sample and place in the map.
        first_sample: index of the first sample in a larger batch.
        progress: called with (scales drawn, scales).

    Returns:
        `FlowARResult`.

    Raises:
        ValueError: sizes, counts or shapes that do not fit, an unknown upsampling, a model that
            gives no pair under guidance.
        TypeError: noise or outputs of the head that are not float32.
    """
    choose(upsampling, UPSAMPLING, "flow_ar", "upsampling")
    sizes = [_size(s) for s in scales]
    if not sizes:
        raise ValueError("flow_ar: argument 'scales' expected at least one size, got none")
    for name, value in (("batch", batch), ("channels", channels)):
        if value < 1:
            raise ValueError(f"flow_ar: argument '{name}' expected an integer >= 1, got {value}")
    one_plan = isinstance(plan, solvers.SolverPlan)
    plans: list[Any] = _per_scale("plan", [plan] if one_plan else plan, len(sizes))
    one_scale = isinstance(guidance_scale, (int, float))
    factors = _per_scale(
        "guidance_scale", [guidance_scale] if one_scale else guidance_scale, len(sizes)
    )
    if noise is not None:
        _per_scale("noise", noise, len(sizes), exact=True)
    counts = Counts(0)
    inputs: list[Array] = []
    maps: list[Array] = []
    for k, (height, width) in enumerate(sizes):
        shape = (batch, height * width, channels)
        if maps:
            inputs.append(_upsampled(maps[-1], sizes[k - 1], sizes[k], upsampling))
        scale = float(factors[k])
        cond, uncond = condition_pair("flow_ar", model(inputs, k), scale, shape[:2])
        target = Conditioned("flow_ar", head, cond, uncond, scale)
        x = np.empty(shape, np.float32) if like is None else empty(like, shape, "float32")
        start = None
        if noise is not None:
            got = check_floats("flow_ar", f"noise[{k}]", noise[k], 3)
            if got != shape:
                raise ValueError(
                    f"flow_ar: argument 'noise[{k}]' expected shape {shape}, got {got}"
                )
            start = ops.lincomb([noise[k]], (plans[k].points[0].sigma,))[0]
        maps.append(denoise(target, plans[k], x, Key(seed, k, first_sample), counts, start))
        if progress is not None:
            progress(k + 1, len(sizes))
    return FlowARResult(maps, len(sizes), counts.head_calls)


def _size(size: int | tuple[int, int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, (int, np.integer)) else size
    if height < 1 or width < 1:
        raise ValueError(f"flow_ar: argument 'scales' expected sizes >= 1, got {size}")
    return int(height), int(width)


def _per_scale(name: str, values: Any, scales: int, exact: bool = False) -> list[Any]:
    """One of `values` for each scale; a single one serves all."""
    values = list(values)
    if len(values) != scales and (exact or len(values) != 1):
        raise ValueError(
            f"flow_ar: argument '{name}' expected one for each of {scales} scales, got "
            f"{len(values)}"
        )
    return values if len(values) == scales else values * scales


def _matrix(n: int, m: int, mode: str) -> np.ndarray:
    """(m, n) interpolation along one axis."""
    if mode == "bicubic":
        return upsampling_matrix(n, m).astype(np.float32)
    return np.eye(n, dtype=np.float32)[np.arange(m) * n // m]


def _upsampled(x: Array, size: tuple[int, int], to: tuple[int, int], mode: str) -> Array:
    """(B, h w, D) as (B, H W, D)."""
    (h, w), (height, width) = size, to
    batch, _, channels = x.shape
    rows, columns = (as_array(_matrix(*nm, mode), x) for nm in ((h, height), (w, width)))
    tall = rows @ x.reshape(batch, h, w * channels)
    wide = columns @ tall.reshape(batch * height, w, channels)
    return wide.reshape(batch, height * width, channels)
