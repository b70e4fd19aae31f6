from __future__ import annotations

from typing import Any

import numpy as np

from .moments import moments

TINY = 1e-24  # square of the 1e-12 below which torch.nn.functional.normalize divides by 1e-12


def guidance_weights(
    cond: np.ndarray,
    uncond: np.ndarray | None,
    scale: float = 1.0,
    *,
    sample_scale: np.ndarray | None = None,
    rule: str,
    phi: float = 0.0,
    eta: float = 0.0,
    norm_threshold: float = 0.0,
    momentum: float = 0.0,
    base: str = "cond",
    average: np.ndarray | None = None,
    slope: float = 1.0,
) -> Any:
    """Weights of what a guidance rule combines; see `pixleap.ops.guidance_weights`."""
    s = np.full(len(cond), scale) if sample_scale is None else sample_scale
    if rule == "rescale":
        assert uncond is not None
        return _rescale(cond, uncond, s, phi)
    r = average
    if uncond is not None:
        r = cond - uncond + (momentum * average if average is not None and momentum else 0.0)
    assert r is not None
    sums = moments(r, cond)
    rr, k = sums[:, 2], sums[:, 4] / np.maximum(sums[:, 3], TINY)
    a = s - 1 if base == "cond" else s
    if norm_threshold:
        a = a * np.minimum(norm_threshold / np.maximum(np.sqrt(rr), TINY), 1.0)
    b = a * (1 - eta) * k  # the guided array is base + a * r - b * cond
    one = np.ones_like(a)
    if average is None:
        return np.stack([one + a - b, -a] if base == "cond" else [a - b, one - a], axis=1)
    if uncond is None:
        return np.stack([a / slope, -b / slope, one], axis=1)
    apart = base == "uncond"
    return np.stack([a / slope, -b / slope, one] if apart else [a, one - b], axis=1), r


def _rescale(cond: np.ndarray, uncond: np.ndarray, scale: np.ndarray, phi: float) -> np.ndarray:
    flat = [x.reshape(len(x), int(np.prod(x.shape[1:]))) for x in (cond, uncond)]
    s = scale[:, None]
    deviation = (s * flat[0] + (1 - s) * flat[1]).std(axis=1)
    deviation = np.maximum(deviation, np.sqrt(TINY / max(1, flat[0].shape[1])))
    factor = phi * flat[0].std(axis=1) / deviation + (1 - phi)
    return np.stack([factor * scale, factor * (1 - scale)], axis=1)
