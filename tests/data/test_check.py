# SPDX-License-Identifier: Apache-2.0
"""What a folder looks like to each task: the right ones fit, and damage is found."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from drawing import cut, picture, pictures, refused
from test_digits import write_idx

from gansparse.data import write_synthetic
from gansparse.data.check import LAYOUTS, Fit, check_folder


def fitting(fits: list[Fit]) -> dict[tuple[str, str], Fit]:
    return {(fit.task, fit.layout): fit for fit in fits if not fit.problem}


PICTURES, SHARP = ("dcgan", "pictures"), ("srgan", "high resolution")
OWN = {  # kind -> the layout it is drawn for; any picture is one for DCGAN and SRGAN, too
    "aligned": ("pix2pix", "A and B side by side"),
    "unaligned": ("cyclegan", "trainA and trainB"),
    "attributes": ("stargan", "attribute list"),
    "classes": ("stargan", "a folder a class"),
    "hr": SHARP,
}


@pytest.mark.parametrize("kind", OWN)
def test_drawn_sets_fit_their_tasks_and_no_other(tmp_path, kind):
    size = 178 if kind == "attributes" else 96
    done = write_synthetic(kind, tmp_path / "set", count=10, size=size)
    fits = fitting(check_folder(tmp_path / "set", decode=True))
    assert set(fits) == {PICTURES, SHARP, OWN[kind]}
    assert not any(fit.odd for fit in fits.values())
    assert list(fits[OWN[kind]].counts) == ["train", "val" if kind == "hr" else "test"]
    assert len(fits[OWN[kind]].sizes) == done


def test_digits_and_idx(tmp_path):
    write_idx(tmp_path)
    fits = fitting(check_folder(tmp_path))
    assert set(fits) == {("dcgan", "digits (.npz, IDX)"), ("stargan", "IDX with labels")}
    (fit,) = (fit for key, fit in fits.items() if key[0] == "dcgan")
    assert fit.counts == {"train": 20}
    assert fit.sizes == [(28, 28)]
    write_idx(tmp_path, "t10k")
    assert fitting(check_folder(tmp_path))["stargan", "IDX with labels"].counts["test"] == 20
    images = np.zeros((4, 28, 28), np.uint8)
    arrays = {"x_train": images, "y_train": np.arange(4)}
    np.savez(tmp_path / "digits.npz", **arrays)
    fits = check_folder(tmp_path / "digits.npz")
    assert set(fitting(fits)) == {("dcgan", "digits (.npz, IDX)")}
    assert sum("is a file; this layout is a folder" in fit.problem for fit in fits) == 7


def test_damage_is_found_in_headers_or_by_decoding(tmp_path):
    pictures(tmp_path, 6, 100, 90)
    cut(tmp_path / "02.png")
    (tmp_path / "03.png").write_text("no picture")
    told = []
    fits = fitting(check_folder(tmp_path, on_file=lambda *seen: told.append(seen)))
    assert told == [(i + 1, 6) for i in range(6)]
    assert [line.split(": ")[1] for line in fits[PICTURES].odd] == [
        "not a picture; mend or remove it"
    ]
    odd = fitting(check_folder(tmp_path, decode=True))[PICTURES].odd
    assert [Path(line.split(": ")[0]).name for line in odd] == ["02.png", "03.png"]


def test_pictures_that_a_task_can_not_use(tmp_path):
    for i, (width, height) in enumerate(((100, 88), (87, 200), (300, 200))):
        picture(tmp_path / f"train/{i}.png", width, height)
    fits = fitting(check_folder(tmp_path))
    sharp = fits[SHARP]
    assert [line.split(": ", 1)[1].split(",")[0] for line in sharp.odd] == ["is 87x200"]
    assert sharp.sizes == [(100, 88), (87, 200), (300, 200)]
    picture(tmp_path / "train/2.png", 87, 200)
    picture(tmp_path / "train/0.png", 87, 200)
    (sharp,) = (fit for fit in check_folder(tmp_path) if fit.task == "srgan")
    assert sharp.problem.startswith("no picture can be used: ")
    assert "0.png: is 87x200, smaller than the crop of 88" in sharp.problem


def test_listed_pictures_that_are_not_there(tmp_path):
    write_synthetic("attributes", tmp_path / "set", count=10, size=178)
    (tmp_path / "set/images/000003.png").unlink()
    fit = fitting(check_folder(tmp_path / "set"))["stargan", "attribute list"]
    assert [Path(line.split(": ")[0]).name for line in fit.odd] == ["000003.png"]
    assert "no such file" in fit.odd[0]


def test_one_class_is_too_few(tmp_path):
    pictures(tmp_path / "sad", 2, 10, 10)
    (fit,) = (fit for fit in check_folder(tmp_path) if fit.layout == "a folder a class")
    assert fit.problem == "one class only, sad: StarGAN needs two or more"


def test_nothing_there(tmp_path):
    refused(lambda: check_folder(tmp_path / "nowhere"), "nowhere: no such folder")
    fits = check_folder(tmp_path)
    assert len(fits) == len(LAYOUTS)
    assert not fitting(fits)


@pytest.mark.data
def test_real_sets():
    root = os.environ.get("GANSPARSE_DATA")
    if not root:
        pytest.skip("GANSPARSE_DATA is not set")
    fits = fitting(check_folder(Path(root, "sr/BSD68")))
    assert set(fits) == {PICTURES, SHARP}
    assert len(fits[SHARP].sizes) == 68
