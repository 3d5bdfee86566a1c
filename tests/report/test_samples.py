# SPDX-License-Identifier: Apache-2.0
"""Files of pictures: what the comparison writes is what the report reads."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from gansparse.compress.samples import save_samples
from gansparse.errors import InputError
from gansparse.report import load_samples
from gansparse.report.samples import first_of


def test_views_come_back_in_their_order_to_half_precision(tmp_path):
    path, rng = tmp_path / "s.safetensors", torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.rand(*shape, generator=rng) * 2 - 1

    views = {
        "b to a": [random(3, 8, 8) for _ in range(4)],
        "a to b": [random(1, 4, 6), random(3, 5, 4)],
        "images": [random(1, 2, 2)],
    }
    save_samples(path, views)
    found = load_samples(path)
    assert list(found) == list(views)
    for view, pictures in views.items():
        assert len(found[view]) == len(pictures)
        for got, wanted in zip(found[view], pictures, strict=True):
            assert got.dtype == np.float32
            np.testing.assert_allclose(got, wanted, rtol=0, atol=2**-12)  # half an ulp below 1


def test_a_file_without_a_header_is_one_view(tmp_path):
    save_file({"images": torch.ones(1, 3, 2, 2).half()}, tmp_path / "s.safetensors")
    (picture,) = load_samples(tmp_path / "s.safetensors")[""]
    assert picture.shape == (3, 2, 2)
    assert picture.dtype == np.float32


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"pictures": torch.zeros(1, 1, 2, 2)}, 'holds no tensor "images"'),
        ({"images": torch.zeros(4, 4)}, r"images must be \[K, C, H, W\].* got \[4, 4\]"),
        ({"images": torch.zeros(4, 2, 4, 4)}, "C 1 or 3"),
        ({"images/0": torch.zeros(2, 4, 4)}, r"each of images must be \[C, H, W\].* got \[2, 4"),
        ({"images/1": torch.zeros(3, 4, 4)}, 'holds no tensor "images"'),
        ({"images/0": torch.full((1, 2, 2), math.inf)}, "hold NaN or infinite values"),
        ({"images": torch.zeros(0, 1, 4, 4)}, r"got \[0, 1, 4, 4\]"),
        ({"images": torch.full((1, 1, 2, 2), math.nan)}, "hold NaN or infinite values"),
    ],
)
def test_refuses_odd_samples(tmp_path, tensors, message):
    path = tmp_path / "samples.safetensors"
    save_file(tensors, path)
    with pytest.raises(InputError, match=message):
        load_samples(path)


@pytest.mark.parametrize("views", ["{", '"a"', "[1]"])
def test_refuses_odd_headers(tmp_path, views):
    path = tmp_path / "samples.safetensors"
    save_file({"images": torch.zeros(1, 1, 2, 2)}, path, {"views": views})
    with pytest.raises(InputError, match=r'samples.safetensors: "views" in its header is no list'):
        load_samples(path)


def test_a_view_that_the_header_names_must_be_there(tmp_path):
    path = tmp_path / "samples.safetensors"
    save_file({"images": torch.zeros(1, 1, 2, 2)}, path, {"views": '["a", "b"]'})
    with pytest.raises(InputError, match=r'holds no tensor "images\.1"'):
        load_samples(path)


def test_the_first_of_each_view():
    samples = {view: np.full((5, 1, 2, 2), number) for number, view in enumerate("abc")}
    assert [view for view, _ in first_of(samples, 7)] == list("aabbcc")
    assert [view for view, _ in first_of(samples, 1)] == list("abc")
    assert [float(picture.mean()) for _, picture in first_of(samples, 3)] == [0, 1, 2]
