"""Next-scale decoding (VAR): one primitive, a block-causal pass over scales k..m of a model on its
cache (`packed`), the tokens and features (`pyramid`), the draws (`sampling`), and what follows from
them: plain decoding, teacher forcing and editing (`decoder`)."""

from .decoder import NextScaleDecoder, as_decoder, next_scale
from .loop import Batch, Progress, Steps, draw_scales, reuse
from .packed import PackedVAR, Passes
from .pyramid import Codebook, Pyramid
from .sampling import Sampling

__all__ = [
    "Batch",
    "Codebook",
    "NextScaleDecoder",
    "PackedVAR",
    "Passes",
    "Progress",
    "Pyramid",
    "Sampling",
    "Steps",
    "as_decoder",
    "draw_scales",
    "next_scale",
    "reuse",
]
