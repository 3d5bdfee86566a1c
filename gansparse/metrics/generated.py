# SPDX-License-Identifier: Apache-2.0
"""The pictures a generator makes of latents, drawn anew each time, always the same ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from gansparse.data.sampling import latents
from gansparse.errors import InputError
from gansparse.files import sha256_prefix
from gansparse.models import DCGANGenerator, load_generator

_BLOCK = 100  # latents drawn at once, whatever the batch size


class GeneratedPictures:
    """A DCGAN generator's pictures, as a set that statistics can be taken of.

    Latent number i depends on the seed and i alone, neither on the batch size nor on how many are
    drawn. With seed 0 they are those of `gansparse.metrics.evaluation`.

    Args:
        path: weights of the generator (.safetensors, .pth), as `load_generator` reads them.
        num: how many pictures.
        seed: of the latents.
        device: where they are made.

    Raises:
        CheckpointError: not a generator's weights.
        InputError: `num` below 1, or a generator that needs input pictures.

    Example:
        >>> from gansparse.models import shipped
        >>> pictures = GeneratedPictures(shipped("dcgan_mnist_g.safetensors"), num=3)
        >>> [tuple(batch.shape) for batch in pictures.batches(2)]
        [(2, 1, 64, 64), (1, 1, 64, 64)]
    """

    def __init__(
        self, path: str | Path, num: int, *, seed: int = 0, device: str | torch.device = "cpu"
    ) -> None:
        if num < 1:
            raise InputError(f"{path}: at least 1 picture must be drawn, got {num}")
        self.name = f"{path}, seed {seed}"
        self.num, self.seed, self.device = num, seed, device
        network = load_generator(path)
        if not isinstance(network, DCGANGenerator):
            raise InputError(
                f"{path}: a {type(network).__name__} makes pictures of other pictures, not of "
                "latents: score it with its inputs by `gansparse eval` (pix2pix, cyclegan, "
                "stargan, srgan), or compare folders of its pictures"
            )
        self.generator = network.eval().requires_grad_(False).to(device)
        self._weights = sha256_prefix(Path(path))

    def __len__(self) -> int:
        return self.num

    def fingerprint(self, count: int) -> str:
        """Whether the first `count` pictures are the same."""
        return f"weights {self._weights}, seed {self.seed}"

    @torch.no_grad()
    def batches(
        self,
        batch_size: int,
        first: int = 0,
        prepare: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> Iterator[torch.Tensor]:  # each [N, C, H, W], float in [-1, 1], or what `prepare` returns
        """The pictures from number `first` on, N = `batch_size` at a time, the last batch smaller.

        Args:
            batch_size: N.
            first: number of the first picture, counted from 0.
            prepare: called on each batch.
        """
        for start in range(first, self.num, batch_size):
            z = self._latents(start, min(start + batch_size, self.num))
            pictures = self.generator(z.to(self.device))
            yield pictures if prepare is None else prepare(pictures)

    def _latents(self, start: int, stop: int) -> torch.Tensor:  # [stop - start, nz, 1, 1]
        shape = (self.generator.nz, 1, 1)
        blocks = range(start // _BLOCK, (stop - 1) // _BLOCK + 1)
        drawn = [latents(self.seed, i, _BLOCK, shape, stream="evaluation") for i in blocks]
        offset = blocks[0] * _BLOCK
        return torch.cat(drawn)[start - offset : stop - offset]
