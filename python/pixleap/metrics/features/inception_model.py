"""The Inception v3 of FID: the network of inception-2015-12-05.tgz (TensorFlow), as torch modules.

It is the graph that Heusel et al. 2017 published FID with, not torchvision's Inception v3: the
average pools of the mixed blocks leave the padding out of the mean, the last block pools by the
maximum, and the head has 1008 outputs. Names of parameters are those of pytorch-fid and
torch-fidelity (github.com/mseitzer/pytorch-fid, github.com/toshas/torch-fidelity), so their weight
files load.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 1008
DIMS = (64, 192, 768, 2048)  # of the taps that `forward` can return


class Step(NamedTuple):
    """One convolution; padded to keep the size unless it has a stride."""

    channels: int
    kernel: int | tuple[int, int] = 1
    stride: int = 1


# A branch is a chain of steps; a tuple of steps in last place is a fork whose outputs are stacked.
Chain = list[Step | tuple[Step, Step]]


class Conv(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(self, inputs: int, step: Step, padding: int | tuple[int, int] = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            inputs, step.channels, step.kernel, step.stride, padding=padding, bias=False
        )
        self.bn = nn.BatchNorm2d(step.channels, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


def _same(step: Step) -> int | tuple[int, int]:
    """Padding that keeps the size; none with a stride."""
    if step.stride > 1:
        return 0
    if isinstance(step.kernel, int):
        return step.kernel // 2
    return step.kernel[0] // 2, step.kernel[1] // 2


class Mixed(nn.Module):
    """Parallel branches and a pooled branch, stacked along the channels.

    The step i of branch "b" is the module "b_i", "b" where it is alone; the arms of a fork are
    "b_ia" and "b_ib". `pool` is "mean" (over what is inside the image), "max", or "max/2" with
    stride 2; a convolution "branch_pool" to `pool_channels` follows the first two.
    """

    def __init__(
        self, inputs: int, branches: dict[str, Chain], pool: str, pool_channels: int = 0
    ) -> None:
        super().__init__()
        self.pool = pool
        self.chains: list[list[tuple[str, ...]]] = []
        self.channels = pool_channels or inputs
        for branch, chain in branches.items():
            width, names = inputs, []
            for i, step in enumerate(chain, 1):
                base = f"{branch}_{i}" if len(chain) > 1 else branch
                if isinstance(step, Step):
                    arms = {base: step}
                else:
                    arms = {base + "a": step[0], base + "b": step[1]}
                for name, arm in arms.items():
                    self.add_module(name, Conv(width, arm, _same(arm)))
                names.append(tuple(arms))
                width = sum(arm.channels for arm in arms.values())
            self.chains.append(names)
            self.channels += width
        if pool_channels:
            self.branch_pool = Conv(inputs, Step(pool_channels))

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for chain in self.chains:
            y = x
            for names in chain:
                arms = [self.get_submodule(name)(y) for name in names]
                y = torch.cat(arms, dim=1) if len(arms) > 1 else arms[0]
            outputs.append(y)
        if self.pool == "max/2":
            outputs.append(F.max_pool2d(x, 3, stride=2))
        else:
            pooled = (
                F.max_pool2d(x, 3, stride=1, padding=1)
                if self.pool == "max"
                else F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
            )
            outputs.append(self.branch_pool(pooled))
        return torch.cat(outputs, dim=1)


def _mixed_35(inputs: int, pool_channels: int) -> Mixed:
    """At 35 x 35: 1x1, 5x5 and double 3x3."""
    return Mixed(
        inputs,
        {
            "branch1x1": [Step(64)],
            "branch5x5": [Step(48), Step(64, 5)],
            "branch3x3dbl": [Step(64), Step(96, 3), Step(96, 3)],
        },
        "mean",
        pool_channels,
    )


def _mixed_17(width: int) -> Mixed:
    """At 17 x 17: 7x7 kernels as pairs of 1x7 and 7x1."""
    row, column = (1, 7), (7, 1)
    return Mixed(
        768,
        {
            "branch1x1": [Step(192)],
            "branch7x7": [Step(width), Step(width, row), Step(192, column)],
            "branch7x7dbl": [
                Step(width),
                Step(width, column),
                Step(width, row),
                Step(width, column),
                Step(192, row),
            ],
        },
        "mean",
        192,
    )


def _mixed_8(inputs: int, pool: str) -> Mixed:
    """At 8 x 8: 3x3 kernels forked into 1x3 and 3x1."""
    fork = (Step(384, (1, 3)), Step(384, (3, 1)))
    return Mixed(
        inputs,
        {
            "branch1x1": [Step(320)],
            "branch3x3": [Step(384), fork],
            "branch3x3dbl": [Step(448), Step(384, 3), fork],
        },
        pool,
        192,
    )


class FIDInceptionV3(nn.Module):
    """Images (B, 3, 299, 299), normalised to about [-1, 1] -> pooled features of one tap."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, Step(32, 3, 2))
        self.Conv2d_2a_3x3 = Conv(32, Step(32, 3))
        self.Conv2d_2b_3x3 = Conv(32, Step(64, 3), padding=1)
        self.Conv2d_3b_1x1 = Conv(64, Step(80))
        self.Conv2d_4a_3x3 = Conv(80, Step(192, 3))
        self.Mixed_5b = _mixed_35(192, 32)
        self.Mixed_5c = _mixed_35(256, 64)
        self.Mixed_5d = _mixed_35(288, 64)
        self.Mixed_6a = Mixed(
            288,
            {
                "branch3x3": [Step(384, 3, 2)],
                "branch3x3dbl": [Step(64), Step(96, 3), Step(96, 3, 2)],
            },
            "max/2",
        )
        self.Mixed_6b = _mixed_17(128)
        self.Mixed_6c = _mixed_17(160)
        self.Mixed_6d = _mixed_17(160)
        self.Mixed_6e = _mixed_17(192)
        self.Mixed_7a = Mixed(
            768,
            {
                "branch3x3": [Step(192), Step(320, 3, 2)],
                "branch7x7x3": [Step(192), Step(192, (1, 7)), Step(192, (7, 1)), Step(192, 3, 2)],
            },
            "max/2",
        )
        self.Mixed_7b = _mixed_8(1280, "mean")
        self.Mixed_7c = _mixed_8(2048, "max")  # the published graph has a maximum here
        self.fc = nn.Linear(2048, CLASSES)

    def forward(self, x: Tensor, dims: int = 2048) -> Tensor:
        """(B, dims): the mean over positions of the first (64) or second (192) max pool, of the
        last 17 x 17 block (768), or of the last block (2048, "pool3")."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, stride=2)
        if dims == 64:
            return _pooled(x)
        x = F.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, stride=2)
        if dims == 192:
            return _pooled(x)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        if dims == 768:
            return _pooled(x)
        return _pooled(self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x))))

    def logits(self, features: Tensor) -> Tensor:
        """(B, 2048) -> (B, 1008) without the bias, as the Inception Score takes them."""
        return features @ self.fc.weight.T


def _pooled(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x, 1).flatten(1)
