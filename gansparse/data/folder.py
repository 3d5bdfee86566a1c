# SPDX-License-Identifier: Apache-2.0
"""Pictures from a folder: decoded by Pillow, in worker processes that stay ahead of the network.

How a file becomes bytes [C, H, W], in colour (C = 3) or grey (C = 1):

==================  ============================================================================
file                treatment
==================  ============================================================================
greyscale, 1 bit    its one channel three times, for colour
colour              ITU-R 601 luma (0.299 R + 0.587 G + 0.114 B), for grey
palette             the palette's colours
alpha channel       dropped: the colours stand as stored, nothing is blended
16 bits a channel   the higher byte of each value
CMYK, YCbCr         Pillow's conversion to RGB
EXIF orientation    not applied; of several frames the first is taken
32 bit, CIE Lab     refused: nothing says which value is white, or the conversion is not Pillow's
==================  ============================================================================

pytorch-fid, torch-fidelity and clean-fid do the same, but for greyscale of 16 bits, where Pillow's
own conversion makes every value above 255 white.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch.utils.data import DataLoader, Dataset

from gansparse.errors import InputError

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

_MODES = {1: "L", 3: "RGB"}  # channels -> Pillow's mode
_REFUSED = ("F", "I", "LAB")
# What Pillow raises on damaged files, besides OSError.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, Image.DecompressionBombError)

Prepare = Callable[[torch.Tensor], torch.Tensor]


def read_picture(
    path: str | Path,
    channels: int = 3,
) -> torch.Tensor:  # [channels, H, W], uint8
    """One picture as bytes; the head of this module has the table of treatments.

    Args:
        path: a file of any kind that Pillow reads.
        channels: 3 for RGB, 1 for grey.

    Raises:
        InputError: no such file, not a picture, truncated, or pixels of 32 bits; names the file.

    Example:
        >>> read_picture("photo.jpg").shape  # doctest: +SKIP
        torch.Size([3, 321, 481])
    """
    return as_tensor(read_image(path, channels))


def read_image(path: str | Path, channels: int = 3) -> Image.Image:
    """`read_picture` as a Pillow image of mode RGB or L, to be resized and cropped."""
    if channels not in _MODES:
        raise InputError(f"channels must be 3 (RGB) or 1 (grey), got {channels}")
    with _damage_named(path), Image.open(path) as image:
        return _converted(image, _MODES[channels])


def picture_size(path: str | Path) -> tuple[int, int]:
    """Width and height as the file's header tells; its pixels are not decoded."""
    with _damage_named(path), Image.open(path) as image:
        return image.width, image.height


def as_tensor(
    image: Image.Image,  # mode RGB or L
) -> torch.Tensor:  # [C, H, W], uint8
    """The bytes of a Pillow image."""
    rows = torch.from_numpy(np.array(image)).reshape(image.height, image.width, -1)  # [H, W, C]
    return rows.permute(2, 0, 1).contiguous()


@contextmanager
def _damage_named(path: str | Path) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        raise InputError(f"{path}: not a picture; mend or remove it") from None
    except _DAMAGED as error:
        raise InputError(f"{path}: damaged or truncated ({error}); mend or remove it") from None


def _converted(image: Image.Image, mode: str) -> Image.Image:
    wide = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if wide:
        return _converted(Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)), mode)
    if image.mode in _REFUSED:
        raise InputError(
            f"pixels of Pillow's mode {image.mode} have no fixed white; save it with 8 or 16 bits"
        )
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # straight to RGB, Pillow warns of transparent palettes
    return image.convert(mode)


