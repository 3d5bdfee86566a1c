# SPDX-License-Identifier: Apache-2.0
"""HR folders and plain folders: the crop that was drawn, and Pillow's reduction of it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from drawing import picture, pictures, refused, signed
from PIL import Image

from gansparse.data import EvaluationBatches, PictureSamples, SuperResolutionFolder


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unit(pixels: np.ndarray) -> np.ndarray:
    return (pixels.astype(np.float32) / np.float32(255)).transpose(2, 0, 1)


def reduced(pixels: np.ndarray, scale: int) -> np.ndarray:
    height, width = (side // scale for side in pixels.shape[:2])
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))


def test_every_crop_with_its_own_reduction(tmp_path):
    pixels = picture(tmp_path / "x.png", 11, 10)
    samples = SuperResolutionFolder(tmp_path, scale=2, crop_size=9)  # taken as 8
    crops = {(y, x): pixels[y : y + 8, x : x + 8] for y in range(3) for x in range(4)}
    seen = set()
    for seed in range(150):
        got = samples.sample(0, rng(seed))
        (place,) = (p for p, c in crops.items() if np.array_equal(unit(c), got["hr"].numpy()))
        np.testing.assert_array_equal(got["lr"].numpy(), unit(reduced(crops[place], 2)))
        seen.add(place)
    assert seen == set(crops)


def test_the_whole_picture_cut_to_a_multiple(tmp_path):
    pixels = picture(tmp_path / "x.png", 13, 10)
    got = SuperResolutionFolder(tmp_path, scale=4, augment=False).sample(0, rng())
    np.testing.assert_array_equal(got["hr"].numpy(), unit(pixels[:8, :12]))
    np.testing.assert_array_equal(got["lr"].numpy(), unit(reduced(pixels[:8, :12], 4)))


def test_pictures_are_decoded_once_while_there_is_room(tmp_path):
    pictures(tmp_path, 3, 300, 400)  # 4 bytes a pixel: two fit into a MiB
    samples, anew = (SuperResolutionFolder(tmp_path, memory=m) for m in (1, 0))
    want = [anew.sample(i, rng(i)) for i in range(3)]
    for _ in range(2):
        for i in range(3):
            got = samples.sample(i, rng(i))
            assert all(torch.equal(got[key], want[i][key]) for key in want[i])
    for file in samples.files:
        file.unlink()
    assert torch.equal(samples.sample(1, rng(1))["lr"], want[1]["lr"])
    refused(lambda: samples.sample(2, rng()), r"02\.png: no such file")
    refused(lambda: anew.sample(1, rng()), r"01\.png: no such file")


def test_div2k_by_phase_and_other_folders_whatever_the_phase(tmp_path):
    pictures(tmp_path / "DIV2K_train_HR", 2, 9, 9)
    refused(lambda: SuperResolutionFolder(tmp_path, "test"), "needs a folder DIV2K_valid_HR")
    pictures(tmp_path / "DIV2K_valid_HR", 3, 9, 9)
    lengths = [len(SuperResolutionFolder(tmp_path, p)) for p in ("train", "valid", "test")]
    assert lengths == [2, 3, 3]
    assert len(SuperResolutionFolder(tmp_path / "DIV2K_train_HR", "test")) == 2


def test_too_small_for_the_crop(tmp_path):
    picture(tmp_path / "x.png", 100, 87)
    samples = SuperResolutionFolder(tmp_path)
    refused(lambda: samples.sample(0, rng()), r"x\.png: is 100x87, smaller than the crop of 88")
    refused(lambda: SuperResolutionFolder(tmp_path, crop_size=3), "crop_size must be at least 4")
    refused(lambda: SuperResolutionFolder(tmp_path, scale=0), "scale must be at least 1, got 0")
    picture(tmp_path / "x.png", 3, 30)
    samples = SuperResolutionFolder(tmp_path, augment=False)
    refused(lambda: samples.sample(0, rng()), r"x\.png: is 3x30, smaller than the crop of 4")


@pytest.mark.data
def test_set5_whole():
    root = os.environ.get("GANSPARSE_DATA")
    if not root:
        pytest.skip("GANSPARSE_DATA is not set")
    batches = EvaluationBatches(SuperResolutionFolder(Path(root, "sr/Set5"), augment=False), 1)
    sizes = [[side // 4 for side in batches(i)["hr"].shape[2:]] for i in range(len(batches))]
    assert len(sizes) == 5
    assert sizes == [list(batches(i)["lr"].shape[2:]) for i in range(len(batches))]


# ---- Plain ---------------------------------------------------------------------------------------


def test_shorter_side_resized_and_the_middle_taken(tmp_path):
    wide = picture(tmp_path / "wide.png", 20, 10)
    high = picture(tmp_path / "deeper/high.png", 5, 9)
    samples = PictureSamples(tmp_path, image_size=4)
    assert [file.name for file in samples.files] == ["high.png", "wide.png"]
    for index, (pixels, size, box) in enumerate(
        ((high, (4, 7), np.s_[2:6, :]), (wide, (8, 4), np.s_[:, 2:6]))
    ):
        image = Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)
        got = samples.sample(index, rng())["real"]
        np.testing.assert_array_equal(got.numpy(), signed(np.asarray(image)[box]))
    grey = PictureSamples(tmp_path, image_size=4, channels=1).sample(0, rng())["real"]
    assert grey.shape == (1, 4, 4)


def test_no_plain_pictures(tmp_path):
    (tmp_path / "empty").mkdir()
    refused(lambda: PictureSamples(tmp_path / "empty"), r"empty: holds no pictures \(")
    refused(lambda: PictureSamples(tmp_path, image_size=0), "image_size must be at least 1, got 0")
    refused(lambda: PictureSamples(tmp_path / "a" / "b"), "a: no such folder")
