# SPDX-License-Identifier: Apache-2.0
"""StarGAN generator and discriminator (Choi et al., CVPR 2018), in the layout of yunjey/stargan."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from gansparse.errors import InputError
from gansparse.models.checkpoint import State, fill, kernel_shape

_GENERATOR = "a StarGAN generator of yunjey/stargan's layout"
_DISCRIMINATOR = "a StarGAN discriminator of yunjey/stargan's layout"


class InstanceNorm2d(nn.InstanceNorm2d):
    """Instance norm that keeps running statistics, as the public files do, and never applies them.

    StarGAN's authors generate in training mode, where each picture is normed by its own statistics.
    The running ones are an average over all domains; `eval()`, which elsewhere puts them in, spoils
    the pictures. Here both modes norm each picture by itself, and only training updates them.

    Args:
        channels: of the feature map.

    Example:
        >>> norm, x = InstanceNorm2d(2), torch.randn(1, 2, 4, 4)
        >>> torch.equal(norm.train()(x), norm.eval()(x))
        True
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, affine=True, track_running_stats=True)

    def forward(
        self,
        x: torch.Tensor,  # [N, C, H, W]
    ) -> torch.Tensor:  # [N, C, H, W]
        """Each channel of each picture with mean 0 and variance 1, then scaled and shifted."""
        if self.training:
            return super().forward(x)
        return F.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)


