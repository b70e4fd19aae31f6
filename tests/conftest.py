"""Settings of the process that tests change, put back after each of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import pixleap as px


@pytest.fixture(autouse=True)
def restore() -> Iterator[None]:
    isa, threads, torch_threads = px.isa(), px.num_threads(), torch.get_num_threads()
    yield
    px.set_isa(isa)
    px.set_num_threads(threads)
    torch.set_num_threads(torch_threads)


@pytest.fixture
def one_thread(restore: None) -> None:
    """torch sums in one order."""
    torch.set_num_threads(1)
