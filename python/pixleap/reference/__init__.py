"""The ops in readable NumPy float64: what every native kernel is held to."""

from .attention import attention
from .attention_varlen import attention_varlen
from .dynamic_threshold import dynamic_threshold
from .feature_covariance import feature_covariance
from .feature_moments import feature_moments
from .gaussian_accept import gaussian_accept
from .guidance_weights import guidance_weights
from .gumbel_softmax import gumbel_softmax
from .hadamard_projection import hadamard_projection
from .jacobi_update import jacobi_update
from .kv_append import kv_append
from .kv_append_varlen import kv_append_varlen
from .layer_norm import layer_norm
from .lincomb import lincomb
from .linear import linear
from .linear_pack import linear_pack
from .matrix_sqrt import matrix_sqrt
from .merge_attention import merge_attention
from .moments import moments
from .next_scale_update import next_scale_update
from .nuclear_norm import nuclear_norm
from .pairwise_count import pairwise_count
from .pairwise_kernel_sum import pairwise_kernel_sum
from .pairwise_topk import pairwise_topk
from .random_normal import random_normal
from .relaxed_accept import relaxed_accept
from .sample_tokens import sample_tokens
from .selective_scan import selective_scan
from .speculative_accept import speculative_accept
from .systematic_resample import systematic_resample
from .token_probabilities import token_probabilities
from .trace_sqrt_product import trace_sqrt_product

__all__ = [
    "attention",
    "attention_varlen",
    "dynamic_threshold",
    "feature_covariance",
    "feature_moments",
    "gaussian_accept",
    "guidance_weights",
    "gumbel_softmax",
    "hadamard_projection",
    "jacobi_update",
    "kv_append",
    "kv_append_varlen",
    "layer_norm",
    "lincomb",
    "linear",
    "linear_pack",
    "matrix_sqrt",
    "merge_attention",
    "moments",
    "next_scale_update",
    "nuclear_norm",
    "pairwise_count",
    "pairwise_kernel_sum",
    "pairwise_topk",
    "random_normal",
    "relaxed_accept",
    "sample_tokens",
    "selective_scan",
    "speculative_accept",
    "systematic_resample",
    "token_probabilities",
    "trace_sqrt_product",
]
