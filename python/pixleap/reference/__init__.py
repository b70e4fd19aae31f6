"""The ops in readable NumPy float64: what every native kernel is held to."""

from .layer_norm import layer_norm
from .lincomb import lincomb
from .linear import linear
from .linear_pack import linear_pack

__all__ = [
    "layer_norm",
    "lincomb",
    "linear",
    "linear_pack",
]