class PictureFolder:
    """The pictures of a folder, by name, in order.

    Files are known by their suffix (see SUFFIXES) in upper or lower case, of which pytorch-fid
    knows only the lower; others are passed over, and so are hidden ones. Subfolders are read only
    when asked for.

    Args:
        path: the folder.
        channels: 3 for RGB, 1 for grey.
        recursive: also the pictures in its subfolders.
        num_workers: processes that read ahead; 0 reads in this one.

    Raises:
        InputError: no such folder, or no pictures in it.

    Example:
        >>> from tempfile import mkdtemp
        >>> path = Path(mkdtemp())
        >>> for name, size in (("a.png", (4, 4)), ("b.PNG", (4, 4)), ("notes.txt", None)):
        ...     _ = Image.new("L", size).save(path / name) if size else (path / name).write_text("")
        >>> pictures = PictureFolder(path)
        >>> len(pictures), next(pictures.batches(50)).shape
        (2, torch.Size([2, 3, 4, 4]))
    """

    def __init__(
        self,
        path: str | Path,
        *,
        channels: int = 3,
        recursive: bool = False,
        num_workers: int = 0,
    ) -> None:
        self.path, self.channels, self.num_workers = Path(path), channels, num_workers
        self.name = str(path)
        if not self.path.is_dir():
            raise InputError(f"no folder of pictures at {path}")
        self.files = _pictures_in(self.path, recursive)
        if not self.files:
            more = (
                "; its subfolders do: read them with recursive"
                if _pictures_in(self.path, True)
                else ""
            )
            raise InputError(f"{path} holds no pictures ({', '.join(SUFFIXES)}){more}")

    def __len__(self) -> int:
        return len(self.files)

    def fingerprint(self, count: int) -> str:
        """A hash of the first `count` files' names, sizes and times: whether they are the same."""
        digest = hashlib.sha256()
        for file in self.files[:count]:
            try:
                facts = file.stat()
            except OSError as error:
                raise InputError(f"{file}: {error.strerror or error}") from None
            name = file.relative_to(self.path).as_posix()
            digest.update(f"{name}\0{facts.st_size}\0{facts.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def batches(
        self, batch_size: int, first: int = 0, prepare: Prepare | None = None
    ) -> Iterator[torch.Tensor]:  # each [N, C, H, W] uint8, or of what `prepare` returns
        """The pictures from number `first` on, N = `batch_size` at a time, the last batch smaller.

        Args:
            batch_size: N.
            first: number of the first picture, counted from 0.
            prepare: called on each picture [1, C, H, W] before they are stacked, in the worker.
                Pictures of different sizes need one that brings them to the same.

        Raises:
            InputError: an unreadable picture, pictures of different sizes in a batch, or a worker
                that the system ended.
        """
        parts = [self.files[i : i + batch_size] for i in range(first, len(self), batch_size)]
        loader = DataLoader(
            _Batches(parts, self.channels, prepare),
            batch_size=None,
            num_workers=min(self.num_workers, len(parts)),
        )
        with worker_death_named(self.name):
            for batch in loader:
                if isinstance(batch, str):
                    raise InputError(batch)
                yield batch


@contextmanager
def worker_death_named(name: str) -> Iterator[None]:
    """Says in one line that a DataLoader's worker was ended, and what to do."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):
            raise
        raise InputError(
            f"{name}: a process that reads pictures was ended, for want of memory perhaps "
            "(RAM or /dev/shm); use fewer workers, or 0"
        ) from None


def pictures_below(folder: Path, holds: str) -> list[Path]:
    """All pictures in a folder and its subfolders, sorted.

    Args:
        folder: where.
        holds: what should be there, for the message.

    Raises:
        InputError: no such folder, or no pictures in it.
    """
    root = folder.parent
    if not folder.is_dir() and root.is_dir():
        others = sorted(p.name for p in root.iterdir() if p.is_dir() and p.name[0] != ".")
        there = f"it has {_listed(others)}" if others else "it has no subfolders"
        raise InputError(f"{root}: needs a folder {folder.name} with {holds}; {there}")
    if not folder.is_dir():
        raise InputError(f"{root}: no such folder")
    files = _pictures_in(folder, True)
    if not files:
        raise InputError(
            f"{folder}: holds no pictures ({', '.join(SUFFIXES)}); {holds} belong there"
        )
    return files


def _listed(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _pictures_in(folder: Path, recursive: bool) -> list[Path]:
    """Sorted files with a picture's suffix."""
    found: list[Path] = []
    seen: set[str] = set()  # a link may lead back to a folder that holds it
    for place, subfolders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = [name for name in subfolders if recursive and not name.startswith(".")]
        chosen = (n for n in names if n.lower().endswith(SUFFIXES) and not n.startswith("."))
        found += [Path(place, name) for name in chosen]
    return sorted(found)


class _Batches(Dataset[torch.Tensor | str]):
    """Batches by number. An error is a value: raised in a worker it would arrive as a traceback."""

    def __init__(
        self, parts: Sequence[Sequence[Path]], channels: int, prepare: Prepare | None
    ) -> None:
        self.parts, self.channels, self.prepare = parts, channels, prepare

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> torch.Tensor | str:
        try:
            return self._batch(self.parts[index])
        except InputError as error:
            return str(error)

    def _batch(self, files: Sequence[Path]) -> torch.Tensor:
        pictures: list[torch.Tensor] = []
        for file in files:
            picture = read_picture(file, self.channels)
            if self.prepare is not None:
                picture = self.prepare(picture[None])[0]
            elif pictures and picture.shape != pictures[0].shape:
                sizes = [f"{p.shape[2]}x{p.shape[1]}" for p in (picture, pictures[0])]
                raise InputError(
                    f"{file}: is {sizes[0]}, but {files[0].name} is {sizes[1]}; pictures of "
                    "several sizes need an extractor that resizes"
                )
            pictures.append(picture)
        return torch.stack(pictures)
