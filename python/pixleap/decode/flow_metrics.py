"""How hard each block of a TarFlow is to invert by sweeps: the two metrics of GS-Jacobi sampling,
and sweeps that are counted.

Source: Liu & Qin 2025, arXiv:2505.12849, as encoreus/GS-Jacobi_for_TarFlow computes them
(`MetaBlock.forward` with detect_mode in GS_Jacobi_sampling.py, IGM_GRM.py). With x the input of a
block in its own order and z = exp(-a) (x - b) its output, means over the batch, spectral norms of
(T, P) matrices and of the halves W_a, W_b of proj_out's weight:

- Convergence ranking metric: CRM = |mean(exp(-a) x)| |W_a| + |W_b|. A bound on how much a sweep
  moves; blocks with a large share of the sum are "tough".
- Initial guessing metric: IGM = |mean(x' - x)|, x' the result of one sweep that starts from the
  guess. The guess with the smaller one is the better start.

CRM ranks blocks; it does not predict their sweeps, which is why those are counted here too.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .layers import check_labels

if TYPE_CHECKING:
    from ..models.tarflow import MetaBlock, TarFlow

GUESSES = ("z", "zero")


@dataclass(frozen=True)
class BlockMetrics:
    """One block. crm: convergence ranking metric; crm_share: its part of the sum over all blocks,
    0 to 1. igm: initial guessing metric of the guesses "z" and "zero" (the first token of z, then
    zeros). sweeps: of the whole block from each guess until no value of the batch moves by more
    than the tolerance, or None if not counted."""

    crm: float
    crm_share: float
    igm: dict[str, float]
    sweeps: dict[str, int] | None


@dataclass(frozen=True)
class FlowMetrics:
    """blocks: in the order of the model's forward pass. tol: of the counted sweeps."""

    blocks: list[BlockMetrics]
    tol: float | None

    @property
    def guesses(self) -> list[str]:
        """The better guess of each block in sampling order (last block first), by IGM."""
        return [min(GUESSES, key=lambda name: b.igm[name]) for b in reversed(self.blocks)]

    def to_dict(self) -> dict[str, Any]:
        """Numbers, strings, lists and dicts only, for `json.dumps`."""
        return asdict(self)


@torch.no_grad()
def flow_metrics(
    model: TarFlow, images: Tensor, labels: Tensor | None = None, *, tol: float | None = 1e-3
) -> FlowMetrics:
    """Metrics of all blocks from images that the model should know.

    Args:
        model: a `pixleap.models.TarFlow`.
        images: (B, C, H, W) float, as the model was trained on; B around 100 or more, since the
            metrics are norms of means over them.
        labels: (B,) int64, or None for no class, as in the official script (which leaves the class
            out of the guesses' sweep even where the forward pass has one; here both have it).
        tol: of the counted sweeps; None does not count them.

    Raises:
        ValueError: images of another shape, none at all, values that are not finite, labels of
            another shape or too large, a tol that is not above 0.
    """
    size = (model.in_channels, model.img_size, model.img_size)
    if images.dim() != 4 or tuple(images.shape[1:]) != size or not len(images):
        raise ValueError(
            f"flow_metrics: argument 'images' expected shape (B, {', '.join(map(str, size))}) with "
            f"B >= 1, got {tuple(images.shape)}"
        )
    if not bool(torch.isfinite(images).all()):
        raise ValueError(
            "flow_metrics: argument 'images' expected finite values, got NaN or infinity"
        )
    if labels is not None:
        check_labels("flow_metrics", labels, len(images), model.num_classes - 1)
    if tol is not None and not tol > 0:
        raise ValueError(f"flow_metrics: argument 'tol' expected a number > 0 or None, got {tol}")
    x = model.patchify(images.to(torch.float32))
    measured = []
    for block in model.blocks:
        measured.append(_measure(block, block.order(x), labels, tol))
        x = block(x, labels)[0]
    total = sum(crm for crm, _, _ in measured) or 1.0
    return FlowMetrics([BlockMetrics(c, c / total, igm, n) for c, igm, n in measured], tol)


def _measure(
    block: MetaBlock, x: Tensor, labels: Tensor | None, tol: float | None
) -> tuple[float, dict[str, float], dict[str, int] | None]:
    """CRM, IGM and sweeps of a block for its input x (B, T, P) in its own order."""
    a, b = block.affine(block.hidden(x, labels))
    first = torch.zeros_like(a[:, :1])
    scale = torch.cat((first, a[:, :-1]), 1).neg().exp()
    z = scale * (x - torch.cat((first, b[:, :-1]), 1))
    *w_a, w_b = block.proj_out.weight.chunk(2 if block.nvp else 1)
    crm = _spectral(w_b) + sum(_spectral((scale * x).mean(0)) * _spectral(w) for w in w_a)
    guesses = {"z": z, "zero": torch.cat((z[:, :1], torch.zeros_like(z[:, 1:])), 1)}
    igm = {k: _spectral((_sweep(block, z, g, labels) - x).mean(0)) for k, g in guesses.items()}
    if tol is None:
        return crm, igm, None
    return crm, igm, {k: _count(block, z, g, labels, tol) for k, g in guesses.items()}


def _sweep(block: MetaBlock, z: Tensor, x: Tensor, labels: Tensor | None) -> Tensor:
    """All tokens anew from the guess x, both in the block's order."""
    a, b = block.affine(block.hidden(x, labels))
    return torch.cat((z[:, :1], z[:, 1:] * a[:, :-1].exp() + b[:, :-1]), 1)


def _count(block: MetaBlock, z: Tensor, x: Tensor, labels: Tensor | None, tol: float) -> int:
    """Sweeps until nothing moves by more than tol; T - 1 of them are exact. A guess that makes
    values overflow needs all of those."""
    for n in range(1, z.shape[1]):
        new = _sweep(block, z, x, labels)
        if float((new - x).abs().max()) <= tol:
            return n
        x = new
    return z.shape[1] - 1


def _spectral(matrix: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix, ord=2))
