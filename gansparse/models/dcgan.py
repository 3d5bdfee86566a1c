# SPDX-License-Identifier: Apache-2.0
"""DCGAN generator and discriminator (Radford et al. 2016), in the layout of pytorch/examples."""

from __future__ import annotations

import torch
from torch import nn

from gansparse.errors import InputError

_SIZES = (16, 32, 64, 128, 256)


def _widths(image_size: int, base: int) -> list[int]:
    """Channels of the hidden layers, widest first: one level per doubling above 4x4."""
    if image_size not in _SIZES:
        raise InputError(f"dcgan: image_size must be one of {_SIZES}, got {image_size}")
    levels = image_size.bit_length() - 3
    return [base * 2**i for i in reversed(range(levels))]


def _init_weights(module: nn.Module) -> None:
    """Convolutions from N(0, 0.02), BatchNorm scales from N(1, 0.02), as the DCGAN paper."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


class DCGANGenerator(nn.Module):
    """Latent vector to picture through transposed convolutions.

    Args:
        nz: length of the latent vector.
        ngf: channels of the last hidden layer; each layer before it has twice as many.
        nc: channels of the picture.
        image_size: height and width of the picture, 16 to 256, a power of two.

    Example:
        >>> DCGANGenerator(nz=8, ngf=4, image_size=16)(torch.randn(2, 8, 1, 1)).shape
        torch.Size([2, 1, 16, 16])
    """

    def __init__(self, nz: int = 100, ngf: int = 64, nc: int = 1, image_size: int = 64) -> None:
        super().__init__()
        self.nz = nz
        layers: list[nn.Module] = []
        channels = nz
        for level, width in enumerate(_widths(image_size, ngf)):
            stride, padding = (1, 0) if level == 0 else (2, 1)
            layers += [
                nn.ConvTranspose2d(channels, width, 4, stride, padding, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(True),
            ]
            channels = width
        layers += [nn.ConvTranspose2d(channels, nc, 4, 2, 1, bias=False), nn.Tanh()]
        self.main = nn.Sequential(*layers)
        self.apply(_init_weights)

    def forward(
        self,
        z: torch.Tensor,  # [N, nz, 1, 1] or [N, nz]
    ) -> torch.Tensor:  # [N, nc, image_size, image_size], in [-1, 1]
        """Pictures of the latent vectors."""
        out: torch.Tensor = self.main(z.reshape(z.shape[0], -1, 1, 1))
        return out


class DCGANDiscriminator(nn.Module):
    """Picture to one logit; pytorch/examples' layout, with the sigmoid left to the loss.

    Args:
        ndf: channels of the first hidden layer; each layer after it has twice as many.
        nc: channels of the picture.
        image_size: height and width of the picture, 16 to 256, a power of two.

    Example:
        >>> DCGANDiscriminator(ndf=4, image_size=16)(torch.randn(2, 1, 16, 16)).shape
        torch.Size([2])
    """

    def __init__(self, ndf: int = 64, nc: int = 1, image_size: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = nc
        for level, width in enumerate(reversed(_widths(image_size, ndf))):
            layers.append(nn.Conv2d(channels, width, 4, 2, 1, bias=False))
            if level > 0:
                layers.append(nn.BatchNorm2d(width))
            layers.append(nn.LeakyReLU(0.2, True))
            channels = width
        layers.append(nn.Conv2d(channels, 1, 4, 1, 0, bias=False))
        self.main = nn.Sequential(*layers)
        self.apply(_init_weights)

    def forward(
        self,
        images: torch.Tensor,  # [N, nc, image_size, image_size], in [-1, 1]
    ) -> torch.Tensor:  # [N], logits: positive means real
        """Logits of the pictures."""
        out: torch.Tensor = self.main(images)
        return out.reshape(-1)
