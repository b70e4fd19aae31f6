"""The ops in readable NumPy float64: what every native kernel is held to."""

from .lincomb import lincomb

__all__ = [
    "lincomb",
]
