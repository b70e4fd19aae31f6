"""A small digit classifier: says whether samples are right, and gives features for FID."""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from .checkpoint import check_state_dict, load_checkpoint

EMBEDDED = Path(__file__).with_name("weights") / "digit_classifier.npz"


def _stage(inputs: int, outputs: int) -> nn.Sequential:
    """Convolution, batch norm, ReLU and halving of the resolution."""
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2))


class DigitClassifier(nn.Module):
    """Images (B, 1, H, W) in [-1, 1], any size -> logits (B, 10)."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.config = {"width": width}
        self.stages = nn.Sequential(
            _stage(1, width), _stage(width, 2 * width), _stage(2 * width, 4 * width)
        )
        self.hidden = nn.Linear(4 * width * 9, 32)
        self.head = nn.Linear(32, 10)

    def resize(self, x: Tensor) -> Tensor:
        """(B, 1, H, W) -> (B, 1, 28, 28), bilinear."""
        if x.shape[-2:] != (28, 28):
            x = F.interpolate(x, (28, 28), mode="bilinear", align_corners=False)
        return x

    def features(self, x: Tensor) -> Tensor:
        """Penultimate features (B, 32); the image is resized to 28 x 28 first."""
        return F.relu(self.hidden(self.stages(self.resize(x)).flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def load_classifier(path: str | Path | None = None) -> DigitClassifier:
    """The embedded classifier, or one saved with `save_checkpoint`, in eval mode."""
    config, state = load_checkpoint(path if path is not None else EMBEDDED)
    model = DigitClassifier(**config)
    check_state_dict(model, state)
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)
