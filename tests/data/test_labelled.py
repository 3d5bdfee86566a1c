# SPDX-License-Identifier: Apache-2.0
"""Attribute lists, class folders and arrays: the right label with the right picture."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from drawing import picture, pictures, refused, signed
from PIL import Image
from test_digits import IMAGES, LABELS, write_idx

from gansparse.data import AttributeFolder, ClassFolder, LabelledPictures, load_idx
from gansparse.data.labelled import CELEBA_ATTRIBUTES

NAMES = ("Young", "Bald", "Male")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def write_list(folder: Path, rows: list[str], names=NAMES, count: int | None = None) -> None:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = [str(len(rows) if count is None else count), " ".join(names), *rows]
    (folder / "list_attr_celeba.txt").write_text("\n".join(lines) + "\n")


def prepared(pixels: np.ndarray, crop: int, size: int) -> np.ndarray:
    """Centre crop and bilinear resize, in [-1, 1]."""
    top, left = (round((side - crop) / 2) for side in pixels.shape[:2])
    image = Image.fromarray(pixels[top : top + crop, left : left + crop])
    return signed(np.asarray(image.resize((size, size), Image.Resampling.BILINEAR)))


# ---- Attribute list ------------------------------------------------------------------------------


def test_labels_follow_the_chosen_names(tmp_path):
    marks = ["1 -1 -1", "-1 -1 1", "-1 1 1", "1 1 1"]
    write_list(tmp_path, [f"{i}.png {m}" for i, m in enumerate(marks)])
    pixels = [picture(tmp_path / f"images/{i}.png", 9, 11) for i in range(4)]
    want = {f"{i}.png": [float(m.split()[c] == "1") for c in (2, 0)] for i, m in enumerate(marks)}
    faces = AttributeFolder(
        tmp_path, ("Male", "Young"), crop_size=7, image_size=4, flip=False, test_count=0
    )
    assert faces.label_names == ("Male", "Young")
    assert sorted(file.name for file in faces.files) == sorted(want)
    for index, file in enumerate(faces.files):
        got = faces.sample(index, rng())
        assert got["label"].tolist() == want[file.name]
        np.testing.assert_array_equal(
            got["image"].numpy(), prepared(pixels[int(file.stem)], 7, 4), err_msg=file.name
        )


def test_lists_as_editors_leave_them(tmp_path):
    """With a byte order mark, CRLF and empty lines at the end."""
    write_list(tmp_path, ["0.png 1 -1 -1", "1.png -1 1 -1"])
    for index in range(2):
        picture(tmp_path / f"images/{index}.png", 9, 11)
    path = tmp_path / "list_attr_celeba.txt"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n \r\n")
    faces = AttributeFolder(tmp_path, NAMES, crop_size=7, image_size=4, test_count=0)
    assert sorted(faces.labels.tolist()) == [[0, 1, 0], [1, 0, 0]]


def test_the_split_is_the_originals(tmp_path):
    """yunjey/stargan shuffles the lines with seed 1234 and tests on line i while i < 2000."""
    files = [f"{i:06}.jpg" for i in range(4100)]
    write_list(tmp_path, [f"{name} 1 1 1" for name in files])
    shuffled, before = list(files), random.getstate()
    random.seed(1234)
    random.shuffle(shuffled)
    random.setstate(before)
    parts = {p: AttributeFolder(tmp_path, ("Male",), phase=p).files for p in ("train", "test")}
    assert random.getstate() == before
    assert [file.name for file in parts["test"]] == shuffled[:1999]
    assert [file.name for file in parts["train"]] == shuffled[1999:]


def test_a_short_list_keeps_a_tenth_to_test(tmp_path):
    write_list(tmp_path, [f"{i}.png 1 1 1" for i in range(35)])
    parts = {p: AttributeFolder(tmp_path, None, phase=p) for p in ("train", "test")}
    assert (len(parts["train"]), len(parts["test"])) == (32, 3)
    assert parts["train"].label_names == NAMES


def test_half_are_mirrored_and_none_without_augmentation(tmp_path):
    write_list(tmp_path, ["x.png 1 1 1"])
    pixels = picture(tmp_path / "images/x.png", 8, 8)
    options = {"crop_size": 8, "image_size": 8, "test_count": 0}
    plain, mirrored = signed(pixels), signed(pixels[:, ::-1])
    for augment, low, high in ((True, 70, 130), (False, 0, 0)):
        faces = AttributeFolder(tmp_path, ("Male",), augment=augment, **options)
        got = [faces.sample(0, rng(seed))["image"].numpy() for seed in range(200)]
        flips = sum(np.array_equal(image, mirrored) for image in got)
        assert low <= flips <= high  # 100 +- 4.2 standard deviations
        assert sum(np.array_equal(image, plain) for image in got) == 200 - flips


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": ("Bald",)}, "no attribute 'Black_Hair'; there are Bald"),
        ({"rows": ["0.png 1 1 1", "1.png 1 1"]}, "line 4: 3 attributes need a file name and as"),
        ({"rows": ["0.png 1 1 2"]}, "line 3: values must be 1 or -1"),
        ({"count": 7}, "line 1 promises 7 pictures, 1 lines follow; copy it again"),
        ({"rows": []}, "line 1 must be the number of pictures, line 2 the names"),
    ],
)
def test_lists_that_do_not_match(tmp_path, change, message):
    chosen = CELEBA_ATTRIBUTES if "names" in change else NAMES
    write_list(tmp_path, **({"rows": ["0.png 1 1 1"]} | change))
    refused(lambda: AttributeFolder(tmp_path, chosen), message)


def test_attribute_refusals(tmp_path):
    refused(lambda: AttributeFolder(tmp_path), "needs a folder images")
    refused(lambda: AttributeFolder(tmp_path, test_count=-1), "test_count must be at least 0")
    (tmp_path / "images").mkdir()
    refused(lambda: AttributeFolder(tmp_path), r"list_attr_celeba\.txt: no such file")
    (tmp_path / "list_attr_celeba.txt").write_bytes(b"\xff\xfe\x00")
    refused(lambda: AttributeFolder(tmp_path), r"list_attr_celeba\.txt: not readable as text")
    write_list(tmp_path, ["0.png 1 1 1", "gone.png 1 1 1"])
    refused(lambda: AttributeFolder(tmp_path, ()), "no attribute was chosen; there are Young")
    refused(
        lambda: AttributeFolder(tmp_path, NAMES, phase="test"),
        "no pictures for phase 'test': 2 are listed, of which 0 are for 'test'",
    )
    refused(
        lambda: AttributeFolder(tmp_path, NAMES, phase="val"),
        "must be 'train' or 'test', got 'val'",
    )
    picture(tmp_path / "images/0.png", 177, 218)
    faces = AttributeFolder(tmp_path, NAMES)
    names = [file.name for file in faces.files]
    refused(
        lambda: faces.sample(names.index("0.png"), rng()),
        r"0\.png: is 177x218, smaller than the crop of 178",
    )
    refused(lambda: faces.sample(names.index("gone.png"), rng()), r"gone\.png: no such file")


# ---- A folder a class ----------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["", "train"])
def test_class_folders(tmp_path, place):
    pixels = {name: pictures(tmp_path / place / name, 2, 6, 9) for name in ("sad", "angry", "glad")}
    faces = ClassFolder(tmp_path, image_size=4, flip=False)
    assert faces.label_names == ("angry", "glad", "sad")
    for index in range(6):
        got, name = faces.sample(index, rng()), faces.label_names[index // 2]
        assert got["label"].tolist() == [float(name == other) for other in faces.label_names]
        want = prepared(pixels[name][index % 2], 6, 4)
        np.testing.assert_array_equal(got["image"].numpy(), want)


def test_some_classes_in_a_chosen_order(tmp_path):
    for name in ("sad", "angry", "glad"):
        pictures(tmp_path / "train" / name, 1, 6, 6)
    pictures(tmp_path / "test/sad", 2, 6, 6)
    faces = ClassFolder(tmp_path, classes=("sad", "angry"))
    assert [file.parent.name for file in faces.files] == ["sad", "angry"]
    assert faces.sample(0, rng())["label"].tolist() == [1.0, 0.0]
    assert len(ClassFolder(tmp_path, "test")) == 2


def test_class_refusals(tmp_path):
    refused(lambda: ClassFolder(tmp_path / "nowhere"), "nowhere: no such folder")
    pictures(tmp_path / "trainA", 1, 4, 4)  # CycleGAN's, no class
    refused(lambda: ClassFolder(tmp_path), "has no subfolders, of which each should hold a class")
    pictures(tmp_path / "sad", 1, 4, 4)
    refused(
        lambda: ClassFolder(tmp_path, "test"), r"test: no such folder, .*put test pictures into"
    )
    (tmp_path / "glad").mkdir()
    refused(
        lambda: ClassFolder(tmp_path), r"glad: holds no pictures .*; the pictures of this class"
    )
    refused(
        lambda: ClassFolder(tmp_path, classes=("sad", "angry")), "needs a folder angry .* glad, sad"
    )
    refused(lambda: ClassFolder(tmp_path, image_size=0), "image_size must be at least 1, got 0")
    small = ClassFolder(tmp_path, classes=("sad",), crop_size=5)
    refused(lambda: small.sample(0, rng()), r"00\.png: is 4x4, smaller than the crop of 5")


# ---- Arrays and IDX ------------------------------------------------------------------------------


def test_labelled_pictures(tmp_path):
    images = torch.from_numpy(IMAGES)[:, None]
    labels = torch.from_numpy(LABELS.astype(np.int64))
    classes = labels.unique().tolist()[::-2]
    chosen = LabelledPictures(images, labels, classes=classes)
    kept = [i for i, label in enumerate(labels.tolist()) if label in classes]
    assert len(chosen) == len(kept)
    for index, i in enumerate(kept):
        got = chosen.sample(index, rng())
        np.testing.assert_array_equal(got["image"].numpy(), signed(IMAGES[i][..., None]))
        assert got["label"].tolist() == [float(labels[i] == label) for label in classes]
    larger = LabelledPictures(images, labels, size=32, channels=3).sample(0, rng())["image"]
    want = Image.fromarray(IMAGES[0]).resize((32, 32), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(larger.numpy(), signed(np.stack([np.asarray(want)] * 3, -1)))


def test_labelled_pictures_refusals():
    images, labels = torch.zeros(3, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 0, 2])
    refused(lambda: LabelledPictures(images, labels, classes=(0, 1)), "no pictures with label 1")
    refused(lambda: LabelledPictures(images, labels[:2]), r"must be uint8 .* with \[2\]")
    refused(lambda: LabelledPictures(images.float(), labels), "got torch.float32")
    refused(lambda: LabelledPictures(images, labels, size=0), "image_size must be at least 1")
    refused(lambda: LabelledPictures(images, labels, channels=2), "1 channels .* with 2")
    refused(lambda: LabelledPictures(images[:0], labels[:0]), "no pictures")


def test_idx_of_any_size(tmp_path):
    write_idx(tmp_path, compress=True)
    images, labels = load_idx(tmp_path)
    assert torch.equal(images[:, 0], torch.from_numpy(IMAGES))
    assert labels.tolist() == LABELS.tolist()
    head = bytes([0, 0, 8, 3]) + np.array((20, 2, 3), ">u4").tobytes()
    (tmp_path / "train-images-idx3-ubyte").write_bytes(head + bytes(range(120)))
    assert load_idx(tmp_path)[0].shape == (20, 1, 2, 3)
    refused(lambda: load_idx(tmp_path, "val"), "split must be 'train' or 'test'")
    refused(lambda: load_idx(tmp_path, "test"), "t10k-images")


@pytest.mark.data
def test_five_garments_of_fashion_mnist():
    root = os.environ.get("GANSPARSE_DATA")
    if not root:
        pytest.skip("GANSPARSE_DATA is not set")
    images, labels = load_idx(Path(root, "fashion_mnist"), "test")
    garments = LabelledPictures(images, labels, classes=(0, 2, 3, 4, 6), size=32)
    assert len(garments) == 5_000
    assert garments.labels.sum(0).tolist() == [1000.0] * 5
