# SPDX-License-Identifier: Apache-2.0
"""MSRResNet, SRGAN's generator without BatchNorm (Wang et al. 2018), in the layout of BasicSR.

It learns what is to be added to the bilinearly enlarged picture. Pictures are in [0, 1].
"""

from __future__ import annotations

from math import isqrt
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from gansparse.errors import CheckpointError, InputError
from gansparse.models.checkpoint import State, fill, kernel_shape

_GENERATOR = "an MSRResNet of BasicSR's layout"


class ResidualBlock(nn.Module):
    """Two convolutions, added to their input.

    Args:
        channels: of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, 1, 1)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1)
        self.relu = nn.ReLU(True)

    def forward(
        self,
        x: torch.Tensor,  # [N, C, H, W]
    ) -> torch.Tensor:  # [N, C, H, W]
        """Features."""
        out: torch.Tensor = x + self.conv2(self.relu(self.conv1(x)))
        return out


def _init_weights(module: nn.Module) -> None:
    """A tenth of He's normal initialisation and no bias: the network begins near the bilinear."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight)
        with torch.no_grad():
            module.weight.mul_(0.1)
        assert module.bias is not None
        nn.init.zeros_(module.bias)


class MSRResNet(nn.Module):
    """Low-resolution picture to high-resolution picture.

    Args:
        scale: of height and width: 2, 3 or 4.
        num_feat: channels of the hidden layers.
        num_block: residual blocks.
        nc: channels of the picture.

    Example:
        >>> MSRResNet(scale=3, num_feat=4, num_block=1)(torch.rand(1, 3, 8, 12)).shape
        torch.Size([1, 3, 24, 36])
    """

    def __init__(
        self, scale: int = 4, num_feat: int = 64, num_block: int = 16, nc: int = 3
    ) -> None:
        super().__init__()
        if scale not in (2, 3, 4):
            raise InputError(f"msrresnet: scale must be 2, 3 or 4, got {scale}")
        self.scale = scale
        step = 3 if scale == 3 else 2
        self.conv_first = nn.Conv2d(nc, num_feat, 3, 1, 1)
        self.body = nn.Sequential(*[ResidualBlock(num_feat) for _ in range(num_block)])
        self.upconv1 = nn.Conv2d(num_feat, num_feat * step**2, 3, 1, 1)
        if scale == 4:
            self.upconv2 = nn.Conv2d(num_feat, num_feat * step**2, 3, 1, 1)
        self.pixel_shuffle = nn.PixelShuffle(step)
        self.conv_hr = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        self.conv_last = nn.Conv2d(num_feat, nc, 3, 1, 1)
        self.lrelu = nn.LeakyReLU(0.1, True)
        self.apply(_init_weights)

    def forward(
        self,
        images: torch.Tensor,  # [N, nc, H, W], in [0, 1]
    ) -> torch.Tensor:  # [N, nc, scale H, scale W], about [0, 1]: not clipped
        """The pictures at high resolution."""
        out = self.body(self.lrelu(self.conv_first(images)))
        out = self.lrelu(self.pixel_shuffle(self.upconv1(out)))
        if self.scale == 4:
            out = self.lrelu(self.pixel_shuffle(self.upconv2(out)))
        detail: torch.Tensor = self.conv_last(self.lrelu(self.conv_hr(out)))
        return detail + F.interpolate(images, None, self.scale, "bilinear", align_corners=False)


def generator_from_state(state: State, path: str | Path) -> MSRResNet:
    """The network whose weights these are; scale, num_feat, num_block and nc from the shapes.

    Args:
        state: in BasicSR's layout: what stands under `params` or `params_ema` in its files.
        path: of the file, for messages.

    Raises:
        CheckpointError: a key or shape is wrong; it is named.
    """
    num_feat, nc, _, _ = kernel_shape(state, "conv_first.weight", path, _GENERATOR)
    widened, _, _, _ = kernel_shape(state, "upconv1.weight", path, _GENERATOR)
    num_block = len({key.split(".")[1] for key in state if key.startswith("body.")})
    scale = 4 if "upconv2.weight" in state else isqrt(widened // num_feat)
    if scale not in (2, 3, 4):
        raise CheckpointError(
            f"{path}: upconv1.weight must have 4 or 9 times the {num_feat} channels of "
            f"conv_first.weight, got {widened}"
        )
    net = MSRResNet(scale, num_feat, num_block, nc)
    fill(net, state, path, _GENERATOR)
    return net
