# SPDX-License-Identifier: Apache-2.0
"""MSRResNet against the layout and the arithmetic of BasicSR, written out a second time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from random_states import Shapes, State, conv_shapes, parameters_of, random_state, shapes_of

import gansparse
from gansparse.errors import CheckpointError, InputError
from gansparse.models.msrresnet import MSRResNet, generator_from_state

# ---- The public layout ---------------------------------------------------------------------------


def shapes(scale: int = 4, width: int = 64, blocks: int = 16, nc: int = 3) -> Shapes:
    w, wide = width, {2: 4, 3: 9, 4: 4}[scale] * width
    layout = conv_shapes("conv_first", w, nc, 3, 3)
    for i in range(blocks):
        layout |= conv_shapes(f"body.{i}.conv1", w, w, 3, 3)
        layout |= conv_shapes(f"body.{i}.conv2", w, w, 3, 3)
    layout |= conv_shapes("upconv1", wide, w, 3, 3)
    if scale == 4:
        layout |= conv_shapes("upconv2", wide, w, 3, 3)
    return layout | conv_shapes("conv_hr", w, w, 3, 3) | conv_shapes("conv_last", nc, w, 3, 3)


def public_generator(state: State, images: torch.Tensor, scale: int) -> torch.Tensor:
    def convolved(key: str, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, state[f"{key}.weight"], state[f"{key}.bias"], padding=1)

    x, i = F.leaky_relu(convolved("conv_first", images), 0.1), 0
    while f"body.{i}.conv1.weight" in state:
        x = x + convolved(f"body.{i}.conv2", F.relu(convolved(f"body.{i}.conv1", x)))
        i += 1
    for key, step in {2: [("upconv1", 2)], 3: [("upconv1", 3)]}.get(
        scale, [("upconv1", 2), ("upconv2", 2)]
    ):
        x = F.leaky_relu(F.pixel_shuffle(convolved(key, x), step), 0.1)
    x = convolved("conv_last", F.leaky_relu(convolved("conv_hr", x), 0.1))
    size = (images.shape[2] * scale, images.shape[3] * scale)
    return x + F.interpolate(images, size=size, mode="bilinear", align_corners=False)


def test_has_the_public_layout() -> None:
    with torch.device("meta"):
        net = MSRResNet()
    assert shapes_of(net) == shapes()
    assert len(net.state_dict()) == 74
    assert parameters_of(net) == 1_517_571


# ---- Files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scale", "blocks", "nc"), [(2, 3, 3), (3, 1, 3), (4, 3, 3), (4, 2, 1)])
def test_public_weights_load_and_agree(tmp_path, scale, blocks, nc) -> None:
    state = random_state(shapes(scale, 4, blocks, nc))
    torch.save({"params": state}, tmp_path / "net_g_5000.pth")
    net = gansparse.load_generator(tmp_path / "net_g_5000.pth")
    assert isinstance(net, MSRResNet)
    assert net.scale == scale
    images = torch.rand(2, nc, 12, 16)
    want = public_generator(state, images, scale)
    torch.testing.assert_close(net(images), want, rtol=0, atol=1e-5)


def test_averaged_weights_are_chosen_where_a_file_holds_both(tmp_path) -> None:
    last, averaged = (random_state(shapes(2, 4, 1), seed) for seed in (0, 1))
    torch.save({"params": last, "params_ema": averaged}, tmp_path / "net_g_latest.pth")
    net = gansparse.load_generator(tmp_path / "net_g_latest.pth")
    assert torch.equal(net.state_dict()["conv_hr.weight"], averaged["conv_hr.weight"])


def test_what_was_loaded_is_written_back_unchanged() -> None:
    state = random_state(shapes(4, 4, 2))
    back = generator_from_state(state, "a file").state_dict()
    assert set(back) == set(state)
    assert all(torch.equal(back[key], value) for key, value in state.items())


# ---- Start and refusals --------------------------------------------------------------------------


def test_starts_near_the_bilinear_picture() -> None:
    """Weights a tenth of He's, biases zero, as BasicSR starts."""
    torch.manual_seed(0)
    net = MSRResNet(num_feat=32, num_block=2)
    for key, value in net.state_dict().items():
        if key.endswith("bias"):
            assert not value.any()
        else:
            he = (2 / value[0].numel()) ** 0.5
            assert value.std().item() == pytest.approx(0.1 * he, rel=0.15)
    images = torch.rand(1, 3, 8, 8)
    bilinear = F.interpolate(images, scale_factor=4, mode="bilinear")
    assert (net(images) - bilinear).abs().max() < 0.01


@pytest.mark.parametrize("scale", [1, 5, 8])
def test_odd_scale_is_refused(scale: int) -> None:
    with pytest.raises(InputError, match=f"scale must be 2, 3 or 4, got {scale}"):
        MSRResNet(scale)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("conv_first.weight"), "misses 'conv_first.weight'"),
        (lambda s: s.pop("body.0.conv2.weight"), "misses 'body.0.conv2.weight'"),
        (lambda s: s.pop("conv_last.bias"), "misses 'conv_last.bias'"),
        (
            lambda s: s.update({"upconv1.weight": torch.ones(8, 4, 3, 3)}),
            "upconv1.weight must have 4 or 9 times the 4 channels of conv_first.weight, got 8",
        ),
        (lambda s: s.update({"body.0.bn1.weight": torch.ones(4)}), "too many, 'body.0.bn1.weight'"),
    ],
)
def test_odd_files_are_named(change, message: str) -> None:
    state = random_state(shapes(2, 4, 2))
    change(state)
    with pytest.raises(CheckpointError, match=message) as caught:
        generator_from_state(state, "odd.pth")
    assert str(caught.value).startswith("odd.pth")
    assert "\n" not in str(caught.value)
