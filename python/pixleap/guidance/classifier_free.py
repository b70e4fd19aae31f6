"""Classifier-free guidance, its rescaled form, autoguidance and perturbed-attention guidance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .._arrays import Array
from ..solvers.linear_form import LinearForm
from ..solvers.schedule import Point
from .base import Guidance, Scale
from .weighting import (
    Number,
    batch_of,
    check_number,
    check_scale,
    columns,
    combination,
    scale_of,
    weigh,
)


class CFG(Guidance):
    """Classifier-free guidance, uncond + scale * (cond - uncond) (Ho and Salimans 2022,
    arXiv 2207.12598, in the convention where scale 1 is cond alone).

    Args:
        scale, interval, interval_in: see `Guidance`. With a number or a number per evaluation the
            rule is folded into the solver's own pass.
        rescale: phi in [0, 1] of Lin et al. 2024 (arXiv 2305.08891, section 3.4): the result gets
            the per-sample standard deviation of cond, mixed as phi * rescaled + (1 - phi) * plain.
            One pass of `px.ops.guidance_weights`, then weights per sample.

    `names`: cond, uncond, each (B, ...) as the model predicts (noise, velocity or sample).
    """

    def __init__(self, scale: Scale, *, rescale: float = 0.0, **interval: Any) -> None:
        super().__init__(scale, **interval)
        self.rescale = check_number(rescale, self.where, "rescale", 0.0, 1.0)

    def form(self, stage: int, point: Point) -> LinearForm | None:
        form = super().form(stage, point)
        if form is None or not self.rescale or not form.terms.get(self.names[1]):
            return form
        return None

    def combine(
        self, stage: int, point: Point, outputs: Sequence[Array], sample: Array
    ) -> tuple[list[Array], Array]:
        if not self.rescale:
            return super().combine(stage, point, outputs, sample)
        scale = self.scale_at(stage, point)
        check_scale(scale, outputs[0], self.where)
        weights = weigh(outputs[0], outputs[1], scale, rule="rescale", phi=self.rescale)
        return list(outputs), weights


class Autoguidance(CFG):
    """weak + scale * (main - weak): a model guided by a weaker version of itself (Karras et al.
    2024, arXiv 2406.02507). `names`: main, weak. Arguments as `CFG`."""

    names = ("main", "weak")


class PAG(Guidance):
    """uncond + scale * (cond - uncond) + perturbed_scale * (cond - perturbed): perturbed-attention
    guidance beside CFG (Ahn et al. 2024, arXiv 2403.17377).

    Args:
        scale, interval, interval_in: see `Guidance`; scale 1 is the paper's rule without CFG,
            cond + perturbed_scale * (cond - perturbed), and needs no uncond.
        perturbed_scale: a number; the output "perturbed" is the conditional model with identity in
            place of its self-attention maps, or with layers skipped. 0 needs no perturbed output.

    `names`: cond, uncond, perturbed. Perturbing the network is up to the caller. diffusers'
    PerturbedAttentionGuidance with CFG off starts from perturbed and so means 1 + perturbed_scale.
    """

    names = ("cond", "uncond", "perturbed")

    def __init__(
        self, scale: Scale = 1.0, *, perturbed_scale: float = 3.0, **interval: Any
    ) -> None:
        super().__init__(scale, **interval)
        self.perturbed_scale = check_number(perturbed_scale, self.where, "perturbed_scale", 0.0)

    def weights(self, scale: Number) -> tuple[Number, ...]:
        return scale + self.perturbed_scale, 1.0 - scale, -self.perturbed_scale


def cfg(
    cond: Array, uncond: Array, scale: Any, *, rescale: float = 0.0, out: Array | None = None
) -> Array:
    """uncond + scale * (cond - uncond) in one pass; with `rescale` in two. See `CFG`.

    Args:
        cond, uncond: (B, ...) of one dtype; each sample contiguous where `rescale` is not 0.
        scale: a number or (B,) array.
        rescale: phi in [0, 1] of Lin et al. 2024.
        out: like cond; may be cond or uncond.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit, rescale outside [0, 1].
    """
    where = "guidance.cfg"
    scale = scale_of(scale, where)
    phi = check_number(rescale, where, "rescale", 0.0, 1.0)
    check_scale(scale, cond, where)
    if phi:
        weights = weigh(cond, uncond, scale, rule="rescale", phi=phi)
    elif isinstance(scale, float):
        return combination([cond, uncond], (scale, 1.0 - scale), out)
    else:
        weights = columns((scale, 1.0 - scale), batch_of(cond), cond)
    return combination([cond, uncond], weights, out)


def rescale(guided: Array, cond: Array, phi: float, *, out: Array | None = None) -> Array:
    """phi * guided * std(cond) / std(guided) + (1 - phi) * guided, standard deviations per sample
    over all but the first axis (Lin et al. 2024; diffusers' rescale_noise_cfg), in two passes.

    Args:
        guided, cond: (B, ...) of one dtype, each sample contiguous.
        phi: in [0, 1].
        out: like guided; may be guided.
    """
    phi = check_number(phi, "guidance.rescale", "phi", 0.0, 1.0)
    weights = weigh(cond, guided, 0.0, rule="rescale", phi=phi)  # of 0 * cond + 1 * guided
    return combination([guided], weights[:, 1:], out)


def pag(
    cond: Array,
    uncond: Array | None,
    perturbed: Array,
    scale: float = 1.0,
    perturbed_scale: float = 3.0,
    *,
    out: Array | None = None,
) -> Array:
    """The combination of `PAG` in one pass; uncond may be None where scale is 1."""
    rule = PAG(scale, perturbed_scale=perturbed_scale)
    weights = rule.weights(rule.scale)
    arrays = [cond, uncond, perturbed]
    used = [i for i, w in enumerate(weights) if not isinstance(w, float) or w]
    if uncond is None and 1 in used:
        raise ValueError(f"guidance.pag: argument 'uncond' expected an array at scale {scale}")
    values = [weights[i] for i in used]
    if not isinstance(rule.scale, float):
        check_scale(rule.scale, cond, "guidance.pag")
        return combination([arrays[i] for i in used], columns(values, batch_of(cond), cond), out)
    return combination([arrays[i] for i in used], values, out)


def autoguidance(main: Array, weak: Array, scale: Any, *, out: Array | None = None) -> Array:
    """weak + scale * (main - weak) in one pass. See `Autoguidance`."""
    return cfg(main, weak, scale, out=out)
