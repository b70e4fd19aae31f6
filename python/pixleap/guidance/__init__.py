"""Guidance: how several model outputs become one, folded into the solver's pass where it can be."""

from .adaptive import AdaptiveGuidance, LinearAG, fit_linear_ag, similarity
from .base import Guidance, sample
from .classifier import GradientFreeClassifierGuidance
from .classifier_free import CFG, PAG, Autoguidance, autoguidance, cfg, pag, rescale
from .projected import APG, apg
from .residual import ResidualCFG
from .stream import SimilarityFilter, StreamBatch

__all__ = [
    "APG",
    "CFG",
    "PAG",
    "AdaptiveGuidance",
    "Autoguidance",
    "GradientFreeClassifierGuidance",
    "Guidance",
    "LinearAG",
    "ResidualCFG",
    "SimilarityFilter",
    "StreamBatch",
    "apg",
    "autoguidance",
    "cfg",
    "fit_linear_ag",
    "pag",
    "rescale",
    "sample",
    "similarity",
]
