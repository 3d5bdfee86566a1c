# SPDX-License-Identifier: Apache-2.0
"""VGG16's convolutions (Simonyan & Zisserman 2015), in torchvision's layout: a perceptual loss."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from gansparse.errors import InputError
from gansparse.models.checkpoint import fill, read_state

_WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG16Features(nn.Module):
    """Everything before the classifier, which torchvision calls ``features[:31]``.

    Example:
        >>> VGG16Features()(torch.rand(1, 3, 40, 64)).shape
        torch.Size([1, 512, 1, 2])
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for widths in _WIDTHS:
            for width in widths:
                layers += [nn.Conv2d(channels, width, 3, 1, 1), nn.ReLU(True)]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)

    def forward(
        self,
        images: torch.Tensor,  # [N, 3, H, W]; H and W at least 32
    ) -> torch.Tensor:  # [N, 512, H // 32, W // 32]
        """Features after the fifth pool.

        Raises:
            InputError: pictures too small to be halved five times, or not of three channels.
        """
        if images.shape[1] != 3 or min(images.shape[2:]) < 32:
            raise InputError(
                "vgg16: pictures must be [N, 3, H, W] with H and W at least 32, got "
                f"{list(images.shape)}"
            )
        out: torch.Tensor = self.features(images)
        return out


def vgg16_features(path: str | Path) -> VGG16Features:
    """VGG16 from a file in torchvision's layout (``vgg16-397923af.pth``), frozen, in eval mode.

    Args:
        path: of the weights; its classifier, if it has one, is passed over.

    Raises:
        CheckpointError: missing, damaged, or not the weights of VGG16.
    """
    state = read_state(path)
    net = VGG16Features()
    kept = {key: value for key, value in state.items() if not key.startswith("classifier.")}
    fill(net, kept, path, "a VGG16 of torchvision's layout")
    return net.eval().requires_grad_(False)
