"""pixleap: the fast path for sampling images.

`pixleap.ops` holds the native ops, `pixleap.reference` the same functions in NumPy float64.
`pixleap.models`, `pixleap.decode` and `pixleap.integrations` need torch and are imported on use.
"""

from __future__ import annotations

import importlib
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from . import _native, masks, ops, reference, rope
from ._native import available_isas, isa, num_threads, set_isa, set_num_threads
from .kv_cache import KVCache

if TYPE_CHECKING:
    from . import caching, decode, guidance, metrics, models, solvers

try:
    __version__ = version("pixleap")
except PackageNotFoundError:  # used from a source tree
    __version__ = "0+unknown"

__all__ = [
    "KVCache",
    "available_isas",
    "caching",
    "decode",
    "guidance",
    "info",
    "isa",
    "masks",
    "metrics",
    "models",
    "num_threads",
    "ops",
    "reference",
    "rope",
    "set_isa",
    "set_num_threads",
    "solvers",
]

_LAZY = ("caching", "decode", "guidance", "integrations", "metrics", "models", "solvers")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])


def info() -> dict[str, Any]:
    """Version, instruction sets, threads and CUDA state, as `pixleap info` prints them."""
    return {
        "version": __version__,
        "isa": isa(),
        "available_isas": available_isas(),
        "num_threads": num_threads(),
        "cpus": len(os.sched_getaffinity(0)),
        "built_with_cuda": _native.built_with_cuda,
        "ops": sorted(_native.signatures),
    }


if "torch" in sys.modules:
    from . import _torch

    _torch.register()
