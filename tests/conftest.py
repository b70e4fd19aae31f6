"""Settings of the process that tests change, put back after each of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import pixleap as px
from pixleap import _native


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = {}
    if not torch.cuda.is_available():
        missing["cuda"] = "no NVIDIA GPU (torch.cuda.is_available() is False)"
    elif not _native.built_with_cuda:
        missing["cuda"] = "this build has no CUDA kernels"
    if not hasattr(_native, "emulate_cuda"):
        missing["cuda_emulated"] = (
            "this build does not emulate CUDA (cmake -DPIXLEAP_CUDA_EMULATE=ON)"
        )
    for item in items:
        for marker in missing.keys() & {mark.name for mark in item.iter_markers()}:
            item.add_marker(pytest.mark.skip(reason=missing[marker]))


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
