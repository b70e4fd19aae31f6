"""Makes the native ops known to torch, so that torch.compile and torch.export accept them.

Eager calls never come here: they go from the op's Python front straight to `_native`. Dynamo sees
`torch.ops.pixleap.<op>` in place of the native function; FakeTensors, meta tensors and tensor
subclasses take the same way through `dispatch`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import _native

_SCHEMA = {
    "view": "Tensor",
    "optional": "Tensor?",
    "views": "Tensor[]",
    "optionals": "Tensor?[]",
    "float": "float",
    "floats": "float[]",
    "int": "int",
    "ints": "int[]",
    "bool": "bool",
    "str": "str",
}
_library: Any = None


def dtype(name: str) -> Any:
    """torch dtype by name."""
    import torch

    return getattr(torch, name)


def schema(op: str) -> str:
    """The torch schema of an op: outputs are mutated arguments, nothing is returned."""
    arguments = []
    for position, (name, kind) in enumerate(_native.signatures[op]):
        alias = f"(a{position}!)"
        text = {"out": f"Tensor{alias}", "outs": f"Tensor{alias}[]"}.get(kind) or _SCHEMA[kind]
        arguments.append(f"{text} {name}")
    return f"{op}({', '.join(arguments)}) -> ()"


def _plain(x: Any) -> Any:
    """A tensor subclass without a dispatch of its own, as a plain tensor."""
    import torch

    if isinstance(x, torch.Tensor) and type(x) is not torch.Tensor:
        if hasattr(type(x), "__torch_dispatch__") and type(x).__torch_dispatch__ is not (
            torch._C._disabled_torch_dispatch_impl
        ):
            raise TypeError(f"expected a tensor with data, got {type(x).__name__}")
        return x.detach().as_subclass(torch.Tensor)
    return [_plain(y) for y in x] if isinstance(x, (list, tuple)) else x


def register() -> None:
    """Defines every op in torch.library. Called once, on first use with torch; cheap to repeat."""
    global _library
    if _library is not None:
        return
    import torch

    _library = torch.library.Library("pixleap", "DEF")
    for op in _native.signatures:
        native: Callable[..., None] = getattr(_native, op)
        _library.define(schema(op), tags=torch.Tag.needs_exact_strides)

        def kernel(*args: Any, _native_op: Callable[..., None] = native) -> None:
            _native_op(*(_plain(a) for a in args))

        def fake(*args: Any) -> None:
            return None

        _library.impl(op, kernel, "CPU")
        _library.impl(op, kernel, "CUDA")
        torch.library.register_fake(f"pixleap::{op}", fake, lib=_library)
        _substitute(native, getattr(torch.ops.pixleap, op))


def _substitute(native: Callable[..., None], op: Callable[..., None]) -> None:
    """While Dynamo traces, calls of `native` become calls of the registered op."""
    import torch

    @torch.compiler.substitute_in_graph(native, skip_signature_check=True)  # type: ignore[arg-type]
    def traced(*args: Any) -> None:
        return op(*args)


def dispatch(op: str, args: tuple[Any, ...]) -> None:
    """Calls an op through torch's dispatcher."""
    import torch

    register()
    getattr(torch.ops.pixleap, op)(*args)
