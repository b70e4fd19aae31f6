"""Scores of sample quality."""

from . import features
from .feature_moments import FeatureMoments, load_statistics
from .frechet import frechet_distance
from .frechet_features import frechet_distance_from_features

__all__ = [
    "FeatureMoments",
    "features",
    "frechet_distance",
    "frechet_distance_from_features",
    "load_statistics",
]
