# SPDX-License-Identifier: Apache-2.0
"""Pictures of two domains: aligned for Pix2Pix, unaligned for CycleGAN, in their own folders.

``a`` is always the domain that a generator starts from: A of the folder, or B with ``BtoA``.
"""

from __future__ import annotations

from pathlib import Path

import torch

from gansparse.data.folder import pictures_below, read_image
from gansparse.data.transforms import Jitter, draw
from gansparse.errors import InputError

DIRECTIONS = ("AtoB", "BtoA")


class AlignedFolder:
    """Pairs side by side in one picture: ``root/{train,val,test}/*``, A is the left half.

    A pair has its crop and flip in common (Isola et al. 2017).

    Args:
        root: the folder.
        phase: which of its subfolders.
        direction: ``AtoB`` or ``BtoA``.
        load_size: pixels a side that each half is resized to, bicubic.
        crop_size: pixels a side of the random crop.
        flip: mirror half of the pairs.
        augment: False resizes each half to ``crop_size`` and does no more.
        channels: 3 for RGB, 1 for grey.

    Raises:
        InputError: no such folder, no pictures in it, or sizes that don't fit.

    Example:
        >>> pairs = AlignedFolder("facades")  # doctest: +SKIP
        >>> pairs.sample(0, torch.Generator())["a"].shape  # doctest: +SKIP
        torch.Size([3, 256, 256])
    """

    def __init__(
        self,
        root: str | Path,
        phase: str = "train",
        *,
        direction: str = "AtoB",
        load_size: int = 286,
        crop_size: int = 256,
        flip: bool = True,
        augment: bool = True,
        channels: int = 3,
    ) -> None:
        self.name, self.augment, self.channels = f"{root} ({phase})", augment, channels
        self.swap = _swapped(direction)
        self.jitter = Jitter(load_size, crop_size, flip, augment)
        self.files = pictures_below(Path(root, phase), "pictures of A and B side by side")

    def __len__(self) -> int:
        return len(self.files)

    def check(self, file: Path, size: tuple[int, int]) -> None:
        """Refuses a picture of this width and height that has no two halves."""
        if size[0] % 2:
            raise InputError(
                f"{file}: is {size[0]} pixels wide; A and B side by side need an even width"
            )

    def sample(
        self, index: int, rng: torch.Generator
    ) -> dict[str, torch.Tensor]:  # a, b: [C, H, W], float32 in [-1, 1]
        """One pair; ``rng`` decides its crop and flip."""
        file = self.files[index]
        both = read_image(file, self.channels)
        self.check(file, both.size)
        half, height = both.width // 2, both.height
        halves = [both.crop((left, 0, left + half, height)) for left in (0, half)]
        transform = self.jitter.drawn(rng)
        a, b = (transform(image) for image in (reversed(halves) if self.swap else halves))
        return {"a": a, "b": b}


class UnalignedFolder:
    """Two sets without pairs: ``root/{trainA,trainB,testA,testB}/*`` (Zhu et al. 2017).

    As many samples as the larger set has pictures. ``a`` comes in turn; ``b`` is drawn, or comes in
    turn too where ``augment`` is False. Each has a crop and flip of its own.

    Args:
        root: the folder.
        phase: ``train`` or ``test``, the first part of the subfolders' names.
        direction: ``AtoB`` or ``BtoA``, which takes ``a`` from B.
        load_size: pixels a side that a picture is resized to, bicubic.
        crop_size: pixels a side of the random crop.
        flip: mirror half of the pictures.
        augment: False resizes each picture to ``crop_size`` and does no more.
        channels: 3 for RGB, 1 for grey.

    Raises:
        InputError: a folder or its counterpart is missing or empty, or sizes that don't fit.
    """

    def __init__(
        self,
        root: str | Path,
        phase: str = "train",
        *,
        direction: str = "AtoB",
        load_size: int = 286,
        crop_size: int = 256,
        flip: bool = True,
        augment: bool = True,
        channels: int = 3,
    ) -> None:
        self.name, self.augment, self.channels = f"{root} ({phase})", augment, channels
        self.jitter = Jitter(load_size, crop_size, flip, augment)
        sides = [Path(root, f"{phase}{side}") for side in "AB"]
        both = [pictures_below(side, f"the pictures of domain {side.name[-1]}") for side in sides]
        self.files_a, self.files_b = reversed(both) if _swapped(direction) else both

    @property
    def files(self) -> list[Path]:
        """All pictures of both domains."""
        return self.files_a + self.files_b

    def __len__(self) -> int:
        return max(len(self.files_a), len(self.files_b))

    def check(self, file: Path, size: tuple[int, int]) -> None:
        """Any size will do."""

    def sample(
        self, index: int, rng: torch.Generator
    ) -> dict[str, torch.Tensor]:  # a, b: [C, H, W], float32 in [-1, 1]
        """One picture of each domain; ``rng`` decides which b, and crops and flips."""
        count = len(self.files_b)
        b_index = draw(count, rng) if self.augment else index % count
        files = {"a": self.files_a[index % len(self.files_a)], "b": self.files_b[b_index]}
        return {
            name: self.jitter.drawn(rng)(read_image(file, self.channels))
            for name, file in files.items()
        }


def _swapped(direction: str) -> bool:
    if direction not in DIRECTIONS:
        raise InputError(f"direction must be AtoB or BtoA, got {direction!r}")
    return direction == "BtoA"
