# SPDX-License-Identifier: Apache-2.0
"""A GAN small enough to train in a test."""

import torch
from torch import nn

from gansparse.tasks import GANTask, dcgan_task


def tiny_images(count: int = 64) -> torch.Tensor:
    """Bars at random heights, uint8 [count, 1, 16, 16]."""
    rng = torch.Generator().manual_seed(7)
    images = torch.zeros(count, 1, 16, 16, dtype=torch.uint8)
    for image, row in zip(images, torch.randint(2, 13, (count,), generator=rng), strict=True):
        image[0, row : row + 2, 3:13] = 230
    return images


def tiny_task(seed: int = 0, batch_size: int = 8) -> GANTask:
    """A DCGAN of 16x16 pictures with its random weights fixed by the seed."""
    torch.manual_seed(1234)
    return dcgan_task(tiny_images(), nz=8, ngf=8, ndf=8, batch_size=batch_size, seed=seed)


def normless_task() -> GANTask:
    """The same with norms that see one picture only: a share of a batch is no other batch."""
    task = tiny_task()
    for module in (task.generator, task.discriminator):
        for index, layer in enumerate(module.main):
            if isinstance(layer, nn.BatchNorm2d):
                module.main[index] = nn.GroupNorm(1, layer.num_features)
    return task
