"""The ops in readable NumPy float64: what every native kernel is held to."""

from .attention import attention
from .kv_append import kv_append
from .lincomb import lincomb

__all__ = [
    "attention",
    "kv_append",
    "lincomb",
]