class ResidualBlock(nn.Module):
    """Two normed convolutions, added to their input.

    Args:
        channels: of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
            InstanceNorm2d(channels),
            nn.ReLU(True),
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
            InstanceNorm2d(channels),
        )

    def forward(
        self,
        x: torch.Tensor,  # [N, C, H, W]
    ) -> torch.Tensor:  # [N, C, H, W]
        """Features."""
        out: torch.Tensor = x + self.main(x)
        return out


def _normed(convolution: nn.Conv2d | nn.ConvTranspose2d) -> list[nn.Module]:
    return [convolution, InstanceNorm2d(convolution.out_channels), nn.ReLU(True)]


class StarGANGenerator(nn.Module):
    """A picture and its target domain to the picture in that domain.

    Trained on CelebA and RaFD at once, a label has 15 entries: 5 attributes, 8 expressions, and a
    mask of 2 that says which of the two counts.

    Args:
        conv_dim: channels after the first layer; the bottleneck has four times as many.
        c_dim: entries of a label.
        repeat_num: residual blocks in the bottleneck.
        nc: channels of the picture.

    Example:
        >>> generator = StarGANGenerator(conv_dim=4, c_dim=2, repeat_num=1)
        >>> generator(torch.randn(2, 3, 16, 16), torch.eye(2)).shape
        torch.Size([2, 3, 16, 16])
    """

    def __init__(
        self, conv_dim: int = 64, c_dim: int = 5, repeat_num: int = 6, nc: int = 3
    ) -> None:
        super().__init__()
        self.c_dim = c_dim
        layers = _normed(nn.Conv2d(nc + c_dim, conv_dim, 7, 1, 3, bias=False))
        width = conv_dim
        for _ in range(2):
            layers += _normed(nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False))
            width *= 2
        layers += [ResidualBlock(width) for _ in range(repeat_num)]
        for _ in range(2):
            layers += _normed(nn.ConvTranspose2d(width, width // 2, 4, 2, 1, bias=False))
            width //= 2
        layers += [nn.Conv2d(width, nc, 7, 1, 3, bias=False), nn.Tanh()]
        self.main = nn.Sequential(*layers)

    def forward(
        self,
        images: torch.Tensor,  # [N, nc, H, W], in [-1, 1]; H and W multiples of 4
        labels: torch.Tensor,  # [N, c_dim], of the target domain, 0 or 1
    ) -> torch.Tensor:  # [N, nc, H, W], in [-1, 1]
        """The pictures in their target domains.

        Raises:
            InputError: the labels don't fit the pictures or the network.
        """
        n, _, height, width = images.shape
        if labels.shape != (n, self.c_dim):
            raise InputError(
                f"stargan: labels must have shape {[n, self.c_dim]}, got {list(labels.shape)}"
            )
        planes = labels.to(images.dtype)[:, :, None, None].expand(-1, -1, height, width)
        out: torch.Tensor = self.main(torch.cat([images, planes], 1))
        return out


class StarGANDiscriminator(nn.Module):
    """Picture to logits: of being real, patch by patch, and of each domain.

    Args:
        image_size: height and width of the picture, at least 2**repeat_num.
        conv_dim: channels of the first layer; each layer after it has twice as many.
        c_dim: domains; 13 for CelebA and RaFD at once, whose mask is no domain.
        repeat_num: layers, each of which halves the picture.
        nc: channels of the picture.

    Example:
        >>> discriminator = StarGANDiscriminator(image_size=16, conv_dim=4, repeat_num=3)
        >>> source, domains = discriminator(torch.randn(2, 3, 16, 16))
        >>> source.shape, domains.shape
        (torch.Size([2, 1, 2, 2]), torch.Size([2, 5]))
    """

    def __init__(
        self,
        image_size: int = 128,
        conv_dim: int = 64,
        c_dim: int = 5,
        repeat_num: int = 6,
        nc: int = 3,
    ) -> None:
        super().__init__()
        if image_size < 2**repeat_num:
            raise InputError(
                f"stargan: image_size must be at least {2**repeat_num} for {repeat_num} layers, "
                f"got {image_size}"
            )
        self.image_size, self.c_dim = image_size, c_dim
        layers: list[nn.Module] = []
        channels = nc
        for width in (conv_dim * 2**level for level in range(repeat_num)):
            layers += [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.01, True)]
            channels = width
        self.main = nn.Sequential(*layers)
        self.conv1 = nn.Conv2d(channels, 1, 3, 1, 1, bias=False)
        self.conv2 = nn.Conv2d(channels, c_dim, image_size // 2**repeat_num, bias=False)

    def forward(
        self,
        images: torch.Tensor,  # [N, nc, image_size, image_size], in [-1, 1]
    ) -> tuple[torch.Tensor, torch.Tensor]:  # [N, 1, S, S], [N, c_dim]
        """Logits of each patch being real (S = image_size // 2**repeat_num), and of the domains."""
        features = self.main(images)
        return self.conv1(features), self.conv2(features).reshape(-1, self.c_dim)


def generator_from_state(state: State, path: str | Path) -> StarGANGenerator:
    """The generator whose weights these are; conv_dim, c_dim, repeat_num and nc from the shapes.

    Args:
        state: in yunjey/stargan's layout, without wrappers' prefixes.
        path: of the file, for messages.

    Raises:
        CheckpointError: a key or shape is wrong; it is named.
    """
    repeat_num = len({key.split(".")[1] for key in state if ".main." in key})
    conv_dim, in_channels, _, _ = kernel_shape(state, "main.0.weight", path, _GENERATOR)
    nc, _, _, _ = kernel_shape(state, f"main.{15 + repeat_num}.weight", path, _GENERATOR)
    net = StarGANGenerator(conv_dim, in_channels - nc, repeat_num, nc)
    fill(net, state, path, _GENERATOR)
    return net


def discriminator_from_state(state: State, path: str | Path) -> StarGANDiscriminator:
    """The discriminator whose weights these are; all its sizes from the shapes.

    Args:
        state: in yunjey/stargan's layout, without wrappers' prefixes.
        path: of the file, for messages.

    Raises:
        CheckpointError: a key or shape is wrong; it is named.
    """
    repeat_num = len({key.split(".")[1] for key in state if key.startswith("main.")})
    conv_dim, nc, _, _ = kernel_shape(state, "main.0.weight", path, _DISCRIMINATOR)
    c_dim, _, side, _ = kernel_shape(state, "conv2.weight", path, _DISCRIMINATOR)
    net = StarGANDiscriminator(side * 2**repeat_num, conv_dim, c_dim, repeat_num, nc)
    fill(net, state, path, _DISCRIMINATOR)
    return net
