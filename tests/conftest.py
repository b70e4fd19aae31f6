"""Settings of the process that tests change, put back after each of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import pixleap as px


@pytest.fixture(autouse=True)
def restore() -> Iterator[None]:
    isa, threads, torch_threads = px.isa(), px.num_threads(), torch.get_num_threads()
    torch.set_num_threads(1)  # sums in one order, and no spinning threads on the cores of others
    yield
    px.set_isa(isa)
    px.set_num_threads(threads)
    torch.set_num_threads(torch_threads)
