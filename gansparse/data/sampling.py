# SPDX-License-Identifier: Apache-2.0
"""Batches and latents as pure functions of (seed, step), so that a resumed run repeats exactly."""

from __future__ import annotations

import torch

from gansparse.errors import InputError

_STREAMS = {"data": 0, "latent": 1, "evaluation": 2, "pool": 3, "penalty": 4, "augment": 5}


def generator_for(seed: int, stream: str, index: int) -> torch.Generator:
    """A CPU generator of its own for each (seed, stream, index)."""
    rng = torch.Generator()
    rng.manual_seed(((seed * 1_000_003 + _STREAMS[stream]) * 1_000_000_007 + index) % 2**63)
    return rng


def latents(
    seed: int, step: int, count: int, shape: tuple[int, ...], *, stream: str = "latent"
) -> torch.Tensor:  # [count, *shape], N(0, 1)
    """Normal latents of one step."""
    return torch.randn((count, *shape), generator=generator_for(seed, stream, step))


class ShuffledBatches:
    """Shuffled batches over a tensor in memory; a new permutation each epoch, last part dropped.

    Args:
        images: any tensor [M, ...]; batches keep its dtype.
        batch_size: samples a batch; at most M.
        seed: of the permutations.

    Example:
        >>> batches = ShuffledBatches(torch.arange(10), batch_size=4, seed=0)
        >>> len(batches), batches(0).shape, bool((batches(7) == batches(7)).all())
        (2, torch.Size([4]), True)
    """

    def __init__(self, images: torch.Tensor, batch_size: int, seed: int) -> None:
        if not 1 <= batch_size <= images.shape[0]:
            raise InputError(
                f"batch size must be 1..{images.shape[0]} (the number of samples), got {batch_size}"
            )
        self.images, self.batch_size, self.seed = images, batch_size, seed
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self.images.shape[0] // self.batch_size

    def __call__(self, step: int) -> torch.Tensor:
        """The batch of a step, counted from 0 over all epochs."""
        epoch, position = divmod(step, len(self))
        if epoch != self._epoch:
            rng = generator_for(self.seed, "data", epoch)
            self._order, self._epoch = torch.randperm(self.images.shape[0], generator=rng), epoch
        start = position * self.batch_size
        return self.images[self._order[start : start + self.batch_size]]
