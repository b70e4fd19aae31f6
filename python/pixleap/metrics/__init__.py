"""Scores of sample quality."""

from . import features
from .fd_infinity import fd_infinity
from .feature_moments import FeatureMoments, load_statistics
from .frechet import frechet_distance
from .frechet_features import frechet_distance_from_features
from .inception_score import inception_score
from .mind import mind
from .mmd import cmmd, kernel_distance
from .prdc import PRDC, prdc
from .sinkhorn import sinkhorn_divergence
from .sliced_wasserstein import sliced_wasserstein
from .vendi import vendi_score

__all__ = [
    "PRDC",
    "FeatureMoments",
    "cmmd",
    "fd_infinity",
    "features",
    "frechet_distance",
    "frechet_distance_from_features",
    "inception_score",
    "kernel_distance",
    "load_statistics",
    "mind",
    "prdc",
    "sinkhorn_divergence",
    "sliced_wasserstein",
    "vendi_score",
]
