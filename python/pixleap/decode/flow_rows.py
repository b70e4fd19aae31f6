"""Rows of tables by index, where the tables are: the only part of a flow's sweep that a device does
in another way than the host."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .layers import Scratch
from .token_draws import to_numpy

Index = Any  # a slice, or (R,) int64 as `index` makes it


def on_host(x: Tensor) -> bool:
    """Whether NumPy may look at the memory of `x`."""
    return x.device.type == "cpu"


class HostRows:
    """By NumPy, on this thread: torch's threads would spin on cores that native calls need."""

    def __init__(self, scratch: Scratch) -> None:
        self.scratch = scratch

    def table(self, x: Tensor) -> Any:
        """A view of x, in the framework of this class."""
        return x.numpy()

    def index(self, rows: np.ndarray) -> Index:
        return rows

    def take(self, name: str, table: Any, rows: Index) -> Any:
        """Rows of a (N, c) table as (1, R, c): the table itself where they are a slice, else in the
        work buffer `name`."""
        if isinstance(rows, slice):
            return table[None, rows]
        out = self.scratch.get(name, 1, len(rows), table.shape[1]).numpy()
        np.take(table, rows, axis=0, out=out[0], mode="clip")
        return out

    def put(self, table: Any, rows: Index, values: Any) -> None:
        """table[rows] = values."""
        table[rows] = values

    def zeros(self, like: Any) -> Any:
        return np.zeros_like(like)

    def fetch(self, moved: Tensor) -> np.ndarray:
        """A copy on the host."""
        return moved.numpy().copy()


class DeviceRows(HostRows):
    """By torch, where the model is: indices go there, and `fetch` waits for the device."""

    def __init__(self, scratch: Scratch, device: torch.device) -> None:
        super().__init__(scratch)
        self.device = device

    def table(self, x: Tensor) -> Any:
        return x

    def index(self, rows: np.ndarray) -> Index:
        return torch.from_numpy(rows).to(self.device, non_blocking=True)

    def take(self, name: str, table: Any, rows: Index) -> Any:
        if isinstance(rows, slice):
            return table[None, rows]
        out = self.scratch.get(name, 1, len(rows), table.shape[1])
        torch.index_select(table, 0, rows, out=out[0])
        return out

    def put(self, table: Any, rows: Index, values: Any) -> None:
        table.index_copy_(0, rows, values)

    def zeros(self, like: Any) -> Any:
        return torch.zeros_like(like)

    def fetch(self, moved: Tensor) -> np.ndarray:
        return to_numpy(moved)


def rows_of(like: Tensor, scratch: Scratch) -> HostRows:
    """How to move rows of tables that are where `like` is."""
    return HostRows(scratch) if on_host(like) else DeviceRows(scratch, like.device)
