# SPDX-License-Identifier: Apache-2.0
"""LPIPS through the package of its authors, with its linear weights and a random trunk."""

from __future__ import annotations

import sys
import types
from unittest import mock

import pytest
import torch
from peers import peer
from torch import nn

from gansparse.errors import InputError
from gansparse.metrics import LearnedPerceptualImagePatchSimilarity
from gansparse.metrics.pictures import as_float


def alexnet(**_: object) -> types.SimpleNamespace:
    """In the place of torchvision's: AlexNet's layers (Krizhevsky 2014), random."""
    torch.manual_seed(0)
    sizes = [(3, 64, 11, 4, 2), (64, 192, 5, 1, 2), (192, 384, 3, 1, 1), (384, 256, 3, 1, 1)]
    layers: list[nn.Module] = []
    for index, size in enumerate([*sizes, (256, 256, 3, 1, 1)]):
        layers += [nn.Conv2d(*size), nn.ReLU()]
        layers += [nn.MaxPool2d(3, 2)] if index in (0, 1, 4) else []
    return types.SimpleNamespace(features=nn.Sequential(*layers))


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """`import lpips` gives the package, its trunk ours."""
    module = peer("lpips")
    monkeypatch.setattr(module.pn, "tv", types.SimpleNamespace(alexnet=alexnet))
    monkeypatch.setitem(sys.modules, "lpips", module)
    return module


def draw(seed: int, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (5, channels, 64, 64), generator=generator, dtype=torch.uint8)


def test_it_is_the_packages_mean_whatever_the_batches(package) -> None:
    x, y = draw(0), draw(1)
    metric = LearnedPerceptualImagePatchSimilarity("alex")
    for part, target in zip(x.split(2), y.split(2), strict=True):
        metric.update(part, target)
    network = package.LPIPS(net="alex", verbose=False)
    with torch.no_grad():
        each = [
            float(network(a[None], b[None])) for a, b in zip(as_float(x), as_float(y), strict=True)
        ]
    assert metric.compute() == pytest.approx(sum(each) / 5, rel=1e-5)  # float32 convolutions
    assert metric.compute() > 0.01
    assert metric.result() == {
        "metric": "LearnedPerceptualImagePatchSimilarity",
        "value": metric.compute(),
        "num_images": 5,
        "net": "alex",
    }


def test_equal_pictures_grey_ones_and_a_users_own_network(package) -> None:
    network = package.LPIPS(net="alex", verbose=False)
    metric = LearnedPerceptualImagePatchSimilarity("mine", network)
    metric.update(draw(0), draw(0))
    assert metric.compute() == 0
    metric.reset()
    grey, other = draw(0, 1), draw(1, 1)
    metric.update(grey, other)
    colour = LearnedPerceptualImagePatchSimilarity("mine", network)
    colour.update(grey.repeat(1, 3, 1, 1), other.repeat(1, 3, 1, 1))
    assert metric.compute() == colour.compute()


def message(call) -> str:
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_no_package() -> None:
    with mock.patch.dict(sys.modules, {"lpips": None}):
        told = message(LearnedPerceptualImagePatchSimilarity)
    assert "pip install gansparse[lpips], or give a distance" in told


def test_a_network_that_cannot_be_loaded(package, monkeypatch) -> None:
    assert "'resnet' can't be loaded" in message(
        lambda: LearnedPerceptualImagePatchSimilarity("resnet")
    )

    def offline(**_: object) -> None:
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(package.pn, "tv", types.SimpleNamespace(alexnet=offline))
    told = message(LearnedPerceptualImagePatchSimilarity)
    assert "'alex' can't be loaded (no route to host)" in told


def test_bad_input() -> None:
    def broken(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x - y).mean((1, 2, 3)) * torch.nan

    def one_number(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x - y).mean()

    x = torch.zeros(2, 3, 8, 8)
    told = message(lambda: LearnedPerceptualImagePatchSimilarity("own", broken).update(x, x))
    assert "must be finite, got NaN or infinity" in told
    told = message(lambda: LearnedPerceptualImagePatchSimilarity("own", one_number).update(x, x))
    assert "must give 2 values, got 1" in told
    metric = LearnedPerceptualImagePatchSimilarity("own", broken)
    assert "must have the pictures' shape" in message(lambda: metric.update(x, x[:1]))
    assert "grey [N, 1, H, W] or RGB" in message(lambda: metric.update(x[:, :2], x[:, :2]))
    assert "needs at least 1 picture, got 0" in message(metric.compute)
