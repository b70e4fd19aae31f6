from __future__ import annotations

from .. import _native
from .._arrays import Array, empty, shape


def guidance_weights(
    cond: Array,
    uncond: Array | None,
    scale: float = 1.0,
    *,
    sample_scale: Array | None = None,
    rule: str,
    phi: float = 0.0,
    eta: float = 0.0,
    norm_threshold: float = 0.0,
    momentum: float = 0.0,
    base: str = "cond",
    average: Array | None = None,
    slope: float = 1.0,
    out: Array | tuple[Array, Array] | None = None,
) -> Array | tuple[Array, Array]:
    """Weights per sample of the arrays that a guidance rule combines, from one pass of sums.

    Args:
        cond, uncond: (B, ...) float32, bfloat16 or float16, each sample contiguous.
        scale: a number.
        sample_scale: (B,) float64, one per sample, in the place of `scale`.
        rule: "rescale": scale * cond + (1 - scale) * uncond, times
            phi * std(cond) / std(of it) + 1 - phi (Lin et al. 2024, arXiv 2305.08891);
            "projected": base + s * r, where r = cond - uncond is limited to norm_threshold (0: no
            limit) and its component along cond is scaled by eta; s is scale - 1 for the base "cond"
            and scale for "uncond" (adaptive projected guidance, Sadat et al. 2024,
            arXiv 2410.02416).
        phi, eta: in [0, 1].
        norm_threshold: >= 0, finite.
        momentum, average: like cond; r is cond - uncond + momentum * average, rounded to the dtype,
            and takes the place of the average. With momentum 0 the average is not read. With uncond
            None, r is the average as it is, and `cond` what it is projected on.
        slope: divides the weights of r and cond where uncond is None or the base "uncond".
        out: the weights, or (weights, new average); the new average may be `average`.

    Returns:
        (B, k) float64 weights: without `average` of (cond, uncond). With it (weights, new average),
        the weights of (r, cond) for the base "cond", of (r, cond, uncond) for "uncond". With uncond
        None the weights alone, of (r, cond, a base of the caller's). Sums as in `moments`: the same
        bits for any thread count and batch.

    Raises:
        ValueError, TypeError: numbers out of range, shapes, dtypes or devices that do not fit.
    """
    keeps = average is not None and uncond is not None
    if out is None:
        size = shape(cond, "guidance_weights", "cond")
        out = empty(cond, (size[0], weight_count(uncond, average, base)), "float64")
        out = (out, empty(cond, size)) if keeps else out
    _native.guidance_weights(
        out if isinstance(out, (tuple, list)) else [out], cond, uncond, average, scale,
        sample_scale, rule, phi, eta, norm_threshold, momentum, base, slope,
    )  # fmt: skip
    return out


def weight_count(uncond: Array | None, average: Array | None, base: str) -> int:
    """Arrays that the weights of a sample are for."""
    return 3 if average is not None and (uncond is None or base == "uncond") else 2
