"""Small torch models to sample from, loaders for published checkpoints, and embedded weights."""

from .checkpoint import check_state_dict, load_checkpoint, load_state, save_checkpoint
from .classifier import DigitClassifier, load_classifier
from .dit import DiT
from .dit_load import load_digits_dit, load_dit
from .raster_ar import NativeRasterAR, RasterAR, load_raster_ar
from .starflow import StarFlow, load_starflow
from .tarflow import TarFlow, load_tarflow
from .var import VAR
from .var_load import load_var, load_var_draft, load_vqvae
from .var_quantised import emulate_quantised_weights
from .vqvae import VQVAE

__all__ = [
    "VAR",
    "VQVAE",
    "DiT",
    "DigitClassifier",
    "NativeRasterAR",
    "RasterAR",
    "StarFlow",
    "TarFlow",
    "check_state_dict",
    "emulate_quantised_weights",
    "load_checkpoint",
    "load_classifier",
    "load_digits_dit",
    "load_dit",
    "load_raster_ar",
    "load_starflow",
    "load_state",
    "load_tarflow",
    "load_var",
    "load_var_draft",
    "load_vqvae",
    "save_checkpoint",
]
