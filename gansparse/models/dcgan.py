# SPDX-License-Identifier: Apache-2.0
"""DCGAN generator and discriminator (Radford et al. 2016), in the layout of pytorch/examples.

The 28x28 pair for MNIST that circulates beside it differs at the end: its generator makes 32x32
features and a 1x1 kernel with padding 2 cuts them down, and its discriminator's last convolution
has stride 2 and padding 1.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from gansparse.errors import CheckpointError, InputError
from gansparse.models.checkpoint import State, fill, read_state

# Height and width of the picture → hidden layers: one per halving down to 4x4 (3x3 from 28).
_HIDDEN = {16: 2, 28: 3, 32: 3, 64: 4, 128: 5, 256: 6}
_GENERATOR = "a DCGAN generator"
_DISCRIMINATOR = "a DCGAN discriminator"


def _hidden_layers(image_size: int) -> int:
    if image_size not in _HIDDEN:
        sizes = tuple(_HIDDEN)
        raise InputError(f"dcgan: image_size must be one of {sizes}, got {image_size}")
    return _HIDDEN[image_size]


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
        image_size: height and width of the picture: 28, or a power of two from 16 to 256.

    Example:
        >>> DCGANGenerator(nz=8, ngf=4, image_size=16)(torch.randn(2, 8, 1, 1)).shape
        torch.Size([2, 1, 16, 16])
    """

    def __init__(self, nz: int = 100, ngf: int = 64, nc: int = 1, image_size: int = 64) -> None:
        super().__init__()
        self.nz, self.ngf = nz, ngf
        crops = image_size == 28
        hidden = _hidden_layers(image_size) + int(crops)
        layers: list[nn.Module] = []
        channels = nz
        for level in range(hidden):
            width = ngf * 2 ** (hidden - 1 - level)
            stride, padding = (1, 0) if level == 0 else (2, 1)
            layers += [
                nn.ConvTranspose2d(channels, width, 4, stride, padding, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(True),
            ]
            channels = width
        kernel, stride, padding = (1, 1, 2) if crops else (4, 2, 1)
        layers += [
            nn.ConvTranspose2d(channels, nc, kernel, stride, padding, bias=False),
            nn.Tanh(),
        ]
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

    Weights for 28x28 and for 32x32 pictures have the same shapes: either size may be passed.

    Args:
        ndf: channels of the first hidden layer; each layer after it has twice as many.
        nc: channels of the picture.
        image_size: height and width of the picture: 28, or a power of two from 16 to 256.

    Example:
        >>> DCGANDiscriminator(ndf=4, image_size=16)(torch.randn(2, 1, 16, 16)).shape
        torch.Size([2])
    """

    def __init__(self, ndf: int = 64, nc: int = 1, image_size: int = 64) -> None:
        super().__init__()
        self.ndf = ndf
        layers: list[nn.Module] = []
        channels = nc
        for level in range(_hidden_layers(image_size)):
            width = ndf * 2**level
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
        features: torch.Tensor = self.main[:-1](images)
        if features.shape[-1] == 3:
            # All that a 4x4 kernel of stride 2 and padding 1 sees of 3x3 features.
            features = F.pad(features, (1, 0, 1, 0))
        out: torch.Tensor = self.main[-1](features)
        return out.reshape(-1)


def generator_from_state(state: State, path: str | Path) -> DCGANGenerator:
    """The generator that these weights are of; nz, ngf, nc and image size come from the shapes.

    Raises:
        CheckpointError: not a DCGAN generator; the message names the key.
    """
    kernels = _kernels(state, path, _GENERATOR)
    crops = kernels[-1].shape[-1] == 1
    net = DCGANGenerator(
        nz=kernels[0].shape[0],
        ngf=kernels[-1].shape[0],
        nc=kernels[-1].shape[1],
        image_size=28 if crops else _image_size(kernels, path, _GENERATOR),
    )
    fill(net, state, path, _GENERATOR)
    return net


def discriminator_from_state(state: State, path: str | Path) -> DCGANDiscriminator:
    """The discriminator that these weights are of; its sizes come from the shapes.

    Raises:
        CheckpointError: not a DCGAN discriminator; the message names the key.
    """
    kernels = _kernels(state, path, _DISCRIMINATOR)
    net = DCGANDiscriminator(
        ndf=kernels[0].shape[0],
        nc=kernels[0].shape[1],
        image_size=_image_size(kernels, path, _DISCRIMINATOR),
    )
    fill(net, state, path, _DISCRIMINATOR)
    return net


def load_dcgan_generator(path: str | Path) -> DCGANGenerator:
    """A DCGAN generator in pytorch/examples' layout; its sizes come from the shapes.

    Raises:
        CheckpointError: missing, damaged, or not a DCGAN generator; the message names the key.
    """
    return generator_from_state(read_state(path), path)


def load_dcgan_discriminator(path: str | Path) -> DCGANDiscriminator:
    """A DCGAN discriminator in pytorch/examples' layout; its sizes come from the shapes.

    Raises:
        CheckpointError: missing, damaged, or not a DCGAN discriminator.
    """
    return discriminator_from_state(read_state(path), path)


def _kernels(state: State, path: str | Path, what: str) -> list[torch.Tensor]:
    """The convolutions' weights, from the first layer to the last."""
    kernels = [
        state[key]
        for key in sorted(state, key=_position)
        if key.startswith("main.") and state[key].ndim == 4
    ]
    if not kernels:
        raise CheckpointError(
            f"{path}: not {what}: no convolution under main.N.weight; first key is "
            f"{next(iter(state))!r}"
        )
    return kernels


def _position(key: str) -> int:
    parts = key.split(".")
    return int(parts[1]) if len(parts) > 1 and parts[1].isdigit() else -1


def _image_size(kernels: list[torch.Tensor], path: str | Path, what: str) -> int:
    layers = len(kernels)
    if layers < 3 or 2 ** (layers + 1) not in _HIDDEN:
        raise CheckpointError(f"{path}: {what} has at least 3 layers and at most 7, got {layers}")
    return int(2 ** (layers + 1))
