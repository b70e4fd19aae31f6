"""Scores of sample quality."""

from .frechet import frechet_distance

__all__ = ["frechet_distance"]
