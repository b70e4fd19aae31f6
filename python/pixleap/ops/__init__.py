"""The native ops. Each takes torch tensors, NumPy arrays or any DLPack object, on the CPU or, where
a CUDA kernel exists, on the GPU; `pixleap.reference` has the same functions in NumPy float64."""

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
