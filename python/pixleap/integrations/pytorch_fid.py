"""Repairs pytorch-fid and clean-fid, which call `scipy.linalg.sqrtm(..., disp=False)`.

scipy deprecated `disp` in 1.16 and dropped it in 1.18; since then both raise TypeError. Here is
their function on `pixleap.metrics.frechet_distance`, which takes no matrix square root and needs no
scipy:

    import pixleap as px
    px.integrations.pytorch_fid.patch()                  # before names are imported from them
    pytorch_fid.fid_score.calculate_fid_given_paths(...)
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

from ..metrics import frechet_distance

_TARGETS = (
    ("pytorch_fid.fid_score", "calculate_frechet_distance"),
    ("cleanfid.fid", "frechet_distance"),
)
_originals: dict[tuple[str, str], Callable[..., Any]] = {}


def calculate_frechet_distance(
    mu1: Any, sigma1: Any, mu2: Any, sigma2: Any, eps: float = 1e-6, *, method: str = "auto"
) -> float:
    """pytorch-fid's `calculate_frechet_distance`, and clean-fid's `frechet_distance`.

    |mu1 - mu2|^2 + tr(sigma1 + sigma2 - 2 (sigma1 sigma2)^(1/2)) in float64 (Heusel et al. 2017).

    Args:
        mu1, mu2: (d,), any float dtype; a number where d is 1.
        sigma1, sigma2: (d, d), symmetric positive semi-definite up to rounding; a number where d
            is 1.
        eps: taken for the signature's sake and not used. pytorch-fid adds it to both diagonals
            where its square root is not finite; no such case is left, whatever the rank.
        method: of `pixleap.metrics.frechet_distance`; "compat" repeats pytorch-fid's arithmetic
            (scipy's sqrtm, any version) for numbers published with it.

    Raises:
        ValueError: shapes that do not fit (pytorch-fid has AssertionError), values that are not
            finite, matrices that are no covariances.

    Source: github.com/mseitzer/pytorch-fid, src/pytorch_fid/fid_score.py.
    """
    mu1, mu2 = np.atleast_1d(mu1), np.atleast_1d(mu2)
    sigma1, sigma2 = (_symmetric(np.atleast_2d(s)) for s in (sigma1, sigma2))
    options: dict[str, Any] = {} if method == "auto" else {"method": method}
    return float(frechet_distance(mu1, sigma1, mu2, sigma2, **options))


def _symmetric(sigma: np.ndarray) -> np.ndarray:
    """Float32 statistics are symmetric only to their rounding, and pytorch-fid takes them so."""
    if sigma.ndim != 2 or sigma.shape[0] != sigma.shape[1]:
        return sigma  # for frechet_distance to refuse
    sigma = np.asarray(sigma, np.float64)
    mean = (sigma + sigma.T) / 2
    with np.errstate(invalid="ignore"):
        small = np.abs(sigma - mean).max(initial=0.0) <= 1e-5 * np.abs(mean).max(initial=0.0)
    return mean if small else sigma


def patch(method: str = "auto") -> list[str]:
    """Replaces the Frechet distance of pytorch-fid and of clean-fid, where they are installed.

    Names that a module imported from them earlier (`from ... import ...`) keep the old function, so
    call it first. A second call changes nothing but the method.

    Args:
        method: as in `calculate_frechet_distance`.

    Returns:
        What is patched now, such as ["pytorch_fid.fid_score.calculate_frechet_distance"]; empty
        where neither package is installed.

    Raises:
        ImportError: a package is installed and does not import (pytorch-fid without torchvision).
    """
    replacement = functools.partial(calculate_frechet_distance, method=method)
    functools.update_wrapper(replacement, calculate_frechet_distance)
    patched = []
    for module_name, name in _TARGETS:
        if importlib.util.find_spec(module_name.partition(".")[0]) is None:
            continue
        module = importlib.import_module(module_name)
        current = getattr(module, name)
        if getattr(current, "func", None) is not calculate_frechet_distance:
            _originals[module_name, name] = current
        setattr(module, name, replacement)
        patched.append(f"{module_name}.{name}")
    return patched


def unpatch() -> list[str]:
    """Puts back what `patch` replaced, and returns its names; nothing where nothing is patched."""
    restored = []
    for (module_name, name), original in _originals.items():
        setattr(importlib.import_module(module_name), name, original)
        restored.append(f"{module_name}.{name}")
    _originals.clear()
    return restored
