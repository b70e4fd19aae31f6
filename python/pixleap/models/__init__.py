"""Small torch models to sample from, loaders for published checkpoints, and embedded weights."""

from .checkpoint import check_state_dict, load_checkpoint, load_state, save_checkpoint
from .classifier import DigitClassifier, load_classifier
from .tarflow import TarFlow, load_tarflow

__all__ = [
    "DigitClassifier",
    "TarFlow",
    "check_state_dict",
    "load_checkpoint",
    "load_classifier",
    "load_state",
    "load_tarflow",
    "save_checkpoint",
]
