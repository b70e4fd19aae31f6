"""What feature extractors take: uint8 batches, or lists of PIL images of any sizes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np


def batches(images: Any, function: str) -> Iterator[np.ndarray]:
    """Yields `images` in order as uint8 arrays (b, 3, H, W), one size each.

    Args:
        images: uint8 array or tensor (B, 3, H, W), or a list of PIL images, which may differ in
            size and mode and become RGB; neighbours of one size share a batch.
        function: the name that errors begin with.

    Raises:
        ValueError: another shape, or an image without pixels.
        TypeError: another dtype, or a list with something else in it.
    """
    if not isinstance(images, list | tuple):
        if hasattr(images, "detach"):  # torch
            images = images.detach().cpu()
        array = np.asarray(images)
        if array.dtype != np.uint8:
            raise TypeError(
                f"{function}: argument 'images' expected dtype uint8 (0 to 255), got {array.dtype}"
            )
        if array.ndim != 4 or array.shape[1] != 3 or 0 in array.shape[2:]:
            raise ValueError(
                f"{function}: argument 'images' expected shape (B, 3, H, W), got {array.shape}"
            )
        if len(array):
            yield array
        return
    run: list[np.ndarray] = []
    for i, image in enumerate(images):
        if not hasattr(image, "convert"):
            raise TypeError(
                f"{function}: argument 'images[{i}]' expected a PIL image, got "
                f"{type(image).__name__}; arrays come as one uint8 array (B, 3, H, W)"
            )
        pixels = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
        if 0 in pixels.shape:
            raise ValueError(f"{function}: argument 'images[{i}]' has no pixels: {pixels.shape}")
        if run and run[0].shape != pixels.shape:
            yield np.stack(run)
            run = []
        run.append(pixels)
    if run:
        yield np.stack(run)
