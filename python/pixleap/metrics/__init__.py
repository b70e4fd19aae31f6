"""Scores of sample quality."""

from .frechet import frechet_distance
from .frechet_features import frechet_distance_from_features

__all__ = ["frechet_distance", "frechet_distance_from_features"]
