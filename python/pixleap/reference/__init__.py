"""The ops in readable NumPy float64: what every native kernel is held to."""

from .jacobi_update import jacobi_update
from .lincomb import lincomb
from .moments import moments
from .random_normal import random_normal

__all__ = [
    "jacobi_update",
    "lincomb",
    "moments",
    "random_normal",
]
