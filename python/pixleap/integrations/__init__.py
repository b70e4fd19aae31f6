"""Drop-ins for other people's packages. Each is imported on use and needs only what it adapts."""

from __future__ import annotations

import importlib
from typing import Any

_MODULES = ("diffusers", "pytorch_fid", "tarflow", "torchmetrics", "var")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
