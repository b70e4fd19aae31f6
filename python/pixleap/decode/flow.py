"""Inversion of TarFlow-like flows by the solvers of `triangular`, block by block."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .flow_block import Cache, FlowSystem, Guidance, PackedBlock
from .flow_segments import Segments, SegmentSweeps
from .layers import Scratch, check_labels
from .triangular import TriangularResult
from .triangular_solvers import Frontier, Solver

if TYPE_CHECKING:
    from ..models.tarflow import TarFlow
    from .flow_plan import FlowPlan

Progress = Callable[[int, int], None]


@dataclass
class FlowResult:
    """images (B, ch, h, w); blocks: what each took, in sampling order; sequence: the images of the
    noise and after each block, if asked for; seconds in all."""

    images: Tensor
    blocks: list[TriangularResult] = field(default_factory=list)
    sequence: list[Tensor] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def sweeps(self) -> list[int]:
        """Model passes of each block."""
        return [b.sweeps for b in self.blocks]

    @property
    def evaluations(self) -> list[float]:
        """Tokens evaluated per sample of each block."""
        return [float(b.evaluations.mean()) if len(b.evaluations) else 0.0 for b in self.blocks]

    @property
    def residuals(self) -> list[list[float]]:
        """The largest move of each sweep of each block."""
        return [b.residuals for b in self.blocks]

    @property
    def converged(self) -> Tensor:
        """(B,) bool: samples all of whose blocks did."""
        done = torch.ones(len(self.images), dtype=torch.bool)
        for b in self.blocks:
            done &= torch.from_numpy(b.converged)
        return done


class FlowDecoder:
    """A TarFlow model packed for native inversion; build once, call often. Keeps its caches, so one
    call at a time, and on a CUDA device the graphs of the `SHAPES` used last.

    Args:
        model: a `pixleap.models.TarFlow` (official or embedded weights), on the CPU or a CUDA
            device, where it stays.
        weights: "float32", "bfloat16" or "int8".
    """

    SHAPES = 4

    def __init__(self, model: TarFlow, weights: str = "float32") -> None:
        self.model = model
        self._packed: dict[str, list[PackedBlock]] = {}
        self.blocks = self._pack(weights)  # in the order of the model
        self.scratch = Scratch(self.blocks[0].positions)
        self._caches: list[Cache] = []
        self._sweeps: dict[Any, SegmentSweeps] = {}
        self.plans: dict[tuple[int, int], FlowPlan] = {}  # by batch and halves of guidance

    def _pack(self, weights: str) -> list[PackedBlock]:
        if weights not in self._packed:
            self._packed[weights] = [PackedBlock(block, weights) for block in self.model.blocks]
        return self._packed[weights]

    def system(
        self, index: int, labels: Tensor | None, guidance: Guidance, batch: int
    ) -> FlowSystem:
        """Block `index` in sampling order, as a `TriangularSystem` of (batch, T, P)."""
        slots = batch * guidance.halves
        if not self._caches or len(self._caches[0][0]) < slots:
            most = max(self.blocks, key=lambda block: len(block.layers))
            self._caches = most.new_caches(slots)
        at = len(self.blocks) - 1 - index

        def sweeps(window: int) -> SegmentSweeps:
            return self._sweeps_of(batch, guidance, window)

        def make(packed: PackedBlock) -> FlowSystem:
            own = sweeps if packed is self.blocks[at] else None
            return FlowSystem(packed, labels, guidance, self._caches, self.scratch, draft, at, own)

        def draft(dtype: str) -> FlowSystem:
            return make(self._pack(dtype)[at])

        return make(self.blocks[at])

    def _sweeps_of(self, batch: int, guidance: Guidance, window: int) -> SegmentSweeps:
        key = batch, guidance.halves, guidance.what, guidance.attn_temp, window
        found = self._sweeps.pop(key, None)
        if found is None:
            channels = self.model.patch_dim
            found = SegmentSweeps(self.blocks, batch, guidance, self._caches, channels, window)
        self._sweeps[key] = found  # the last one used is the last one to go
        if len(self._sweeps) > self.SHAPES:
            del self._sweeps[next(iter(self._sweeps))]
        return found

    @torch.no_grad()
    def __call__(
        self,
        z: Tensor,
        labels: Tensor | None = None,
        *,
        solver: Solver | None = None,
        guidance: float = 0.0,
        guide_what: str = "ab",
        attn_temp: float = 1.0,
        annealed_guidance: bool = False,
        return_sequence: bool = False,
        progress: Progress | None = None,
    ) -> FlowResult:
        """Noise (B, T, c) to images; arguments as in `TarFlow.reverse`, and the solver.

        Args:
            z, labels: on the model's device.
            solver: of `pixleap.decode.triangular`; by default `Frontier()`, and `Segments()` on a
                CUDA device.
            progress: called with (block, tokens that are final).

        Raises:
            ValueError: a z of another shape or with values that are not finite; labels that do not
                fit; a block whose exact inversion is not finite.
        """
        model = self.model
        guided = Guidance(guidance, guide_what, attn_temp, annealed_guidance)
        self._check(z, labels)
        start = time.perf_counter()
        x = (z * model.var.sqrt()).to(torch.float32)
        result = FlowResult(x)
        if return_sequence:
            result.sequence.append(model.unpatchify(z))
        default: Solver = Segments() if z.is_cuda else Frontier()
        chosen, count = solver or default, len(self.blocks)
        plan = self.plans.get((len(z), guided.halves))
        if (
            plan is not None
            and isinstance(chosen, (Frontier, Segments))
            and chosen.window == "auto"
        ):
            chosen = replace(chosen, window=plan.windows)
        for index in range(count):
            report = (lambda f, index=index: progress(index, f)) if progress else None
            block = self.model.blocks[count - 1 - index]
            system = self.system(index, labels, guided, len(z))
            solved = chosen.of_block(index, count).solve(system, block.order(x), report)
            finite = solved.finite
            if not (bool(torch.isfinite(solved.x).all()) if finite is None else finite):
                raise ValueError(
                    f"FlowDecoder: block {index} (in sampling order) gives values that are not "
                    "finite: its scales overflow float32 for this noise"
                )
            x = block.order(solved.x)
            result.blocks.append(solved)
            if return_sequence:
                result.sequence.append(model.unpatchify(x))
        result.images = model.unpatchify(x)
        result.seconds = time.perf_counter() - start
        return result

    def _check(self, z: Tensor, labels: Tensor | None) -> None:
        expected = tuple(self.model.var.shape)
        if z.dim() != 3 or tuple(z.shape[1:]) != expected:
            raise ValueError(
                f"FlowDecoder: argument 'z' expected shape (*, {expected[0]}, {expected[1]}), got "
                f"{tuple(z.shape)}"
            )
        for name, given in (("z", z), ("labels", labels)):
            if given is not None and given.device != self.model.var.device:
                raise ValueError(
                    f"FlowDecoder: argument '{name}' expected a tensor on {self.model.var.device}, "
                    f"where the model is, got {given.device}"
                )
        if labels is not None:
            check_labels("FlowDecoder", labels, len(z), self.model.num_classes - 1)
        if not bool(torch.isfinite(z).all()):
            raise ValueError(
                "FlowDecoder: argument 'z' expected finite values, got NaN or infinity"
            )

    def calibrate(self, batch: int, **options: Any) -> FlowPlan:
        """Measures which windows are fastest here for batches of this size; `Frontier` with window
        "auto" follows it from then on. Options and result: `flow_plan.calibrate`."""
        from .flow_plan import calibrate

        plan = calibrate(self, batch, **options)
        self.plans[batch, plan.halves] = plan
        return plan


def gs_jacobi(
    model: TarFlow, z: Tensor, labels: Tensor | None = None, **options: object
) -> FlowResult:
    """Invert a TarFlow with native ops; see `FlowDecoder` (build one to sample more than once)."""
    return FlowDecoder(model)(z, labels, **options)  # type: ignore[arg-type]
