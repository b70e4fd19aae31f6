"""torch.compile, torch.export, FakeTensor, meta tensors and subclasses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import pixleap as px
from pixleap import _native, _torch

X, Y = torch.linspace(-1, 1, 24).view(2, 12), torch.linspace(0, 3, 24).view(2, 12)


def combine(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return px.ops.lincomb([x, y * 2], [[0.5, -1.0]])[0].sin()


def test_compile_fullgraph() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(combine, fullgraph=True)
    torch.testing.assert_close(compiled(X, Y), combine(X, Y))


def test_compile_with_out_in_place() -> None:
    def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        px.ops.lincomb([x, y], [[2.0, 1.0]], out=[x])
        return x + 1

    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(step, fullgraph=True)(X, Y), 2 * X + Y + 1)


def test_export() -> None:
    class Module(torch.nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return combine(x, y)

    program = torch.export.export(Module(), (X, Y))
    assert "pixleap.lincomb" in str(program.graph)
    torch.testing.assert_close(program.module()(X, Y), combine(X, Y))


def test_every_op_is_registered() -> None:
    for op in _native.signatures:
        assert hasattr(torch.ops.pixleap, op), op
        assert (
            str(getattr(torch.ops.pixleap, op).default._schema) == f"pixleap::{_torch.schema(op)}"
        )


def test_fake_and_meta_tensors_give_shapes() -> None:
    meta = px.ops.lincomb([X.to("meta")], [[1.0]])[0]
    assert meta.device.type == "meta" and meta.shape == X.shape
    with FakeTensorMode():
        fake = px.ops.lincomb([torch.empty(3, 4)], [[1.0]])[0]
        assert fake.shape == (3, 4)


def test_fake_tensor_without_the_mode_is_named() -> None:
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(X)
    with pytest.raises((TypeError, ValueError, RuntimeError, AssertionError), match=r"[Ff]ake"):
        px.ops.lincomb([X, fake], [[1.0, 1.0]])


def test_subclass_and_parameter() -> None:
    class Tagged(torch.Tensor):
        pass

    torch.testing.assert_close(
        px.ops.lincomb([X.as_subclass(Tagged)], [[3.0]])[0].as_subclass(torch.Tensor), 3 * X
    )
    parameter = torch.nn.Parameter(X.clone())
    with torch.no_grad():
        torch.testing.assert_close(px.ops.lincomb([parameter], [[3.0]])[0].detach(), 3 * X)
    with pytest.raises(TypeError, match=r"lincomb: argument 'inputs'.*requires_grad"):
        px.ops.lincomb([parameter], [[3.0]])


def test_negated_view_is_refused() -> None:
    for view in (torch.complex(X, X).conj().imag, torch.complex(X, X).conj().imag[:1, :1]):
        assert view.is_neg()
        with pytest.raises(TypeError, match="negated view"):
            px.ops.lincomb([view], [[1.0]])


def test_registration_from_a_fresh_process(tmp_path: Any) -> None:
    """torch imported after pixleap: the first eager call registers."""
    import subprocess
    import sys

    code = (
        "import pixleap as px, sys; assert 'torch' not in sys.modules\n"
        "import torch; x = torch.ones(3)\n"
        "px.ops.lincomb([x], [[2.0]])\n"
        "double = lambda x: px.ops.lincomb([x], [[2.0]])[0]\n"
        "f = torch.compile(double, fullgraph=True, backend='eager')\n"
        "assert f(x).sum() == 6\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
