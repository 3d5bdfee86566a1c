# SPDX-License-Identifier: Apache-2.0
"""Every family's generator at a tiny size, with random weights and norms that do something."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from gansparse.models import (
    DCGANGenerator,
    MSRResNet,
    ResNetGenerator,
    SRGANGenerator,
    StarGANGenerator,
    UNetGenerator,
)

Inputs = tuple[torch.Tensor, ...]


def _pictures(*shape: int) -> Callable[[], Inputs]:
    return lambda: (torch.randn(shape, generator=torch.Generator().manual_seed(1)),)


# name → the network, what it is called with, and an input of another batch and size
GENERATORS: dict[
    str, tuple[Callable[[], nn.Module], Callable[[], Inputs], Callable[[], Inputs]]
] = {
    "dcgan": (
        lambda: DCGANGenerator(nz=6, ngf=4, image_size=16),
        _pictures(3, 6, 1, 1),
        _pictures(2, 6),
    ),
    "dcgan-28": (
        lambda: DCGANGenerator(nz=6, ngf=4, image_size=28),
        _pictures(3, 6),
        _pictures(2, 6),
    ),
    "unet": (
        lambda: UNetGenerator(ngf=4, num_downs=6),
        _pictures(2, 3, 64, 64),
        _pictures(2, 3, 64, 64),  # the batch's own statistics: another size gives another picture
    ),
    "unet-not-live": (
        lambda: UNetGenerator(ngf=4, num_downs=5).live_in_eval(False),
        _pictures(2, 3, 32, 32),
        _pictures(1, 3, 32, 64),
    ),
    "unet-instance": (
        lambda: UNetGenerator(ngf=4, num_downs=5, norm="instance"),
        _pictures(2, 3, 64, 64),
        _pictures(1, 3, 64, 96),
    ),
    "cyclegan": (
        lambda: ResNetGenerator(ngf=4, num_blocks=2),
        _pictures(2, 3, 16, 24),
        _pictures(1, 3, 20, 16),
    ),
    "cyclegan-batch": (
        lambda: ResNetGenerator(ngf=4, num_blocks=2, norm="batch", dropout=True),
        _pictures(2, 3, 16, 24),
        _pictures(1, 3, 20, 16),
    ),
    "stargan": (
        lambda: StarGANGenerator(conv_dim=4, repeat_num=2),
        lambda: (*_pictures(2, 3, 16, 16)(), torch.eye(5)[:2]),
        lambda: (*_pictures(1, 3, 12, 20)(), torch.eye(5)[2:3]),
    ),
    "srgan": (lambda: SRGANGenerator(4, 8, 2), _pictures(2, 3, 8, 10), _pictures(1, 3, 9, 7)),
    "srgan-old": (
        lambda: SRGANGenerator(2, 8, 2, old=True),
        _pictures(2, 3, 8, 10),
        _pictures(1, 3, 9, 7),
    ),
    "msrresnet": (lambda: MSRResNet(4, 8, 2), _pictures(2, 3, 8, 10), _pictures(1, 3, 9, 7)),
    "msrresnet-x3": (lambda: MSRResNet(3, 8, 2), _pictures(2, 3, 8, 10), _pictures(1, 3, 9, 7)),
}


def generator(name: str) -> nn.Module:
    """That network with seeded weights; biases and statistics are not what they start from."""
    net = GENERATORS[name][0]()
    randomise(net)
    return net


@torch.no_grad()
def randomise(net: nn.Module) -> None:
    """Weights with which activations keep their size, biases and statistics about 0.1."""
    source = torch.Generator().manual_seed(0)
    for key, value in net.state_dict().items():
        if not value.is_floating_point():
            continue
        noise = torch.randn(value.shape, generator=source, dtype=torch.float64)
        if value.dim() > 1:
            value.copy_(noise / (value.numel() / max(value.shape[:2])) ** 0.5)
        elif key.endswith("running_var") or (key.endswith("weight") and value.numel() > 1):
            value.copy_(1 + 0.1 * noise)
        else:
            value.copy_(0.1 * noise)


def without_dropout(net: nn.Module) -> nn.Module:
    """In eval mode, live dropout switched off; other live norms stay live."""
    for module in net.eval().modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return net
