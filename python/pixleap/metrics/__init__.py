"""Scores of sample quality."""

from . import features
from .frechet import frechet_distance

__all__ = ["features", "frechet_distance"]
