# SPDX-License-Identifier: Apache-2.0
"""Fakes of earlier steps that D sees again: CycleGAN's image pool (Shrivastava et al. 2017)."""

from __future__ import annotations

from typing import Any

import torch

from gansparse.data.sampling import generator_for
from gansparse.tasks.gan import Fake, pictures_of


class ImagePool:
    """Keeps up to ``size`` fakes of each kind; past that, half of D's pictures are older ones.

    Args:
        size: pictures kept of each kind; 0 passes everything through.
        seed: of the choices, which are a pure function of (seed, step).

    Example:
        >>> pool = ImagePool(1, seed=0)
        >>> first, second = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
        >>> [float(pool.exchange(first, 0)), float(pool.exchange(second, 1)) in (0.0, 1.0)]
        [0.0, True]
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed
        self.kept: dict[str, torch.Tensor] = {}  # each [0..size, C, H, W]

    def exchange(self, fake: Fake, step: int) -> Fake:
        """What D is to see in place of ``fake``, which is out of the graph; keeps some of it."""
        if self.size == 0:
            return fake
        rng = generator_for(self.seed, "pool", step)
        shown = {n: self._exchange(n, value, rng) for n, value in pictures_of(fake).items()}
        return shown["fake"] if isinstance(fake, torch.Tensor) else fake | shown

    def _exchange(
        self,
        name: str,
        pictures: torch.Tensor,  # [N, C, H, W]
        rng: torch.Generator,
    ) -> torch.Tensor:  # [N, C, H, W]
        kept = self.kept.get(name, pictures[:0]).to(pictures.device)
        shown = pictures.clone()
        for index in range(pictures.shape[0]):
            if kept.shape[0] < self.size:
                kept = torch.cat([kept, pictures[index : index + 1]])
            elif torch.rand((), generator=rng) < 0.5:
                place = int(torch.randint(self.size, (), generator=rng))
                shown[index] = kept[place]
                kept = kept.clone()
                kept[place] = pictures[index]
        self.kept[name] = kept
        return shown

    def state_dict(self) -> dict[str, Any]:
        """The pictures kept; with the step all that a bit-exact resume needs."""
        return dict(self.kept)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.kept = dict(state)
