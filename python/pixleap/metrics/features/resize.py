"""The four ways in which FID implementations bring an image to 299 x 299. They give four FIDs.

| `resize`       | grid and filter                                     | as in                          |
|----------------|-----------------------------------------------------|--------------------------------|
| "tf1"          | bilinear, source = i * (in / out), no antialiasing  | Heusel et al. (TTUR), torch-fidelity, StyleGAN, clean-fid "legacy_tensorflow" |
| "pytorch_fid"  | bilinear, source = (i + 1/2) * (in / out) - 1/2, no antialiasing | pytorch-fid, clean-fid "legacy_pytorch" |
| "antialias"    | the same centres, triangle filter over in / out     | torchmetrics                   |
| "pil_bicubic"  | PIL's bicubic with antialiasing, float per channel  | clean-fid "clean"              |

pytorch-fid maps pixels to 2 x / 255 - 1, the others to (x - 128) / 128, as the TensorFlow graph does.
"""  # noqa: E501

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

MODES = ("tf1", "pytorch_fid", "antialias", "pil_bicubic")


def tf1_bilinear(x: Tensor, size: int) -> Tensor:
    """TensorFlow 1's `resize_bilinear(align_corners=False)` without half-pixel centres.

    Output pixel i reads the input at i * (in / out): the first pixels coincide, the picture shifts
    by up to half a pixel, and the last row and column repeat. Arithmetic in its kernel's order.

    Args:
        x: (B, C, H, W) floating point.
        size: of both sides of the result.
    """

    def taps(length: int) -> tuple[Tensor, Tensor, Tensor]:
        position = torch.arange(size, dtype=x.dtype, device=x.device)
        # The ratio is float32 in TensorFlow's kernel, whatever the image is.
        position = position * torch.tensor(length / size, dtype=torch.float32).to(x.device)
        low = position.long()
        return low, (low + 1).clamp_max(length - 1), position - low

    low, high, weight = taps(x.shape[3])
    left, right = x.index_select(3, low), x.index_select(3, high)
    rows = left + (right - left) * weight
    low, high, weight = taps(x.shape[2])
    top, bottom = rows.index_select(2, low), rows.index_select(2, high)
    return top + (bottom - top) * weight.unsqueeze(1)


def pil_bicubic(x: np.ndarray, size: int) -> np.ndarray:
    """clean-fid's resize (Parmar et al. 2022): PIL's bicubic on each channel in float, clipped.

    Args:
        x: uint8 (B, C, H, W).
        size: of both sides of the result.

    Returns:
        float32 (B, C, size, size) in [0, 255], not rounded.
    """
    from PIL import Image

    out = np.empty((*x.shape[:2], size, size), np.float32)
    for index in np.ndindex(x.shape[:2]):
        plane = Image.fromarray(x[index].astype(np.float32))
        out[index] = plane.resize((size, size), Image.Resampling.BICUBIC)
    return out.clip(0, 255)


def for_inception(x: np.ndarray, mode: str, device: torch.device, size: int = 299) -> Tensor:
    """uint8 (B, 3, H, W) -> float32 (B, 3, size, size) as the network takes it, by `mode`."""
    if mode == "pil_bicubic":
        return (torch.from_numpy(pil_bicubic(x, size)).to(device) - 128) / 128
    pixels = torch.from_numpy(np.ascontiguousarray(x)).to(device, torch.float32)
    if mode == "tf1":
        return (tf1_bilinear(pixels, size) - 128) / 128
    if mode == "pytorch_fid":
        pixels = F.interpolate(pixels / 255, (size, size), mode="bilinear", align_corners=False)
        return 2 * pixels - 1
    if mode == "antialias":
        pixels = F.interpolate(
            pixels, (size, size), mode="bilinear", align_corners=False, antialias=True
        )
        return (pixels - 128) / 128
    raise ValueError(f"inception: argument 'resize' expected one of {MODES}, got {mode!r}")
