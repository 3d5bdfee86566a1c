# SPDX-License-Identifier: Apache-2.0
"""What the originals do to a picture before they train on it, by Pillow, in their order.

Augmentations draw from a generator that is passed in, so that a sample is a function of its seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image

from gansparse.data.digits import to_float
from gansparse.data.folder import as_tensor
from gansparse.errors import InputError

BILINEAR, BICUBIC = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC

Transform = Callable[[Image.Image], torch.Tensor]


def draw(limit: int, rng: torch.Generator) -> int:
    """A whole number of 0..limit-1, all equally likely."""
    return int(torch.randint(limit, (), generator=rng))


def mirrored(image: Image.Image) -> Image.Image:
    """Left and right changed."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def signed(
    image: Image.Image,  # mode RGB or L
) -> torch.Tensor:  # [C, H, W], float32 in [-1, 1]
    """The pixels as DCGAN, Pix2Pix, CycleGAN and StarGAN take them."""
    return to_float(as_tensor(image))


def unit(
    image: Image.Image,  # mode RGB or L
) -> torch.Tensor:  # [C, H, W], float32 in [0, 1]
    """The pixels as SRGAN takes them."""
    return as_tensor(image).to(torch.float32).div_(255.0)


def shorter_side_to(image: Image.Image, size: int) -> Image.Image:
    """Bilinear, antialiased; the longer side in proportion, rounded down."""
    width, height = image.size
    scaled = [int(size * side / min(width, height)) for side in (width, height)]
    return image.resize((scaled[0], scaled[1]), BILINEAR)


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """The square of ``size`` pixels in the middle; the picture must be as large."""
    left, top = (round((side - size) / 2) for side in image.size)
    return image.crop((left, top, left + size, top + size))


def check_at_least(lowest: int, **numbers: int | None) -> None:
    """Refuses arguments below ``lowest``, by name; None is none."""
    for name, value in numbers.items():
        if value is not None and value < lowest:
            raise InputError(f"{name} must be at least {lowest}, got {value}")


def check_large_enough(name: object, size: tuple[int, int], crop: int) -> None:
    """Refuses a picture that a crop of ``crop`` pixels doesn't fit into."""
    if min(size) < crop:
        raise InputError(
            f"{name}: is {size[0]}x{size[1]}, smaller than the crop of {crop}; take it out, or set "
            "a smaller crop size"
        )


@dataclass(frozen=True)
class Jitter:
    """Pix2Pix's and CycleGAN's augmentation: resize to a square, random crop, mirror half of them.

    Attributes:
        load_size: pixels a side that a picture is resized to, bicubic.
        crop_size: pixels a side of the crop.
        flip: mirror half of the pictures.
        augment: False resizes the whole picture to ``crop_size``, as the originals do to test.

    Example:
        >>> rng = torch.Generator().manual_seed(0)
        >>> Jitter(load_size=6, crop_size=4).drawn(rng)(Image.new("RGB", (9, 5))).shape
        torch.Size([3, 4, 4])
    """

    load_size: int = 286
    crop_size: int = 256
    flip: bool = True
    augment: bool = True

    def __post_init__(self) -> None:
        """Refuses a crop that is larger than the picture it is taken from."""
        if not 1 <= self.crop_size <= self.load_size:
            raise InputError(
                f"crop size must be 1..{self.load_size} (the load size), got {self.crop_size}"
            )

    def drawn(self, rng: torch.Generator) -> Transform:
        """One crop and flip, to be applied to one picture or to both of a pair."""
        if not self.augment:
            side = self.crop_size
            return lambda image: signed(image.resize((side, side), BICUBIC))
        x, y = (draw(self.load_size - self.crop_size + 1, rng) for _ in range(2))
        flip = self.flip and draw(2, rng) == 1

        def apply(image: Image.Image) -> torch.Tensor:
            image = image.resize((self.load_size, self.load_size), BICUBIC)
            image = image.crop((x, y, x + self.crop_size, y + self.crop_size))
            return signed(mirrored(image) if flip else image)

        return apply
