# SPDX-License-Identifier: Apache-2.0
"""What several tasks share: adversarial losses per sample, test pictures, smaller networks."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import nn

from gansparse.errors import InputError
from gansparse.models.pix2pix import init_weights
from gansparse.tasks.gan import Batch, reinitialised

Loss = Callable[[torch.Tensor], torch.Tensor]
Module = TypeVar("Module", bound=nn.Module)


class CountedBatches(Protocol):
    """Batches by number, and how many there are: `gansparse.data.batches`, or any like them."""

    def __len__(self) -> int:
        """Batches in one pass over the data."""
        ...

    def __call__(self, index: int, /) -> Batch:
        """The batch of that step or number."""
        ...


# Mode -> loss of each logit where D is to say "real", and where it is to say "fake".
_LOSSES: dict[str, tuple[Loss, Loss]] = {
    "vanilla": (lambda logits: F.softplus(-logits), F.softplus),
    "lsgan": (lambda logits: (logits - 1.0).square(), torch.square),
    "wgan": (torch.neg, lambda logits: logits),
}


def per_sample(
    values: torch.Tensor,  # [N, ...]
) -> torch.Tensor:  # [N], float32
    """Mean over all of a sample's values: the patches of a PatchGAN, the pixels of a picture."""
    return values.float().reshape(values.shape[0], -1).mean(1)


def per_sample_l1(
    pictures: torch.Tensor,  # [N, C, H, W]
    targets: torch.Tensor,  # [N, C, H, W]
) -> torch.Tensor:  # [N], float32
    """Mean absolute difference of each pair of pictures."""
    return per_sample((pictures.float() - targets).abs())


def gan_losses(
    mode: str,
) -> tuple[Loss, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]:
    """The generator's and the discriminator's adversarial loss of each sample.

    =======  ================  ======================================  ======================
    mode     generator         discriminator                           source
    =======  ================  ======================================  ======================
    vanilla  softplus(-fake)   softplus(-real) + softplus(fake)        Goodfellow et al. 2014
    lsgan    (fake - 1)^2      (real - 1)^2 + fake^2                   Mao et al. 2017
    wgan     -fake             fake - real                             Arjovsky et al. 2017
    =======  ================  ======================================  ======================

    ``real`` and ``fake`` are D's logits; softplus(-x) is the binary cross entropy of sigmoid(x)
    against 1. Where D judges patches, a sample's loss is the mean over them.

    Returns:
        Functions of logits [N, ...]: fake -> [N], and (real, fake) -> [N].

    Raises:
        InputError: no such mode.

    Example:
        >>> generator_loss, discriminator_loss = gan_losses("lsgan")
        >>> generator_loss(torch.tensor([[0.0, 2.0], [1.0, 1.0]]))
        tensor([1., 0.])
        >>> discriminator_loss(torch.tensor([1.0]), torch.tensor([2.0]))
        tensor([4.])
    """
    if mode not in _LOSSES:
        raise InputError(f"gan_mode must be one of {', '.join(_LOSSES)}, got {mode!r}")
    real_loss, fake_loss = _LOSSES[mode]

    def generator_loss(fake: torch.Tensor) -> torch.Tensor:
        return per_sample(real_loss(fake.float()))

    def discriminator_loss(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
        return per_sample(real_loss(real.float())) + per_sample(fake_loss(fake.float()))

    return generator_loss, discriminator_loss


def with_fresh_weights(module: nn.Module) -> nn.Module:
    """A copy with random weights as Pix2Pix and CycleGAN begin: convolutions from N(0, 0.02)."""
    return reinitialised(module).apply(init_weights)


def width_for_share(build: Callable[[int], Module], share: float, widest: int) -> Module:
    """The network whose parameter count is nearest to a share of the widest one's.

    Args:
        build: width -> network; wider ones have more parameters.
        share: of the parameters, above 0.
        widest: the width that has all of them.

    Example:
        >>> width_for_share(lambda width: nn.Conv2d(width, width, 1, bias=False), 0.25, 8)
        Conv2d(4, 4, kernel_size=(1, 1), stride=(1, 1), bias=False)
    """

    def count(width: int) -> int:
        with torch.device("meta"):  # shapes only
            return sum(p.numel() for p in build(width).parameters())

    target = share * count(widest)
    above = 1 + bisect.bisect_left(range(1, widest), target, key=count)
    candidates = range(max(1, above - 1), above + 1)
    return build(min(candidates, key=lambda width: abs(count(width) - target)))


def count_samples(batches: CountedBatches, key: str) -> int:
    """Samples in one pass, of which only the last batch may be smaller than the others."""
    last = len(batches) - 1
    return last * (batches(0)[key].shape[0] if last else 0) + batches(last)[key].shape[0]


@dataclass(frozen=True)
class FirstSamples:
    """The first ``count`` samples, batch by batch, as `View.pictures` takes them.

    Attributes:
        batches: where they come from.
        key: what of each batch.
        count: samples in all.
        change: what is done with each part [N, ...]; None: nothing.
    """

    batches: CountedBatches
    key: str
    count: int
    change: Callable[[torch.Tensor], torch.Tensor] | None = None

    def __len__(self) -> int:
        return self.count

    def __call__(self) -> Iterator[torch.Tensor]:  # each [N, ...]
        """The parts, from the first on."""
        given = 0
        for index in range(len(self.batches)):
            if given < self.count:
                part = self.batches(index)[self.key][: self.count - given]
                given += part.shape[0]
                yield part if self.change is None else self.change(part)
