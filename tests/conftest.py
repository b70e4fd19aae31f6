"""Settings of the process that tests change, put back after each of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import pixleap as px
from pixleap import _native


@pytest.fixture(autouse=True)
def restore() -> Iterator[None]:
    isa, threads, torch_threads = px.isa(), px.num_threads(), torch.get_num_threads()
    torch.set_num_threads(1)  # sums in one order, and no spinning threads on the cores of others
    yield
    if hasattr(_native, "emulate_cuda"):
        _native.emulate_cuda("off")
    px.set_isa(isa)
    px.set_num_threads(threads)
    torch.set_num_threads(torch_threads)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the queries that went to `pixleap.ops.attention`."""
    seen: list[tuple[int, ...]] = []
    op = px.ops.attention

    def counted(q: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(tuple(q.shape))
        return op(q, *args, **kwargs)

    monkeypatch.setattr(px.ops, "attention", counted)
    return seen
