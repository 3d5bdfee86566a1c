# SPDX-License-Identifier: Apache-2.0
"""SRGAN against the layout and the arithmetic of leftthomas/SRGAN, and its public weights."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from random_states import (
    Shapes,
    State,
    conv_shapes,
    norm_shapes,
    parameters_of,
    random_state,
    shapes_of,
)

import gansparse
from gansparse.errors import CheckpointError, InputError
from gansparse.metrics import PeakSignalNoiseRatio
from gansparse.models.srgan import (
    SRGANDiscriminator,
    SRGANGenerator,
    discriminator_from_state,
    generator_from_state,
)

# ---- The public layout ---------------------------------------------------------------------------


def generator_shapes(
    doublings: int = 2, width: int = 64, blocks: int = 5, *, old: bool = False
) -> Shapes:
    w = width
    shapes = conv_shapes("block1.0", w, 3, 9, 9) | {"block1.1.weight": (1,)}
    for i in range(2, 2 + blocks):
        for j in (1, 2):
            shapes |= conv_shapes(f"block{i}.conv{j}", w, w, 3, 3)
            shapes |= norm_shapes(f"block{i}.bn{j}", w)
        shapes[f"block{i}.prelu.weight"] = (1,)
    trunk, tail = f"block{blocks + 2}", f"block{blocks + 3}"
    shapes |= conv_shapes(f"{trunk}.0", w, w, 3, 3)
    shapes |= {f"{trunk}.1.weight": (1,)} if old else norm_shapes(f"{trunk}.1", w)
    for i in range(doublings):
        shapes |= conv_shapes(f"{tail}.{i}.conv", 4 * w, w, 3, 3)
        shapes[f"{tail}.{i}.prelu.weight"] = (1,)
    return shapes | conv_shapes(f"{tail}.{doublings}", 3, w, 9, 9)


def discriminator_shapes(width: int = 64) -> Shapes:
    shapes = conv_shapes("net.0", width, 3, 3, 3)
    channels = width
    for i, times in ((2, 1), (5, 2), (8, 2), (11, 4), (14, 4), (17, 8), (20, 8)):
        shapes |= conv_shapes(f"net.{i}", times * width, channels, 3, 3)
        shapes |= norm_shapes(f"net.{i + 1}", times * width)
        channels = times * width
    shapes |= conv_shapes("net.24", 16 * width, 8 * width, 1, 1)
    return shapes | conv_shapes("net.26", 1, 16 * width, 1, 1)


def convolved(state: State, key: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
    weight = state[f"{key}.weight"]
    return F.conv2d(x, weight, state[f"{key}.bias"], stride, padding=weight.shape[-1] // 2)


def normed(state: State, key: str, x: torch.Tensor) -> torch.Tensor:
    """BatchNorm with running statistics."""
    mean, variance, weight, bias = (
        state[f"{key}.{name}"].view(1, -1, 1, 1)
        for name in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (variance + 1e-5).sqrt() * weight + bias


def public_generator(state: State, images: torch.Tensor, blocks: int) -> torch.Tensor:
    shallow = F.prelu(convolved(state, "block1.0", images), state["block1.1.weight"])
    x = shallow
    for i in range(2, 2 + blocks):
        y = normed(state, f"block{i}.bn1", convolved(state, f"block{i}.conv1", x))
        y = F.prelu(y, state[f"block{i}.prelu.weight"])
        x = x + normed(state, f"block{i}.bn2", convolved(state, f"block{i}.conv2", y))
    trunk, tail = f"block{blocks + 2}", f"block{blocks + 3}"
    x = convolved(state, f"{trunk}.0", x)
    if f"{trunk}.1.running_mean" in state:
        x = normed(state, f"{trunk}.1", x)
    else:
        x = F.prelu(x, state[f"{trunk}.1.weight"])
    x, i = shallow + x, 0
    while f"{tail}.{i}.conv.weight" in state:
        x = F.pixel_shuffle(convolved(state, f"{tail}.{i}.conv", x), 2)
        x = F.prelu(x, state[f"{tail}.{i}.prelu.weight"])
        i += 1
    return (torch.tanh(convolved(state, f"{tail}.{i}", x)) + 1) / 2


def public_discriminator(state: State, images: torch.Tensor) -> torch.Tensor:
    x = F.leaky_relu(convolved(state, "net.0", images), 0.2)
    for i, stride in ((2, 2), (5, 1), (8, 2), (11, 1), (14, 2), (17, 1), (20, 2)):
        x = convolved(state, f"net.{i}", x, stride)
        x = F.leaky_relu(normed(state, f"net.{i + 1}", x), 0.2)
    x = F.leaky_relu(convolved(state, "net.24", x.mean((2, 3), keepdim=True)), 0.2)
    return torch.sigmoid(convolved(state, "net.26", x)).flatten()


# ---- Default sizes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scale", "old", "keys", "parameters"),
    [
        (2, False, 90, 586_506),
        (4, False, 93, 734_219),
        (8, False, 96, 881_932),
        (4, True, 89, 734_092),
    ],
)
def test_generator_has_the_public_layout(scale, old, keys, parameters) -> None:
    with torch.device("meta"):
        net = SRGANGenerator(scale, old=old)
    assert shapes_of(net) == generator_shapes({2: 1, 4: 2, 8: 3}[scale], old=old)
    assert len(net.state_dict()) == keys
    assert parameters_of(net) == parameters


def test_discriminator_has_the_public_layout() -> None:
    with torch.device("meta"):
        net = SRGANDiscriminator()
    assert shapes_of(net) == discriminator_shapes()
    assert len(net.state_dict()) == 55
    assert parameters_of(net) == 5_215_425


# ---- Files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(("doublings", "blocks"), [(1, 5), (2, 5), (3, 2)])
def test_public_generator_loads_and_agrees(tmp_path, doublings, blocks, old) -> None:
    """The scale is read off the upsampling layers, the variant off what follows block7's kernel."""
    state = random_state(generator_shapes(doublings, 4, blocks, old=old))
    path = tmp_path / "netG_epoch_4_100.pth"
    torch.save(state, path)
    net = gansparse.load_generator(path).eval()
    assert isinstance(net, SRGANGenerator)
    assert net.scale == 2**doublings
    images = torch.rand(2, 3, 12, 16)
    want = public_generator(state, images, blocks)
    assert want.shape == (2, 3, 12 * net.scale, 16 * net.scale)
    torch.testing.assert_close(net(images), want, rtol=0, atol=1e-5)


