# SPDX-License-Identifier: Apache-2.0
"""Pictures with labels, for StarGAN: an attribute list, a folder a class, or arrays in memory.

All give ``image`` [C, S, S] in [-1, 1] and ``label`` [c_dim] of zeros and ones, whose entries
``label_names`` names.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

import torch
from PIL import Image

from gansparse.data.folder import pictures_below, read_image
from gansparse.data.transforms import (
    centre_crop,
    check_at_least,
    check_large_enough,
    draw,
    mirrored,
    shorter_side_to,
    signed,
)
from gansparse.errors import InputError

CELEBA_ATTRIBUTES = ("Black_Hair", "Blond_Hair", "Brown_Hair", "Male", "Young")
CELEBA_LIST = "list_attr_celeba.txt"
CELEBA_FOLDERS = ("images", "img_align_celeba")
CELEBA_TEST_COUNT = 1999  # the original takes line i, from 1, while i < 2000
_SPLIT_SEED = 1234  # the original's
_MARKS = frozenset(("1", "-1", "0"))
# Subfolders of the other layouts are no classes.
_NO_CLASSES = {"train", "val", "test", "trainA", "trainB", "testA", "testB", *CELEBA_FOLDERS}
_NO_CLASSES |= {"DIV2K_train_HR", "DIV2K_valid_HR"}


@dataclass(frozen=True)
class _Portrait:
    """StarGAN's preparation (Choi et al. 2018): mirror half, centre crop, resize bilinear."""

    crop_size: int | None
    image_size: int
    flip: bool

    def __post_init__(self) -> None:
        check_at_least(1, crop_size=self.crop_size, image_size=self.image_size)

    def apply(self, image: Image.Image, rng: torch.Generator) -> torch.Tensor:
        if self.flip and draw(2, rng) == 1:
            image = mirrored(image)
        cropped = centre_crop(image, self.crop_size or min(image.size))
        return signed(shorter_side_to(cropped, self.image_size))


class _LabelledFiles:
    """What the two folders have in common: files, a row of labels for each, a preparation."""

    def __init__(self, portrait: _Portrait, *, augment: bool, channels: int) -> None:
        self._portrait, self.augment, self.channels = portrait, augment, channels
        self.files: list[Path] = []
        self.labels = torch.empty(0, 0)  # [M, c_dim], float32, zeros and ones
        self.label_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.files)

    def check(self, file: Path, size: tuple[int, int]) -> None:
        """Refuses a picture of this width and height that is smaller than the crop."""
        check_large_enough(file, size, self._portrait.crop_size or 1)

    def sample(
        self, index: int, rng: torch.Generator
    ) -> dict[str, torch.Tensor]:  # image [C, S, S], float32 in [-1, 1]; label [c_dim], float32
        """One picture with its label; ``rng`` decides whether it is mirrored."""
        picture = read_image(self.files[index], self.channels)
        self.check(self.files[index], picture.size)
        return {"image": self._portrait.apply(picture, rng), "label": self.labels[index].clone()}


