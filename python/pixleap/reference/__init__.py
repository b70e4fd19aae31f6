"""The ops in readable NumPy float64: what every native kernel is held to."""

from .lincomb import lincomb
from .next_scale_update import next_scale_update
from .sample_tokens import sample_tokens

__all__ = [
    "lincomb",
    "next_scale_update",
    "sample_tokens",
]
