"""Scores of sample quality."""

from .fd_infinity import fd_infinity
from .frechet import frechet_distance
from .inception_score import inception_score
from .mind import mind
from .mmd import cmmd, kernel_distance
from .prdc import PRDC, prdc
from .sinkhorn import sinkhorn_divergence
from .sliced_wasserstein import sliced_wasserstein
from .vendi import vendi_score

__all__ = [
    "PRDC",
    "cmmd",
    "fd_infinity",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "mind",
    "prdc",
    "sinkhorn_divergence",
    "sliced_wasserstein",
    "vendi_score",
]
