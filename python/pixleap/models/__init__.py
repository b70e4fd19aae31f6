"""Small torch models to sample from, loaders for published checkpoints, and embedded weights."""

from .var import VAR
from .var_load import load_var, load_var_draft, load_vqvae
from .vqvae import VQVAE

__all__ = ["VAR", "VQVAE", "load_var", "load_var_draft", "load_vqvae"]
