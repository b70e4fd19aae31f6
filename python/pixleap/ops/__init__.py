"""The native ops. Each takes torch tensors, NumPy arrays or any DLPack object, on the CPU or, where
a CUDA kernel exists, on the GPU; `pixleap.reference` has the same functions in NumPy float64."""

from .lincomb import lincomb
from .next_scale_update import next_scale_update
from .sample_tokens import sample_tokens

__all__ = [
    "lincomb",
    "next_scale_update",
    "sample_tokens",
]
