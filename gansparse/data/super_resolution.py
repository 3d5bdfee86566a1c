# SPDX-License-Identifier: Apache-2.0
"""High-resolution pictures and their reduced selves, as SRGAN is trained on them."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from gansparse.data.folder import pictures_below, read_image
from gansparse.data.transforms import BICUBIC, check_at_least, check_large_enough, draw, unit


class SuperResolutionFolder:
    """A folder of high-resolution (HR) pictures: DIV2K, BSD68, Set5, one's own.

    Below ``root``, phase ``train`` reads ``DIV2K_train_HR`` and any other phase ``DIV2K_valid_HR``;
    a root with neither is read itself, whatever the phase. The low resolution (LR) is Pillow's
    bicubic reduction, rounded to bytes (leftthomas/SRGAN).

    Args:
        root: the folder.
        phase: ``train``, ``valid`` or ``test``.
        scale: how many times smaller LR is.
        crop_size: pixels a side of the random HR crop, rounded down to a multiple of ``scale``.
        augment: False gives the whole picture, of which what exceeds a multiple of ``scale`` is cut
            off right and below. Sizes then differ: take batches of one.
        channels: 3 for RGB, 1 for grey.
        memory: MiB of decoded pictures that each process may keep: to decode one takes twenty
            times as long as to crop it. Of DIV2K that is a part; cut its pictures up beforehand.

    Raises:
        InputError: no such folder, or no pictures in it.
    """

    def __init__(
        self,
        root: str | Path,
        phase: str = "train",
        *,
        scale: int = 4,
        crop_size: int = 88,
        augment: bool = True,
        channels: int = 3,
        memory: int = 256,
    ) -> None:
        self.name, self.augment, self.channels = f"{root} ({phase})", augment, channels
        check_at_least(1, scale=scale)
        check_at_least(scale, crop_size=crop_size)
        self.scale, self.crop_size = scale, crop_size // scale * scale
        phases = {p: Path(root, f"DIV2K_{p}_HR") for p in ("train", "valid")}
        folder = phases["train" if phase == "train" else "valid"]
        if not any(path.is_dir() for path in phases.values()):
            folder = Path(root)
        self.files = pictures_below(folder, "high-resolution pictures")
        self._room = memory * 2**20  # bytes
        self._kept: dict[int, Image.Image] = {}

    def __len__(self) -> int:
        return len(self.files)

    def check(self, file: Path, size: tuple[int, int]) -> None:
        """Refuses a picture of this width and height that is smaller than the crop."""
        check_large_enough(file, size, self.crop_size if self.augment else self.scale)

    def sample(
        self, index: int, rng: torch.Generator
    ) -> dict[str, torch.Tensor]:  # lr [C, h, w], hr [C, H, W], float32 in [0, 1]
        """One picture at both resolutions; ``rng`` decides where the crop is."""
        image = self._image(index)
        self.check(self.files[index], image.size)
        width, height = image.size
        if self.augment:
            left, top = (draw(side - self.crop_size + 1, rng) for side in image.size)
            hr = image.crop((left, top, left + self.crop_size, top + self.crop_size))
        else:
            hr = image.crop((0, 0, width - width % self.scale, height - height % self.scale))
        lr = hr.resize((hr.width // self.scale, hr.height // self.scale), BICUBIC)
        return {"lr": unit(lr), "hr": unit(hr)}

    def _image(self, index: int) -> Image.Image:
        if index in self._kept:
            return self._kept[index]
        image = read_image(self.files[index], self.channels)
        size = image.width * image.height * (4 if self.channels == 3 else 1)  # as Pillow stores it
        if self.augment and size <= self._room:
            self._room -= size
            self._kept[index] = image
        return image
