"""Flow inversion whose sweeps are CUDA graphs: fixed segments, and convergence decided on the
device.

A sweep of a segment of all samples has fixed addresses and shapes, so it is captured once and
launched as one graph from then on. Which samples have converged is a tensor of the device, and the
host reads one flag per sweep: whether all have. It reads the flag of a sweep when the next one is
already queued, so that the device never waits for the host. That next sweep is of use: it leaves
in the caches the keys and values of the final tokens. What has converged is frozen on the device,
so a sample gets the same numbers whatever the batch it is in still needs.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import ops
from .flow_block import Cache, FlowSystem, Guidance, PackedBlock, SegmentRows
from .graphs import Graphs, HostRead
from .layers import Scratch
from .triangular import TriangularResult, TriangularSystem, first_guess
from .triangular_solvers import Report, bound_of, check_margin, check_tol, check_window, pick

ROWS = 256  # of a sweep, for window "auto"


class SegmentSweeps:
    """The sweeps of one shape: buffers that they read and write, and their graphs.

    Args:
        blocks: of the flow, in any order, all of one shape.
        batch: samples.
        guidance: its scale and ramp may differ from call to call, the rest is captured.
        caches: one per layer, with at least `batch` slots, or twice as many with guidance.
        channels: P, values of a token.
    """

    def __init__(
        self,
        blocks: list[PackedBlock],
        batch: int,
        guidance: Guidance,
        caches: list[Cache],
        channels: int,
        window: int,
    ) -> None:
        self.batch, self.guidance, self.caches = batch, guidance, caches
        like = blocks[0].positions
        self.length, self.width = like.shape
        self.halves = guidance.halves
        starts = range(1, self.length, window)
        self.edges = [(begin, min(begin + window, self.length)) for begin in starts]
        self.scratch = Scratch(like)  # its own: graphs keep the addresses
        self.x, self.z = (like.new_empty(batch, self.length, channels) for _ in range(2))
        self.embedding = like.new_empty(self.halves, batch, self.length, self.width)
        self.strength = like.new_empty(self.length)
        self.bound = like.new_empty(())
        self.largest = like.new_empty(batch)
        self.moves = like.new_empty(self.length)  # the largest move of each sweep of the block
        self.count = torch.zeros(1, dtype=torch.int64, device=like.device)
        self.done = torch.zeros(batch, dtype=torch.bool, device=like.device)
        self.all_done = torch.zeros((), dtype=torch.bool, device=like.device)
        self.reads = [HostRead(self.all_done) for _ in range(2)]
        self.graphs = Graphs(like.device, most=len(blocks) * len(self.edges))  # none goes

    def load(self, system: FlowSystem, noise: Tensor, init: Any, bound: float) -> None:
        """The numbers of a block into the buffers."""
        self.z.copy_(noise)
        self.x.copy_(first_guess(self.z, init, system.first))
        for own, (table, _) in zip(self.embedding, system.embeddings, strict=True):
            rows = torch.as_tensor(table, device=own.device)
            own.copy_(rows.view(-1, self.length, self.width).expand_as(own))
        self.strength.copy_(torch.as_tensor(system.strength))
        self.bound.fill_(bound)
        self.count.zero_()

    def settle(self, index: int, packed: PackedBlock, begin: int, end: int) -> int:
        """Sweeps the tokens begin .. end - 1 until all samples have converged and once more, or as
        often as there are tokens, which is exact; how often."""
        self.done.zero_()
        most = end - begin
        for n in range(most):
            self.graphs((index, begin), lambda: self.sweep(packed, begin, end))
            if n + 2 < most:  # else the next one is the last anyway
                self.reads[n % 2].start(self.all_done)
            if 0 < n < most - 1 and self.reads[(n - 1) % 2].wait():
                return n + 1
        return most

    def sweep(self, packed: PackedBlock, begin: int, end: int) -> None:
        """One sweep, without a look at any number: x, done, all_done, moves and the caches."""
        scratch, tokens = self.scratch, slice(begin, end)
        given = slice(begin - 1, end - 1)  # token t - 1 tells of token t
        size = (self.halves, self.batch, end - begin)
        rows = size[0] * size[1] * size[2]
        h = scratch.get("x", *size, self.width)
        for own, table in zip(h, self.embedding, strict=True):
            packed.proj_in(self.x[:, given], residual=table[:, given], out=own)
        flat = h.view(1, rows, self.width)
        groups = self._groups(begin, end)
        for layer, cache in zip(packed.layers, self.caches, strict=False):
            layer(flat, cache, groups, scratch)
        params = scratch.get("params", 1, rows, packed.proj_out.out_features)
        both = packed.proj_out(flat, out=params).view(*size, -1)
        channels = self.x.shape[2]
        a = both[..., :channels] if packed.nvp else torch.zeros_like(both)
        b = both[..., channels:] if packed.nvp else both
        options: dict[str, Any] = {}
        if self.halves == 2:
            what = self.guidance.what
            options = {
                "uncond_a": a[1] if "a" in what else None,
                "uncond_b": b[1] if "b" in what or "c" in what else None,
                "guidance": self.strength[given],
            }
        x = self.x[:, tokens]
        new = scratch.get("new", *size[1:], channels)
        moved = scratch.get("moved", *size[1:])
        ops.jacobi_update(self.z[:, tokens], a[0], b[0], x, out=(new, moved), **options)
        x.copy_(torch.where(self.done.view(-1, 1, 1), x, new))
        torch.amax(moved, dim=1, out=self.largest)
        self.largest.masked_fill_(self.done, 0)
        self.done.logical_or_(self.largest <= self.bound)
        self.all_done.copy_(self.done.all())
        self.moves.index_copy_(0, self.count, self.largest.amax(dim=0, keepdim=True))
        self.count.add_(1)

    def _groups(self, begin: int, end: int) -> list[tuple[Any, float]]:
        """The rows of all slots, or of both halves where their temperatures differ."""
        temp, both = self.guidance.attn_temp, self.halves * self.batch
        if self.halves == 1 or temp == 1.0:
            return [(SegmentRows(0, both, begin, end), 1.0)]
        parts = ((0, self.batch, 1.0), (self.batch, both, temp))
        return [(SegmentRows(first, last, begin, end), t) for first, last, t in parts]

    def report(self, sweeps: int) -> tuple[list[float], bool]:
        """The largest move of each sweep, and whether x is finite: one read."""
        finite = torch.isfinite(self.x).all().to(self.moves.dtype)
        *moves, good = torch.cat((self.moves[:sweeps], finite[None])).tolist()
        return moves, bool(good)


@dataclass(frozen=True)
class Segments:
    """Segments of a flow one after the other, Jacobi sweeps inside, all samples together; each
    sweep is one CUDA graph, and the host reads one flag per sweep and a report per block. The
    solver of flows on a CUDA device; on the CPU it gives the same without graphs, and `Frontier` is
    faster there.

    A sample has converged in a segment when no token of it moved by more than tol / margin; it is
    frozen then and stays in the batch, so its numbers do not depend on the others. A segment ends
    one sweep after its last sample converged, or after as many sweeps as it has tokens, which is
    exact. With tol = 0 the result has the bits of so many sweeps, and with a window of 1 those of
    the sequential loop; attention rounds in another way for one query than for many, so with other
    windows the two agree to rounding.

    Args:
        tol, margin, init: as in `Frontier`.
        window: tokens of a segment; a list of them, one for every block; or "auto": as many as
            make 256 rows of a sweep (samples times tokens, twice with guidance), at least 8.
    """

    tol: float = 1e-4
    window: Any = "auto"
    init: Any = "z"
    margin: float = 32.0

    def __post_init__(self) -> None:
        check_window("Segments", self.window)
        check_tol("Segments", self.tol)
        check_margin("Segments", self.margin)

    def of_block(self, index: int, blocks: int) -> Segments:
        return pick(self, ("window", "init"), index, blocks)

    def solve(
        self, system: TriangularSystem, noise: Any, report: Report | None = None
    ) -> TriangularResult:
        """See `solve_triangular`.

        Raises:
            TypeError: a system that is not a `FlowDecoder`'s.
        """
        if not isinstance(system, FlowSystem) or system.sweeps is None:
            raise TypeError(
                "Segments: argument 'system' expected a block of a FlowDecoder, got "
                f"{type(system).__name__}"
            )
        start, batch = time.perf_counter(), int(noise.shape[0])
        if batch == 0 or system.length <= system.first:
            x = first_guess(noise, self.init, system.first)
            return TriangularResult(x, [], np.zeros(batch, np.int64), [], np.ones(batch, bool), 0.0)
        window = self.window
        if window == "auto":
            window = max(8, ROWS // (system.rows * batch))
        run = system.sweeps(min(window, system.length - system.first))
        run.load(system, noise, self.init, bound_of(self.tol, self.margin, run.x))
        tokens: list[int] = []
        for begin, end in run.edges:
            sweeps = run.settle(system.index, system.packed, begin, end)
            tokens += [batch * (end - begin)] * sweeps
            if report is not None:
                report(end)
        residuals, finite = run.report(len(tokens))
        return TriangularResult(
            run.x.clone(), tokens, np.full(batch, sum(tokens) // batch), residuals,
            np.ones(batch, bool), time.perf_counter() - start, finite=finite,
        )  # fmt: skip
