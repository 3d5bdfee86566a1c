# SPDX-License-Identifier: Apache-2.0
"""SRGAN generator and discriminator (Ledig et al., CVPR 2017), in the layout of leftthomas/SRGAN.

The generator has 5 residual blocks of the paper's 16. Pictures are in [0, 1], not in [-1, 1].
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from gansparse.errors import CheckpointError, InputError
from gansparse.models.checkpoint import State, fill, kernel_shape

_GENERATOR = "an SRGAN generator of leftthomas/SRGAN's layout"
_DISCRIMINATOR = "an SRGAN discriminator of leftthomas/SRGAN's layout"


class ResidualBlock(nn.Module):
    """Two convolutions with BatchNorm, added to their input.

    Args:
        channels: of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, 1, 1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.prelu = nn.PReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(
        self,
        x: torch.Tensor,  # [N, C, H, W]
    ) -> torch.Tensor:  # [N, C, H, W]
        """Features."""
        out: torch.Tensor = x + self.bn2(self.conv2(self.prelu(self.bn1(self.conv1(x)))))
        return out


class UpsampleBlock(nn.Module):
    """Twice the height and width: four times the channels, which then move into the plane.

    Args:
        channels: of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4 * channels, 3, 1, 1)
        self.pixel_shuffle = nn.PixelShuffle(2)
        self.prelu = nn.PReLU()

    def forward(
        self,
        x: torch.Tensor,  # [N, C, H, W]
    ) -> torch.Tensor:  # [N, C, 2 H, 2 W]
        """Features."""
        out: torch.Tensor = self.prelu(self.pixel_shuffle(self.conv(x)))
        return out


class SRGANGenerator(nn.Module):
    """Low-resolution picture to high-resolution picture.

    The layers are block1 (head), block2 to block6 (residual, for 5 blocks), block7 (after which the
    head is added) and block8 (upsampling and the last convolution).

    Args:
        scale: of height and width: 2, 4 or 8.
        ngf: channels of the hidden layers.
        blocks: residual blocks.
        nc: channels of the picture.
        old: block7 ends with a PReLU, as before 2019-05-05, instead of a BatchNorm.

    Example:
        >>> SRGANGenerator(scale=2, ngf=4, blocks=1)(torch.rand(1, 3, 8, 12)).shape
        torch.Size([1, 3, 16, 24])
    """

    def __init__(
        self, scale: int = 4, ngf: int = 64, blocks: int = 5, nc: int = 3, *, old: bool = False
    ) -> None:
        super().__init__()
        if scale not in (2, 4, 8):
            raise InputError(f"srgan: scale must be 2, 4 or 8, got {scale}")
        self.scale = scale
        head = nn.Sequential(nn.Conv2d(nc, ngf, 9, 1, 4), nn.PReLU())
        body = [ResidualBlock(ngf) for _ in range(blocks)]
        trunk = nn.Sequential(
            nn.Conv2d(ngf, ngf, 3, 1, 1), nn.PReLU() if old else nn.BatchNorm2d(ngf)
        )
        doublings = [UpsampleBlock(ngf) for _ in range(scale.bit_length() - 1)]
        tail = nn.Sequential(*doublings, nn.Conv2d(ngf, nc, 9, 1, 4))
        for number, block in enumerate((head, *body, trunk, tail), start=1):
            self.add_module(f"block{number}", block)

    def forward(
        self,
        images: torch.Tensor,  # [N, nc, H, W], in [0, 1]
    ) -> torch.Tensor:  # [N, nc, scale H, scale W], in [0, 1]
        """The pictures at high resolution."""
        head, *body, tail = self.children()
        shallow = head(images)
        deep = shallow
        for block in body:
            deep = block(deep)
        return (torch.tanh(tail(shallow + deep)) + 1) / 2


def _normed(in_channels: int, channels: int, stride: int) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, channels, 3, stride, 1),
        nn.BatchNorm2d(channels),
        nn.LeakyReLU(0.2, True),
    ]


class SRGANDiscriminator(nn.Module):
    """Picture of any size to the probability that it is real.

    The sigmoid is inside, as in the original, whose losses are 1 - D(x) and not a cross entropy.

    Args:
        ndf: channels of the first layer; those before the average have eight times as many.
        nc: channels of the picture.

    Example:
        >>> SRGANDiscriminator(ndf=4)(torch.rand(2, 3, 24, 24)).shape
        torch.Size([2])
    """

    def __init__(self, ndf: int = 64, nc: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(nc, ndf, 3, 1, 1), nn.LeakyReLU(0.2, True)]
        layers += _normed(ndf, ndf, stride=2)
        for width in (ndf, 2 * ndf, 4 * ndf):
            layers += _normed(width, 2 * width, stride=1)
            layers += _normed(2 * width, 2 * width, stride=2)
        self.net = nn.Sequential(
            *layers,
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(8 * ndf, 16 * ndf, 1),
            nn.LeakyReLU(0.2, True),
            nn.Conv2d(16 * ndf, 1, 1),
        )

    def forward(
        self,
        images: torch.Tensor,  # [N, nc, H, W], in [0, 1]
    ) -> torch.Tensor:  # [N], in [0, 1]: probability of being real
        """Probabilities of the pictures."""
        return torch.sigmoid(self.net(images).reshape(-1).float())


def generator_from_state(state: State, path: str | Path) -> SRGANGenerator:
    """The generator whose weights these are; scale, ngf, blocks, nc and variant from the shapes.

    Args:
        state: in leftthomas/SRGAN's layout, without wrappers' prefixes.
        path: of the file, for messages.

    Raises:
        CheckpointError: a key or shape is wrong; it is named.
    """
    blocks = len({key.split(".")[0] for key in state if ".conv1." in key})
    doublings = len({key.split(".")[1] for key in state if ".conv." in key})
    if doublings not in (1, 2, 3):
        raise CheckpointError(
            f"{path}: not the weights of {_GENERATOR}: it has {doublings} upsampling layers "
            f"block{blocks + 3}.N.conv, not 1, 2 or 3"
        )
    ngf, nc, _, _ = kernel_shape(state, "block1.0.weight", path, _GENERATOR)
    last = state.get(f"block{blocks + 2}.1.weight")
    old = last is not None and last.numel() == 1
    net = SRGANGenerator(2**doublings, ngf, blocks, nc, old=old)
    fill(net, state, path, _GENERATOR)
    return net


def discriminator_from_state(state: State, path: str | Path) -> SRGANDiscriminator:
    """The discriminator whose weights these are; ndf and nc from the shapes.

    Args:
        state: in leftthomas/SRGAN's layout, without wrappers' prefixes.
        path: of the file, for messages.

    Raises:
        CheckpointError: a key or shape is wrong; it is named.
    """
    ndf, nc, _, _ = kernel_shape(state, "net.0.weight", path, _DISCRIMINATOR)
    net = SRGANDiscriminator(ndf, nc)
    fill(net, state, path, _DISCRIMINATOR)
    return net
