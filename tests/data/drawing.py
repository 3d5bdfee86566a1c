# SPDX-License-Identifier: Apache-2.0
"""Small pictures on disk, and what a refusal must look like, for the tests of the loaders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gansparse.errors import InputError


def picture(path: Path, width: int, height: int, *, seed: int = 0) -> np.ndarray:
    """Writes a PNG of random pixels; returns them [H, W, 3]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng((seed, *path.name.encode()))
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def pictures(folder: Path, count: int, width: int, height: int) -> list[np.ndarray]:
    """00.png, 01.png, ..."""
    return [picture(folder / f"{i:02}.png", width, height) for i in range(count)]


def cut(path: Path) -> None:
    """Leaves the first half of a file, header and all."""
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def signed(pixels: np.ndarray) -> np.ndarray:
    """[H, W, C] of bytes as [C, H, W] in [-1, 1]."""
    return (pixels.astype(np.float32) / np.float32(127.5) - np.float32(1)).transpose(2, 0, 1)


def refused(call, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
