"""Frechet distance with the interface of torchmetrics, which need not be installed.

The state per side is one float64 vector of count, mean and centred products. Sums of raw products,
as torchmetrics' own FrechetInceptionDistance keeps them, lose the covariance where the mean is
large against the spread; and `compute` takes no eigenvalues of a product that is not symmetric.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..metrics import frechet_distance

try:
    from torchmetrics import Metric as _Base
except ImportError:

    class _Base:  # type: ignore[no-redef]
        """What `FrechetDistance` uses of torchmetrics.Metric."""

        def __init__(self, process_group: Any = None) -> None:
            self.process_group = process_group
            self._defaults: dict[str, Tensor] = {}
            self._reductions: dict[str, Callable[[Tensor], Tensor]] = {}

        def add_state(
            self, name: str, default: Tensor, dist_reduce_fx: Callable[[Tensor], Tensor]
        ) -> None:
            self._defaults[name], self._reductions[name] = default, dist_reduce_fx
            setattr(self, name, default.clone())

        def reset(self) -> None:
            for name, default in self._defaults.items():
                setattr(self, name, default.to(getattr(self, name).device, copy=True))

        def to(self, device: Any) -> Any:
            for name in self._defaults:
                setattr(self, name, getattr(self, name).to(device))
            return self

        def __call__(self, *args: Any, **kwargs: Any) -> None:
            self.update(*args, **kwargs)  # type: ignore[attr-defined]


_OWN_SYNC = _Base.__module__ == __name__


def moments(features: Tensor) -> Tensor:
    """Features (n, d) -> float64 (1 + d + d * d,): n, their mean, their centred products."""
    x = features.double()
    if len(x) == 0:
        return x.new_zeros(1 + x.shape[1] * (1 + x.shape[1]))
    mean = x.mean(dim=0)
    centred = x - mean
    products = centred.T @ centred
    return torch.cat([x.new_tensor([len(x)]), mean, products.flatten()])


def merge_moments(parts: Tensor) -> Tensor:
    """(parts, 1 + d + d * d) -> the moments of all samples, in the order of the parts.

    Chan, Golub, LeVeque: Updating formulae and a pairwise algorithm (1979).
    """
    total = parts[0]
    for part in parts[1:]:
        n, m = float(total[0]), float(part[0])
        if m == 0 or n == 0:
            total = part if n == 0 else total
            continue
        d = _dimension(total)
        mean, products = total[1 : d + 1], total[d + 1 :] + part[d + 1 :]
        shift = part[1 : d + 1] - mean
        products = products + torch.outer(shift, shift).flatten() * (n * m / (n + m))
        mean = mean + shift * (m / (n + m))
        total = torch.cat([total.new_tensor([n + m]), mean, products])
    return total


def _dimension(state: Tensor) -> int:
    return round((len(state) - 1 + 0.25) ** 0.5 - 0.5)  # 1 + d + d^2 = len


class FrechetDistance(_Base):
    """Frechet distance between real and generated samples (FID with Inception features).

        fid = FrechetDistance(px.metrics.features.inception("pt_inception-2015-12-05-6726825d.pth"))
        fid.update(real_images, real=True)
        fid.update(generated_images, real=False)
        fid.compute()

    It is a torchmetrics.Metric where torchmetrics is installed. Under torch.distributed, `compute`
    takes the samples of all processes and leaves each with its own.

    Args:
        feature: an extractor from images to (B, d) (`pixleap.metrics.features`, or any callable),
            or None: `update` gets features.
        num_features: d; may be left out for an extractor that has it as `dim`.
        reset_real_features: False keeps the real side through `reset`.
        normalize: images are floats in [0, 1] and become uint8, as in torchmetrics.
        kwargs: of torchmetrics.Metric; without torchmetrics only `process_group`.

    Raises:
        ValueError: num_features missing.
    """

    higher_is_better = False
    is_differentiable = False

    real_moments: Tensor
    fake_moments: Tensor

    def __init__(
        self,
        feature: Callable[[Any], Any] | None = None,
        num_features: int | None = None,
        *,
        reset_real_features: bool = True,
        normalize: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.feature, self.normalize = feature, normalize
        self.reset_real_features = reset_real_features
        d = num_features if num_features is not None else getattr(feature, "dim", None)
        if not isinstance(d, int) or d < 1:
            raise ValueError(
                "FrechetDistance: argument 'num_features' expected the number of features, which "
                f"this extractor does not tell, got {num_features}"
            )
        self.num_features = d
        for name in ("real_moments", "fake_moments"):
            default = torch.zeros(1 + d + d * d, dtype=torch.float64)
            self.add_state(name, default, dist_reduce_fx=merge_moments)

    @property
    def full_state_update(self) -> bool:  # type: ignore[override]
        """How torchmetrics' `forward` works: by a reset and a merge, but not with a kept side."""
        return not getattr(self, "reset_real_features", True)

    def update(self, features_or_images: Any, real: bool) -> None:
        """Takes in features (B, num_features), or images where there is an extractor.

        Raises:
            ValueError: features of another shape.
        """
        features = features_or_images
        if self.feature is not None:
            images = (features * 255).byte() if self.normalize else features
            features = self.feature(images)
        name = "real_moments" if real else "fake_moments"
        state = getattr(self, name)
        features = torch.as_tensor(features).detach().to(state.device)
        if features.ndim != 2 or features.shape[1] != self.num_features:
            raise ValueError(
                f"FrechetDistance: argument 'features' expected shape (B, {self.num_features}), "
                f"got {tuple(features.shape)}"
            )
        setattr(self, name, merge_moments(torch.stack([state, moments(features)])))

    def compute(self) -> Tensor:
        """The distance as a float64 scalar tensor.

        Raises:
            RuntimeError: fewer than two samples on a side.
            ValueError: features that were not finite.
        """
        statistics: list[np.ndarray] = []
        for name in ("real_moments", "fake_moments"):
            state = getattr(self, name)
            if _OWN_SYNC:
                state = self._gathered(state)
            if state[0] < 2:
                raise RuntimeError(
                    f"FrechetDistance: compute() needs two samples on either side, has "
                    f"{int(state[0])} {name.removesuffix('_moments')}"
                )
            d = self.num_features
            covariance = state[d + 1 :].view(d, d) / (state[0] - 1)
            statistics += [state[1 : d + 1].cpu().numpy(), covariance.cpu().numpy()]
        value = frechet_distance(*statistics)
        return torch.tensor(value, dtype=torch.float64, device=self.real_moments.device)

    def _gathered(self, state: Tensor) -> Tensor:
        """The merged moments of all processes; what torchmetrics does by itself."""
        distributed = torch.distributed
        if not (distributed.is_available() and distributed.is_initialized()):
            return state
        group = self.process_group
        parts = [torch.empty_like(state) for _ in range(distributed.get_world_size(group))]
        distributed.all_gather(parts, state.contiguous(), group=group)
        return merge_moments(torch.stack(parts))

    def reset(self) -> None:
        """Forgets all samples, the real ones only with reset_real_features."""
        kept = self.real_moments
        super().reset()
        if not self.reset_real_features:
            self.real_moments = kept
