# SPDX-License-Identifier: Apache-2.0
"""A GAN small enough to train in a test."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from gansparse.compress import Result, TrainConfig, Trainer
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


def in_two_parts_as_in_one(config: TrainConfig, stop_after: int, out: Path) -> Result:
    """Checks that a run stopped after a step and resumed ends with the same bits; the whole run."""

    class Stopped(Exception):
        pass

    def stop(row):
        if row["step"] == stop_after:
            raise Stopped

    whole = Trainer(tiny_task(), config).run()
    config = replace(config, save_every=stop_after)
    with pytest.raises(Stopped):
        Trainer(tiny_task(), config, out=out).run(stop)
    resumed = Trainer(tiny_task(), config, out=out, resume=True).run()
    values = resumed.generator.state_dict()
    for name, value in whole.generator.state_dict().items():
        assert torch.equal(value, values[name]), name
    return whole
