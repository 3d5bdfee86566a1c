# SPDX-License-Identifier: Apache-2.0
"""CycleGAN's generator of residual blocks (Zhu et al., ICCV 2017; Johnson et al., ECCV 2016).

Keys are those of junyanz/pytorch-CycleGAN-and-pix2pix, so its files load as they are, old ones
included. Its discriminator is the PatchGAN of `gansparse.models.pix2pix`, with InstanceNorm.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from gansparse.models.checkpoint import State, fill, kernel_shape
from gansparse.models.pix2pix import init_weights, make_norm, read_norm

_WHAT = "a ResNet generator of CycleGAN"
_FIRST_BLOCK = 10  # the blocks' place in the sequence


class ResidualBlock(nn.Module):
    """Two convolutions with norms, added to their input.

    Args:
        channels: of input and output.
        norm: `batch`, or `instance`, with which the convolutions have a bias.
        dropout: drops half of the features between the convolutions while training; it moves the
            second convolution's key from `conv_block.5` to `conv_block.6`.
    """

    def __init__(self, channels: int, *, norm: str, dropout: bool) -> None:
        super().__init__()
        bias = norm == "instance"
        self.conv_block = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3, bias=bias),
            make_norm(norm, channels),
            nn.ReLU(True),
            *([nn.Dropout(0.5)] if dropout else []),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3, bias=bias),
            make_norm(norm, channels),
        )

    def forward(
        self,
        x: torch.Tensor,  # [N, C, H, W]
    ) -> torch.Tensor:  # [N, C, H, W]
        """Input plus what the block makes of it."""
        out: torch.Tensor = x + self.conv_block(x)
        return out


class ResNetGenerator(nn.Module):
    """Picture to picture: two halvings, residual blocks, two doublings. CycleGAN's generator.

    Args:
        in_channels: channels of the input picture.
        out_channels: channels of the output picture.
        ngf: channels after the first convolution.
        num_blocks: residual blocks; the authors take 9 for 256x256 pictures and 6 for 128x128.
        norm: `instance`, with which all convolutions have a bias, or `batch`.
        dropout: half of the features in each block dropped while training.

    Raises:
        InputError: another norm.

    Example:
        >>> ResNetGenerator(ngf=2, num_blocks=1)(torch.randn(2, 3, 16, 16)).shape
        torch.Size([2, 3, 16, 16])
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        ngf: int = 64,
        *,
        num_blocks: int = 9,
        norm: str = "instance",
        dropout: bool = False,
    ) -> None:
        super().__init__()
        bias = norm == "instance"
        layers: list[nn.Module] = [
            nn.ReflectionPad2d(3),
            nn.Conv2d(in_channels, ngf, 7, bias=bias),
            make_norm(norm, ngf),
            nn.ReLU(True),
        ]
        for width in (2 * ngf, 4 * ngf):
            layers += [
                nn.Conv2d(width // 2, width, 3, 2, 1, bias=bias),
                make_norm(norm, width),
                nn.ReLU(True),
            ]
        layers += [ResidualBlock(4 * ngf, norm=norm, dropout=dropout) for _ in range(num_blocks)]
        for width in (2 * ngf, ngf):
            layers += [
                nn.ConvTranspose2d(2 * width, width, 3, 2, 1, output_padding=1, bias=bias),
                make_norm(norm, width),
                nn.ReLU(True),
            ]
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(ngf, out_channels, 7), nn.Tanh()]
        self.model = nn.Sequential(*layers)
        self.apply(init_weights)

    def forward(
        self,
        images: torch.Tensor,  # [N, in_channels, H, W], in [-1, 1]; H and W multiples of 4
    ) -> torch.Tensor:  # [N, out_channels, H, W], in [-1, 1]
        """Translated pictures."""
        out: torch.Tensor = self.model(images)
        return out


def generator_from_state(state: State, path: str | Path) -> ResNetGenerator:
    """The ResNet that these weights are of: channels, ngf, blocks, norm, dropout from the keys.

    Statistics that old files keep for InstanceNorm are left out.

    Raises:
        CheckpointError: not a ResNet of CycleGAN; the message names the key.
    """
    norm, state = read_norm(state, "model.1.bias")
    first = kernel_shape(state, "model.1.weight", path, _WHAT)
    blocks = len({key.split(".")[1] for key in state if ".conv_block." in key})
    last = kernel_shape(state, f"model.{_FIRST_BLOCK + blocks + 7}.weight", path, _WHAT)
    block = f"model.{_FIRST_BLOCK}.conv_block"
    net = ResNetGenerator(
        in_channels=first[1],
        out_channels=last[0],
        ngf=first[0],
        num_blocks=blocks,
        norm=norm,
        dropout=f"{block}.6.weight" in state and f"{block}.5.weight" not in state,
    )
    fill(net, state, path, _WHAT)
    return net
