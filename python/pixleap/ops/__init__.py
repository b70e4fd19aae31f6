"""The native ops. Each takes torch tensors, NumPy arrays or any DLPack object, on the CPU or, where
a CUDA kernel exists, on the GPU; `pixleap.reference` has the same functions in NumPy float64."""

from .attention import attention
from .kv_append import kv_append
from .lincomb import lincomb

__all__ = [
    "attention",
    "kv_append",
    "lincomb",
]
