# SPDX-License-Identifier: Apache-2.0
"""VGG16's features in torchvision's layout, computed a second time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from random_states import State, conv_shapes, random_state

from gansparse.errors import CheckpointError, InputError
from gansparse.models.vgg import vgg16_features

# Number in the Sequential -> input and output channels; a pool comes before those of POOLED.
PLAN = {0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256), 12: (256, 256)}
PLAN |= {14: (256, 256), 17: (256, 512)} | dict.fromkeys((19, 21, 24, 26, 28), (512, 512))
POOLED = (5, 10, 17, 24)


def public_state() -> State:
    """As torchvision's file, but for the classifier's size, which does not matter."""
    shapes = {"classifier.0.weight": (8, 4), "classifier.0.bias": (8,)}
    for number, (channels, width) in PLAN.items():
        shapes |= conv_shapes(f"features.{number}", width, channels, 3, 3)
    return random_state(shapes)


def test_public_file_loads_and_agrees(tmp_path) -> None:
    state = public_state()
    torch.save(state, tmp_path / "vgg16-397923af.pth")
    net = vgg16_features(tmp_path / "vgg16-397923af.pth")
    assert not net.training
    assert not any(p.requires_grad for p in net.parameters())
    assert sum(p.numel() for p in net.parameters()) == 14_714_688
    images = torch.rand(2, 3, 70, 40)
    x = images
    for number in PLAN:
        x = F.max_pool2d(x, 2) if number in POOLED else x
        weight, bias = (state[f"features.{number}.{name}"] for name in ("weight", "bias"))
        x = F.relu(F.conv2d(x, weight, bias, padding=1))
    want = F.max_pool2d(x, 2)
    assert want.shape == (2, 512, 2, 1)
    torch.testing.assert_close(net(images), want, rtol=0, atol=1e-5)


def test_other_files_are_refused(tmp_path) -> None:
    state = public_state()
    state.pop("features.28.bias")
    torch.save({"features.0.weight": state["features.0.weight"]}, tmp_path / "part.pth")
    with pytest.raises(CheckpointError, match="not the weights of a VGG16 .* misses 'features.0.b"):
        vgg16_features(tmp_path / "part.pth")


@pytest.mark.parametrize("shape", [(1, 3, 31, 64), (1, 1, 64, 64)])
def test_pictures_that_do_not_fit_are_refused(tmp_path, shape) -> None:
    from gansparse.models.vgg import VGG16Features

    with torch.device("meta"):
        net = VGG16Features()
    with pytest.raises(InputError, match=r"vgg16: pictures must be \[N, 3, H, W\]"):
        net(torch.zeros(shape))