class AttributeFolder(_LabelledFiles):
    """CelebA as StarGAN takes it: ``root/images/*`` and ``root/list_attr_celeba.txt``.

    Line 1 of the list is the number of pictures, line 2 the attributes' names, every other line a
    file name and 1 or -1 for each. Shuffled with the original's seed, the first are for testing,
    so the split of the whole CelebA is that of yunjey/stargan.

    Args:
        root: the folder; the pictures may be in ``img_align_celeba`` instead.
        attributes: which ones make the label, in this order; None: all of the list.
        phase: ``train`` or ``test``.
        crop_size: pixels a side of the crop from the middle.
        image_size: pixels a side of the result.
        flip: mirror half of the pictures.
        augment: False mirrors none.
        test_count: pictures for testing; default: 1,999 as in the original, and a tenth of a list
            shorter than twice that.
        channels: 3 for RGB, 1 for grey.

    Raises:
        InputError: no list or pictures, a line that doesn't match, an unknown attribute, or nothing
            left in this phase.
    """

    def __init__(
        self,
        root: str | Path,
        attributes: Sequence[str] | None = CELEBA_ATTRIBUTES,
        *,
        phase: str = "train",
        crop_size: int = 178,
        image_size: int = 128,
        flip: bool = True,
        augment: bool = True,
        test_count: int | None = None,
        channels: int = 3,
    ) -> None:
        portrait = _Portrait(crop_size, image_size, flip and augment)
        super().__init__(portrait, augment=augment, channels=channels)
        self.name = f"{root} ({phase})"
        check_at_least(0, test_count=test_count)
        if phase not in ("train", "test"):
            raise InputError(f"{root}: phase must be 'train' or 'test', got {phase!r}")
        folder = next((Path(root, f) for f in CELEBA_FOLDERS if Path(root, f).is_dir()), None)
        if folder is None:
            raise InputError(f"{root}: needs a folder images with the pictures of {CELEBA_LIST}")
        names, labels, self.label_names = _read_list(Path(root, CELEBA_LIST), attributes)
        order = list(range(len(names)))
        random.Random(_SPLIT_SEED).shuffle(order)
        if test_count is None:
            few = len(names) < 2 * CELEBA_TEST_COUNT
            test_count = len(names) // 10 if few else CELEBA_TEST_COUNT
        part = order[:test_count] if phase == "test" else order[test_count:]
        if not part:
            raise InputError(
                f"{root}: no pictures for phase {phase!r}: {len(names)} are listed, of which "
                f"{test_count} are for 'test' and the others for 'train'"
            )
        self.files = [folder / names[i] for i in part]
        self.labels = labels[part]


def _read_list(
    path: Path, attributes: Sequence[str] | None
) -> tuple[list[str], torch.Tensor, tuple[str, ...]]:
    """File names, labels [M, c_dim] and attributes of a list in CelebA's format."""
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; it holds the attributes of the pictures") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as text ({error}); copy it again") from None
    if len(lines) < 3 or not lines[0].strip().isdigit():
        raise InputError(
            f"{path}: line 1 must be the number of pictures, line 2 the names of the attributes, "
            "and one line a picture must follow"
        )
    known = lines[1].split()
    attributes = known if attributes is None else attributes
    unknown = [name for name in attributes if name not in known]
    if unknown or not attributes:
        wanted = f"no attribute {unknown[0]!r}" if unknown else "no attribute was chosen"
        raise InputError(f"{path}: {wanted}; there are {', '.join(known)}")
    chosen = itemgetter(0, *(known.index(name) + 1 for name in attributes))
    names, rows = [], []
    for number, line in enumerate(lines[2:], start=3):
        words = line.split()
        if len(words) != len(known) + 1:
            raise InputError(
                f"{path}, line {number}: {len(known)} attributes need a file name and as many "
                f"values, got {len(words)} words"
            )
        name, *marks = chosen(words)
        if not _MARKS.issuperset(marks):
            raise InputError(f"{path}, line {number}: values must be 1 or -1")
        names.append(name)
        rows.append([mark == "1" for mark in marks])
    if int(lines[0]) != len(names):
        raise InputError(
            f"{path}: line 1 promises {int(lines[0])} pictures, {len(names)} lines follow; copy it "
            "again, or correct line 1"
        )
    return names, torch.tensor(rows, dtype=torch.float32), tuple(attributes)


