# SPDX-License-Identifier: Apache-2.0
"""CycleGAN's ResNet against junyanz' layout and arithmetic, written out a second time."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from random_states import Shapes, State, norm_shapes, parameters_of, random_state, shapes_of
from torch import nn

import gansparse
from gansparse.errors import CheckpointError
from gansparse.models.cyclegan import ResNetGenerator, generator_from_state

# ---- The public layout and arithmetic ------------------------------------------------------------


def convolutions(
    ngf: int = 64, blocks: int = 9, nc: int = 3, *, dropout: bool = False
) -> dict[str, tuple[int, int, int]]:
    """Key → output channels, input channels, kernel; transposed ones the other way round."""
    second = 6 if dropout else 5
    layers = {
        "model.1": (ngf, nc, 7),
        "model.4": (2 * ngf, ngf, 3),
        "model.7": (4 * ngf, 2 * ngf, 3),
    }
    for block in range(10, 10 + blocks):
        for place in (1, second):
            layers[f"model.{block}.conv_block.{place}"] = (4 * ngf, 4 * ngf, 3)
    end = 10 + blocks
    layers[f"model.{end}"] = (4 * ngf, 2 * ngf, 3)
    layers[f"model.{end + 3}"] = (2 * ngf, ngf, 3)
    layers[f"model.{end + 7}"] = (nc, ngf, 7)
    return layers


def norm_after(key: str) -> str:
    stem, _, place = key.rpartition(".")
    return f"{stem}.{int(place) + 1}"


def width_after(key: str, blocks: int, shape: tuple[int, int, int]) -> int:
    return shape[1] if key in (f"model.{10 + blocks}", f"model.{13 + blocks}") else shape[0]


def resnet_shapes(
    ngf: int = 64,
    blocks: int = 9,
    nc: int = 3,
    *,
    dropout: bool = False,
    norm: str = "instance",
    old: bool = False,
) -> Shapes:
    shapes: Shapes = {}
    layers = convolutions(ngf, blocks, nc, dropout=dropout)
    for key, shape in layers.items():
        last = key == f"model.{17 + blocks}"
        width = width_after(key, blocks, shape)
        shapes[f"{key}.weight"] = (*shape, shape[2])
        if norm == "instance" or last:
            shapes[f"{key}.bias"] = (width,)
        if not last and (old or norm == "batch"):
            shapes |= {
                name: size
                for name, size in norm_shapes(norm_after(key), width).items()
                if norm == "batch" or not name.endswith(("weight", "bias"))
            }
    return shapes


def public_resnet(state: State, images: torch.Tensor, blocks: int) -> torch.Tensor:
    """Without dropout's drops; InstanceNorm by the picture's own statistics."""

    def normalise(key: str, x: torch.Tensor) -> torch.Tensor:
        dims = (0, 2, 3) if f"{key}.weight" in state else (2, 3)
        variance, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
        x = (x - mean) / (variance + 1e-5).sqrt()
        if f"{key}.weight" not in state:
            return x
        return x * state[f"{key}.weight"].view(1, -1, 1, 1) + state[f"{key}.bias"].view(1, -1, 1, 1)

    def conv(key: str, x: torch.Tensor, stride: int = 1, padding: int = 0) -> torch.Tensor:
        return F.conv2d(x, state[f"{key}.weight"], state.get(f"{key}.bias"), stride, padding)

    def reflected(x: torch.Tensor, pixels: int) -> torch.Tensor:
        return F.pad(x, (pixels,) * 4, mode="reflect")

    x = normalise("model.2", conv("model.1", reflected(images, 3))).relu()
    for key in ("model.4", "model.7"):
        x = normalise(norm_after(key), conv(key, x, 2, 1)).relu()
    for block in range(10, 10 + blocks):
        key = f"model.{block}.conv_block"
        second = 6 if state.get(f"{key}.6.weight", torch.ones(1)).ndim == 4 else 5
        y = normalise(f"{key}.2", conv(f"{key}.1", reflected(x, 1))).relu()
        x = x + normalise(f"{key}.{second + 1}", conv(f"{key}.{second}", reflected(y, 1)))
    for place in (10 + blocks, 13 + blocks):
        weight, bias = state[f"model.{place}.weight"], state.get(f"model.{place}.bias")
        x = F.conv_transpose2d(x, weight, bias, stride=2, padding=1, output_padding=1)
        x = normalise(f"model.{place + 1}", x).relu()
    return conv(f"model.{17 + blocks}", reflected(x, 3)).tanh()


# ---- Default sizes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("blocks", "keys", "parameters"), [(9, 48, 11_378_179), (6, 36, 7_837_699)]
)
def test_generator_has_the_public_layout(blocks, keys, parameters) -> None:
    with torch.device("meta"):
        net = ResNetGenerator(num_blocks=blocks)
    assert shapes_of(net) == resnet_shapes(blocks=blocks)
    assert len(net.state_dict()) == keys
    assert parameters_of(net) == parameters


# ---- Files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
@pytest.mark.parametrize(("blocks", "nc"), [(9, 3), (6, 1), (2, 3)])
@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_public_generator_loads_and_agrees(tmp_path, prefix, blocks, nc, dropout, norm) -> None:
    state = random_state(resnet_shapes(2, blocks, nc, dropout=dropout, norm=norm))
    path = tmp_path / "latest_net_G_A.pth"
    torch.save({prefix + key: value for key, value in state.items()}, path)
    net = gansparse.load_generator(path)
    assert isinstance(net, ResNetGenerator)
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    images = torch.rand(2, nc, 32, 40) * 2 - 1
    want = public_resnet(state, images, blocks)
    torch.testing.assert_close(net(images), want, rtol=0, atol=1e-5)
    assert want.abs().max() <= 1


@pytest.mark.parametrize("dropout", [False, True])
def test_dropout_is_read_off_the_keys(dropout: bool) -> None:
    state = random_state(resnet_shapes(2, 2, dropout=dropout))
    assert (f"model.10.conv_block.{6 if dropout else 5}.weight") in state
    net = generator_from_state(state, "a file")
    assert sum(isinstance(module, nn.Dropout) for module in net.modules()) == 2 * dropout
    images = torch.rand(1, 3, 16, 16)
    assert torch.equal(net(images), net(images)) == (not dropout)
    assert torch.equal(net.eval()(images), net(images))


@pytest.mark.parametrize("dropout", [False, True])
def test_statistics_of_old_instance_norms_are_dropped(tmp_path, dropout: bool) -> None:
    old = OrderedDict(random_state(resnet_shapes(2, 9, dropout=dropout, old=True)))
    old._metadata = OrderedDict({"": {"version": 1}, "model.2": {"version": 1}})
    assert len(old) == 117
    torch.save(old, tmp_path / "latest_net_G.pth")
    net = gansparse.load_generator(tmp_path / "latest_net_G.pth")
    assert shapes_of(net) == resnet_shapes(2, 9, dropout=dropout)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    want = public_resnet(old, images, 9)
    torch.testing.assert_close(net.eval()(images), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_what_was_loaded_is_written_back_unchanged(norm: str) -> None:
    state = random_state(resnet_shapes(2, 3, dropout=True, norm=norm))
    back = generator_from_state(state, "a file").state_dict()
    assert set(back) == set(state)
    assert all(torch.equal(back[key], value) for key, value in state.items())


def test_weights_start_as_the_originals() -> None:
    net = ResNetGenerator(ngf=8, num_blocks=1).state_dict()
    assert net["model.10.conv_block.1.weight"].std() == pytest.approx(0.02, rel=0.1)
    assert not any(value.any() for key, value in net.items() if key.endswith("bias"))


# ---- Refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("model.1.weight"), "misses 'model.1.weight'"),
        (lambda s: s.pop("model.19.weight"), "misses 'model.19.weight'"),
        (
            lambda s: s.pop("model.11.conv_block.1.weight"),
            "misses 'model.11.conv_block.1.weight'",
        ),
        (lambda s: s.pop("model.10.conv_block.5.weight"), "misses 'model.10.conv_block.5.weight'"),
        (lambda s: s.update({"extra": torch.ones(1)}), "a key too many, 'extra'"),
        (
            lambda s: s.update({"model.4.bias": torch.ones(5)}),
            r"model.4.bias must have shape \[4\], got \[5\]",
        ),
    ],
)
def test_odd_files_are_named(change, message: str) -> None:
    state = random_state(resnet_shapes(2, 2))
    change(state)
    with pytest.raises(CheckpointError, match=message) as caught:
        generator_from_state(state, "odd.pth")
    assert str(caught.value).startswith("odd.pth")
    assert "\n" not in str(caught.value)
