# SPDX-License-Identifier: Apache-2.0
"""LeNet-5 (LeCun et al. 1998) for digits: classifier, and feature extractor of our digit FIDs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class LeNet(nn.Module):
    """Digit classifier on 32x32 greyscale pictures.

    Args:
        num_classes: number of logits.

    Example:
        >>> net = LeNet()
        >>> net(torch.rand(2, 1, 32, 32)).shape, net.features(torch.rand(2, 1, 32, 32)).shape
        (torch.Size([2, 10]), torch.Size([2, 120]))
    """

    num_features = 120

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(1, 6, 5)
        self.c3 = nn.Conv2d(6, 16, 5)
        self.c5 = nn.Conv2d(16, 120, 5)
        self.f6 = nn.Linear(120, 84)
        self.f7 = nn.Linear(84, num_classes)

    def features(
        self,
        images: torch.Tensor,  # [N, 1, 32, 32], in [0, 1]
    ) -> torch.Tensor:  # [N, 120]
        """Activations of layer C5, after ReLU."""
        x = F.max_pool2d(F.relu(self.c1(images)), 2)
        x = F.max_pool2d(F.relu(self.c3(x)), 2)
        return F.relu(self.c5(x)).flatten(1)

    def forward(
        self,
        images: torch.Tensor,  # [N, 1, 32, 32], in [0, 1]
    ) -> torch.Tensor:  # [N, num_classes], logits
        """Class logits."""
        x = F.relu(self.f6(self.features(images)))
        out: torch.Tensor = self.f7(x)
        return out