class ClassFolder(_LabelledFiles):
    """A folder a class, as RaFD and many others come; the label is one-hot.

    Either ``root/<class>/*``, which serves the phase ``train`` alone, or
    ``root/{train,test}/<class>/*``.

    Args:
        root: the folder.
        phase: ``train`` or ``test``.
        classes: which subfolders, in this order; default: all, sorted.
        crop_size: pixels a side of the crop from the middle; default: the largest square.
        image_size: pixels a side of the result.
        flip: mirror half of the pictures.
        augment: False mirrors none.
        channels: 3 for RGB, 1 for grey.

    Raises:
        InputError: no such folder, phase or class, or a class without pictures.
    """

    def __init__(
        self,
        root: str | Path,
        phase: str = "train",
        *,
        classes: Sequence[str] | None = None,
        crop_size: int | None = None,
        image_size: int = 128,
        flip: bool = True,
        augment: bool = True,
        channels: int = 3,
    ) -> None:
        portrait = _Portrait(crop_size, image_size, flip and augment)
        super().__init__(portrait, augment=augment, channels=channels)
        self.name, place = f"{root} ({phase})", Path(root)
        if phase != "train" or (place / "train").is_dir():
            place = place / phase
        if not place.is_dir():
            way = f"; put test pictures into {place}" if Path(root).is_dir() else ""
            raise InputError(f"{place}: no such folder, which should hold one of each class{way}")
        there = sorted(p.name for p in place.iterdir() if p.is_dir() and p.name[0] != ".")
        there = [name for name in there if name not in _NO_CLASSES]
        self.label_names = tuple(there if classes is None else classes)
        if not self.label_names:
            raise InputError(f"{place}: has no subfolders, of which each should hold a class")
        counts = []
        for name in self.label_names:
            found = pictures_below(place / name, "the pictures of this class")
            self.files += found
            counts.append(len(found))
        numbers = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        self.labels = torch.eye(len(counts))[numbers]


class LabelledPictures:
    """Pictures in memory with one class each: MNIST, Fashion-MNIST, CIFAR-10 as arrays.

    Args:
        images: uint8 [N, C, H, W].
        labels: int64 [N].
        classes: which labels to take, in this order; default: all there are.
        size: pixels a side of the result, bilinear; default: as they are, which must be square.
        flip: mirror half of the pictures.
        augment: False mirrors none.
        channels: 3 repeats a grey channel; default: as they are.

    Raises:
        InputError: shapes or dtypes that don't fit, or a class without pictures.

    Example:
        >>> images = torch.zeros(4, 1, 28, 28, dtype=torch.uint8)
        >>> labels = torch.tensor([0, 2, 5, 2])
        >>> garments = LabelledPictures(images, labels, classes=(2, 5), size=32)
        >>> one = garments.sample(1, torch.Generator())
        >>> len(garments), one["image"].shape, one["label"].tolist()
        (3, torch.Size([1, 32, 32]), [0.0, 1.0])
    """

    def __init__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        *,
        classes: Sequence[int] | None = None,
        size: int | None = None,
        flip: bool = False,
        augment: bool = True,
        channels: int | None = None,
    ) -> None:
        if images.ndim != 4 or images.dtype != torch.uint8 or labels.shape != images.shape[:1]:
            raise InputError(
                "labelled pictures must be uint8 [N, C, H, W] with labels [N], got "
                f"{images.dtype} {list(images.shape)} with {list(labels.shape)}"
            )
        stored = images.shape[1]
        if stored not in (1, 3) or channels not in (None, stored, 3):
            raise InputError(f"pictures of {stored} channels can't be shown with {channels}")
        chosen = sorted(set(labels.tolist())) if classes is None else list(classes)
        empty = [label for label in chosen if not bool((labels == label).any())]
        if empty or not chosen:
            raise InputError(f"no pictures with label {empty[0]}" if empty else "no pictures")
        place = {label: number for number, label in enumerate(chosen)}
        kept = torch.isin(labels, torch.tensor(chosen))
        self.images = images[kept].expand(-1, channels or stored, -1, -1)
        numbers = torch.tensor([place[label] for label in labels[kept].tolist()])
        self.labels = torch.eye(len(chosen))[numbers]  # [M, c_dim]
        self.label_names = tuple(str(label) for label in chosen)
        self.name, self.augment = "pictures in memory", augment
        self._portrait = _Portrait(
            None, min(images.shape[2:]) if size is None else size, flip and augment
        )

    def __len__(self) -> int:
        return self.images.shape[0]

    def sample(
        self, index: int, rng: torch.Generator
    ) -> dict[str, torch.Tensor]:  # image [C, S, S], float32 in [-1, 1]; label [c_dim], float32
        """One picture with its label; ``rng`` decides whether it is mirrored."""
        picture = self.images[index].permute(1, 2, 0).numpy()  # [H, W, C]
        image = Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture)
        return {"image": self._portrait.apply(image, rng), "label": self.labels[index].clone()}
