# SPDX-License-Identifier: Apache-2.0
"""A plain folder of pictures, as DCGAN is trained on it."""

from __future__ import annotations

from pathlib import Path

import torch

from gansparse.data.folder import pictures_below, read_image
from gansparse.data.transforms import centre_crop, check_at_least, shorter_side_to, signed


class PictureSamples:
    """All pictures of a folder and its subfolders, resized and cropped to a square.

    The shorter side is resized, bilinear, and the middle taken, as in pytorch/examples' DCGAN.
    Nothing is random.

    Args:
        root: the folder.
        image_size: pixels a side.
        channels: 3 for RGB, 1 for grey.

    Raises:
        InputError: no such folder, or no pictures in it.
    """

    def __init__(self, root: str | Path, *, image_size: int = 64, channels: int = 3) -> None:
        check_at_least(1, image_size=image_size)
        self.name, self.augment = str(root), False
        self.image_size, self.channels = image_size, channels
        self.files = pictures_below(Path(root), "the pictures to learn from")

    def __len__(self) -> int:
        return len(self.files)

    def check(self, file: Path, size: tuple[int, int]) -> None:
        """Any size will do."""

    def sample(
        self, index: int, rng: torch.Generator
    ) -> dict[str, torch.Tensor]:  # real [C, S, S], float32 in [-1, 1]
        """One picture; ``rng`` is not used."""
        image = read_image(self.files[index], self.channels)
        square = centre_crop(shorter_side_to(image, self.image_size), self.image_size)
        return {"real": signed(square)}