def test_public_discriminator_loads_and_agrees(tmp_path) -> None:
    state = random_state(discriminator_shapes(4))
    torch.save(state, tmp_path / "netD_epoch_4_100.pth")
    net = gansparse.load_discriminator(tmp_path / "netD_epoch_4_100.pth").eval()
    assert isinstance(net, SRGANDiscriminator)
    images = torch.rand(3, 3, 40, 64)
    want = public_discriminator(state, images)
    assert want.shape == (3,)
    torch.testing.assert_close(net(images), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("old", [False, True])
def test_what_was_loaded_is_written_back_unchanged(old: bool) -> None:
    for shapes, from_state in (
        (generator_shapes(2, 4, 2, old=old), generator_from_state),
        (discriminator_shapes(4), discriminator_from_state),
    ):
        state = random_state(shapes)
        back = from_state(state, "a file").state_dict()
        assert set(back) == set(state)
        assert all(torch.equal(back[key], value) for key, value in state.items())


def test_files_without_batch_counters_load() -> None:
    """The public x4 file is older than PyTorch 0.4.1, which began to count batches: 79 keys."""
    state = random_state(generator_shapes(old=True))
    counters = [key for key in state if key.endswith("num_batches_tracked")]
    for key in counters:
        state.pop(key)
    assert len(state) == 79
    loaded = generator_from_state(state, "a file").state_dict()
    assert all(loaded[key] == 0 for key in counters)
    assert all(torch.equal(loaded[key], value) for key, value in state.items())


# ---- Range and refusals --------------------------------------------------------------------------


def test_pictures_are_in_zero_to_one() -> None:
    net = generator_from_state(random_state(generator_shapes(1, 4, 1)), "a file").eval()
    pictures = net(torch.rand(4, 3, 16, 16))
    assert 0 <= pictures.min() < 0.1
    assert 0.9 < pictures.max() <= 1
    with torch.no_grad():
        for parameter in net.block4[-1].parameters():
            parameter.zero_()
    assert torch.equal(net(torch.rand(1, 3, 8, 8)), torch.full((1, 3, 16, 16), 0.5))


def test_odd_scale_is_refused() -> None:
    with pytest.raises(InputError, match="scale must be 2, 4 or 8, got 3"):
        SRGANGenerator(scale=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("block1.0.weight"), "misses 'block1.0.weight'"),
        (lambda s: s.pop("block2.conv1.weight"), "misses 'block2.conv1.weight'"),
        (lambda s: s.pop("block4.1.running_mean"), "misses 'block4.1.running_mean'"),
        (lambda s: s.pop("block5.0.conv.bias"), "misses 'block5.0.conv.bias'"),
        (
            lambda s: [s.pop(key) for key in list(s) if ".conv." in key],
            "it has 0 upsampling layers block5.N.conv, not 1, 2 or 3",
        ),
        (
            lambda s: s.update({"block1.0.weight": torch.ones(4)}),
            r"block1.0.weight must have 4 dimensions, got shape \[4\]",
        ),
    ],
)
def test_odd_files_are_named(change, message: str) -> None:
    state = random_state(generator_shapes(2, 4, 2))
    change(state)
    with pytest.raises(CheckpointError, match=message) as caught:
        generator_from_state(state, "odd.pth")
    assert str(caught.value).startswith("odd.pth")
    assert "\n" not in str(caught.value)


# ---- The public weights --------------------------------------------------------------------------


def enlarged(net: SRGANGenerator, path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """A picture made small by Pillow's bicubic and large by the network, and the picture itself.

    Both [1, 3, H, W] in [-1, 1]; H and W are cut to multiples of the scale.
    """
    with Image.open(path) as file:
        picture = file.convert("RGB")
    width, height = (side // net.scale * net.scale for side in picture.size)
    picture = picture.crop((0, 0, width, height))
    small = picture.resize((width // net.scale, height // net.scale), Image.Resampling.BICUBIC)
    source, target = (
        torch.from_numpy(np.array(p)).permute(2, 0, 1)[None] / 255 for p in (small, picture)
    )
    with torch.no_grad():
        return net(source) * 2 - 1, target * 2 - 1


@pytest.mark.data
def test_public_weights_reach_their_figure_on_set14() -> None:
    """The x4 generator of before 2019-05-05. tests/tasks/test_srgan_task.py has Set5."""
    root = os.environ.get("GANSPARSE_DATA")
    if not root:
        pytest.skip("GANSPARSE_DATA is not set")
    net = gansparse.load_generator(Path(root, "weights", "srgan_x4_netG.pth")).eval()
    assert isinstance(net, SRGANGenerator)
    assert net.scale == 4
    assert parameters_of(net) == 734_092
    metric = PeakSignalNoiseRatio(border=4)
    for path in sorted(Path(root, "sr", "Set14").glob("*.png")):
        metric.update(*enlarged(net, path))
    assert metric.compute() == pytest.approx(27.70, abs=0.02)
