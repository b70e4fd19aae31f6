"""Every family of loops takes CUDA tensors, and reads as few numbers on the host as it says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from cuda_families import FAMILIES, run
from fake_cuda import DeviceTensor, fake_cuda, to_device, to_host
from torch.utils._pytree import tree_leaves, tree_map


@pytest.mark.parametrize("name", FAMILIES)
def test_family_as_on_a_device(name: str) -> None:
    """The bits of the CPU, and no look at the device's memory but by counted reads."""
    expected = run(name)
    with fake_cuda() as reads:
        result = run(name, to_device)
    allowed = FAMILIES[name][1]
    assert allowed is None or len(reads) <= allowed, (len(reads), reads)
    for a, b in zip(tree_leaves(result), tree_leaves(expected), strict=True):
        if isinstance(b, torch.Tensor):
            assert isinstance(a, DeviceTensor), "a result that left the device"
        np.testing.assert_array_equal(np.asarray(to_host(a)), np.asarray(b))


@pytest.mark.cuda
@pytest.mark.parametrize("name", FAMILIES)
def test_family_on_a_gpu(name: str) -> None:
    def move(x: Any) -> Any:
        return tree_map(lambda t: torch.as_tensor(t).cuda(), x)

    for a, b in zip(tree_leaves(run(name, move)), tree_leaves(run(name)), strict=True):
        if isinstance(b, torch.Tensor):
            assert a.is_cuda, "a result that left the device"
            a = a.cpu()
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-3, atol=1e-3)


def test_the_device_refuses_what_a_gpu_does() -> None:
    with fake_cuda() as reads:
        x = to_device(torch.ones(3))
        for look in (lambda: x.numpy(), lambda: np.asarray(x), lambda: x + torch.ones(3)):
            with pytest.raises((TypeError, RuntimeError)):
                look()
        assert reads == [] and float(x.sum()) == 3 and x.cpu().numpy().sum() == 3
        assert reads == ["__float__", "cpu"]
        assert isinstance(torch.zeros(2, device="cuda") + x[:2], DeviceTensor)
