"""The ops in readable NumPy float64: what every native kernel is held to."""

from .attention import attention
from .hadamard_projection import hadamard_projection
from .jacobi_update import jacobi_update
from .kv_append import kv_append
from .layer_norm import layer_norm
from .lincomb import lincomb
from .linear import linear
from .linear_pack import linear_pack
from .moments import moments
from .next_scale_update import next_scale_update
from .pairwise_count import pairwise_count
from .pairwise_kernel_sum import pairwise_kernel_sum
from .pairwise_topk import pairwise_topk
from .random_normal import random_normal
from .sample_tokens import sample_tokens

__all__ = [
    "attention",
    "hadamard_projection",
    "jacobi_update",
    "kv_append",
    "layer_norm",
    "lincomb",
    "linear",
    "linear_pack",
    "moments",
    "next_scale_update",
    "pairwise_count",
    "pairwise_kernel_sum",
    "pairwise_topk",
    "random_normal",
    "sample_tokens",
]
