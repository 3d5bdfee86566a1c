# SPDX-License-Identifier: Apache-2.0
"""What each public generator is called with, for tracing, exporting and timing."""

from __future__ import annotations

import torch
from torch import nn

from gansparse.errors import InputError
from gansparse.models.cyclegan import ResNetGenerator
from gansparse.models.dcgan import DCGANGenerator
from gansparse.models.msrresnet import MSRResNet
from gansparse.models.pix2pix import UNetGenerator
from gansparse.models.srgan import SRGANGenerator
from gansparse.models.stargan import StarGANGenerator

#: Height and width of the pictures that each was made for; for super-resolution, of the small ones.
_SIZES = {
    UNetGenerator: 256,
    ResNetGenerator: 256,
    StarGANGenerator: 128,
    SRGANGenerator: 96,
    MSRResNet: 96,
}


def example_inputs(
    generator: nn.Module, size: int | None = None, batch: int = 1, seed: int = 0
) -> tuple[torch.Tensor, ...]:
    """Random inputs of the form that a public generator takes.

    Args:
        generator: one that `gansparse.load_generator` knows.
        size: height and width; None: those that it was made for.
        batch: pictures.
        seed: of the numbers.

    Raises:
        InputError: no public generator, or it takes no pictures and a size is given.

    Example:
        >>> [x.shape for x in example_inputs(StarGANGenerator(4, 2, 1), size=16)]
        [torch.Size([1, 3, 16, 16]), torch.Size([1, 2])]
    """
    source = torch.Generator().manual_seed(seed)
    what = type(generator).__name__
    if isinstance(generator, DCGANGenerator):
        if size is not None:
            raise InputError(f"{what} takes latent vectors: no size to choose")
        return (torch.randn(batch, generator.nz, 1, 1, generator=source),)
    if type(generator) not in _SIZES:
        raise InputError(f"{what}: no public generator, so give it an example of its input")
    size = size or _SIZES[type(generator)]
    channels = next(p for p in generator.parameters() if p.dim() == 4).shape[1]
    if not isinstance(generator, StarGANGenerator):
        return (torch.rand(batch, channels, size, size, generator=source),)
    domain = torch.arange(batch) % generator.c_dim
    labels = torch.eye(generator.c_dim)[domain]
    pictures = (batch, channels - generator.c_dim, size, size)
    return torch.rand(pictures, generator=source), labels
