# SPDX-License-Identifier: Apache-2.0
"""Aligned and unaligned folders: which picture, which half, which crop, mirrored or not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from drawing import cut, picture, pictures, refused, signed
from PIL import Image

from gansparse.data import AlignedFolder, UnalignedFolder


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def windows(pixels: np.ndarray, crop: int) -> dict[tuple[int, int, bool], np.ndarray]:
    """Every crop of a picture, plain and mirrored, in [-1, 1]."""
    height, width = pixels.shape[:2]
    found = {}
    for y in range(height - crop + 1):
        for x in range(width - crop + 1):
            window = pixels[y : y + crop, x : x + crop]
            found[y, x, False] = signed(window)
            found[y, x, True] = signed(window[:, ::-1])
    return found


def which(tensor: torch.Tensor, among: dict[tuple[int, int, bool], np.ndarray]):
    (place,) = (k for k, window in among.items() if np.array_equal(window, tensor.numpy()))
    return place


# ---- Aligned -------------------------------------------------------------------------------------


def test_halves_share_crop_and_flip_and_all_of_them_occur(tmp_path):
    both = picture(tmp_path / "train/x.png", 20, 10)
    pairs = AlignedFolder(tmp_path, load_size=10, crop_size=8)
    a_windows, b_windows = windows(both[:, :10], 8), windows(both[:, 10:], 8)
    seen = set()
    for seed in range(200):
        got = pairs.sample(0, rng(seed))
        place = which(got["a"], a_windows)
        assert which(got["b"], b_windows) == place
        seen.add(place)
    # One of the 18 is missed with a probability of 18 (17/18)^200 = 2e-4, but seeds are fixed.
    assert seen == set(a_windows)


def test_resized_bicubically_as_pillow_does(tmp_path):
    both = picture(tmp_path / "train/x.png", 24, 9)
    resized = np.asarray(Image.fromarray(both[:, 12:]).resize((16, 16), Image.Resampling.BICUBIC))
    pairs = AlignedFolder(tmp_path, load_size=16, crop_size=13)
    which(pairs.sample(0, rng())["b"], windows(resized, 13))
    whole = AlignedFolder(tmp_path, load_size=20, crop_size=16, augment=False)
    np.testing.assert_array_equal(whole.sample(0, rng())["b"].numpy(), signed(resized))


def test_direction(tmp_path):
    pictures(tmp_path / "test", 3, 16, 8)
    options = {"load_size": 8, "crop_size": 6}
    there = AlignedFolder(tmp_path, "test", **options).sample(2, rng())
    back = AlignedFolder(tmp_path, "test", direction="BtoA", **options).sample(2, rng())
    assert torch.equal(there["a"], back["b"])
    assert torch.equal(there["b"], back["a"])
    refused(lambda: AlignedFolder(tmp_path, "test", direction="b2a"), "must be AtoB or BtoA")


def test_without_flip_and_in_grey(tmp_path):
    both = picture(tmp_path / "train/x.png", 12, 6)
    pairs = AlignedFolder(tmp_path, load_size=6, crop_size=6, flip=False, channels=1)
    grey = np.asarray(Image.fromarray(both[:, :6]).convert("L"))[..., None]
    for seed in range(8):
        got = pairs.sample(0, rng(seed))["a"]
        np.testing.assert_array_equal(got.numpy(), signed(grey))


def test_aligned_refusals(tmp_path):
    refused(lambda: AlignedFolder(tmp_path / "nowhere"), "nowhere: no such folder")
    refused(lambda: AlignedFolder(tmp_path), "needs a folder train .*; it has no subfolders")
    pictures(tmp_path / "val", 1, 4, 2)
    refused(
        lambda: AlignedFolder(tmp_path), "needs a folder train with .* side by side; it has val"
    )
    (tmp_path / "train").mkdir()
    refused(
        lambda: AlignedFolder(tmp_path), r"train: holds no pictures \(.*\); pictures of A and B"
    )
    picture(tmp_path / "train/odd.png", 7, 4)
    odd = AlignedFolder(tmp_path)
    refused(lambda: odd.sample(0, rng()), r"odd\.png: is 7 pixels wide; .* need an even width")
    refused(lambda: AlignedFolder(tmp_path, load_size=200), r"crop size must be 1..200 .* got 256")
    cut(tmp_path / "train/odd.png")
    refused(lambda: odd.sample(0, rng()), r"odd\.png: damaged or truncated")
    refused(lambda: AlignedFolder(tmp_path, channels=2).sample(0, rng()), "channels must be 3")


# ---- Unaligned -----------------------------------------------------------------------------------


@pytest.fixture
def unaligned(tmp_path):
    """Five pictures in A, three in B, of mixed sizes."""
    for side, count in (("A", 5), ("B", 3)):
        for phase in ("train", "test"):
            for i in range(count):
                picture(tmp_path / f"{phase}{side}" / f"{side}{i}.png", 8 + i, 9)
    return tmp_path


def resized(path: Path, size: int) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))


def test_a_in_turn_b_drawn_each_with_its_own_crop_and_flip(unaligned):
    pairs = UnalignedFolder(unaligned, load_size=8, crop_size=7)
    assert len(pairs) == 5
    b_windows = {
        (i, *place): window
        for i in range(3)
        for place, window in windows(resized(unaligned / f"trainB/B{i}.png", 8), 7).items()
    }
    drawn, same = set(), 0
    for index in range(10):
        a_windows = windows(resized(unaligned / f"trainA/A{index % 5}.png", 8), 7)
        for seed in range(20):
            got = pairs.sample(index, rng(seed))
            b, *b_place = which(got["b"], b_windows)
            same += tuple(b_place) == which(got["a"], a_windows)
            drawn.add(b)
    assert drawn == {0, 1, 2}
    assert same < 100  # of 200, of which an eighth agree by chance


def test_without_augmentation_both_come_in_turn(unaligned):
    pairs = UnalignedFolder(unaligned, "test", load_size=8, crop_size=7, augment=False)
    for index in range(5):
        got = pairs.sample(index, rng(index))
        for name, file in (("a", f"testA/A{index}.png"), ("b", f"testB/B{index % 3}.png")):
            np.testing.assert_array_equal(
                got[name].numpy(), signed(resized(unaligned / file, 7)), err_msg=file
            )


def test_b_to_a_starts_from_b(unaligned):
    options = {"load_size": 8, "crop_size": 7, "augment": False}
    there = UnalignedFolder(unaligned, **options).sample(1, rng())
    back = UnalignedFolder(unaligned, direction="BtoA", **options).sample(1, rng())
    assert torch.equal(there["a"], back["b"])
    assert torch.equal(there["b"], back["a"])


def test_unaligned_refusals(tmp_path):
    pictures(tmp_path / "trainA", 1, 4, 4)
    refused(
        lambda: UnalignedFolder(tmp_path),
        "needs a folder trainB with the pictures of domain B; it has trainA",
    )
    (tmp_path / "trainB").mkdir()
    refused(
        lambda: UnalignedFolder(tmp_path), r"trainB: holds no pictures .* of domain B belong there"
    )
    refused(lambda: UnalignedFolder(tmp_path, "test"), "needs a folder testA")
