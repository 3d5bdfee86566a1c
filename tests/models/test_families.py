# SPDX-License-Identifier: Apache-2.0
"""One call loads every family's files, and says what is wrong with others."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from random_states import State, shapes_of

import gansparse
from gansparse.errors import CheckpointError
from gansparse.files import save_tensors
from gansparse.models import (
    DCGANDiscriminator,
    DCGANGenerator,
    LeNet,
    MSRResNet,
    PatchGANDiscriminator,
    PixelDiscriminator,
    ResNetGenerator,
    SRGANDiscriminator,
    SRGANGenerator,
    StarGANDiscriminator,
    StarGANGenerator,
    UNetGenerator,
)
from gansparse.models.families import DISCRIMINATORS, GENERATORS

SMALL_GENERATORS = {
    "DCGAN generator": DCGANGenerator(nz=4, ngf=2, image_size=16),
    "Pix2Pix U-Net": UNetGenerator(ngf=2, num_downs=5),
    "CycleGAN ResNet": ResNetGenerator(ngf=2, num_blocks=1),
    "StarGAN generator": StarGANGenerator(conv_dim=2, c_dim=2, repeat_num=1),
    "SRGAN generator": SRGANGenerator(scale=2, ngf=2, blocks=1),
    "BasicSR MSRResNet": MSRResNet(scale=2, num_feat=2, num_block=1),
}
SMALL_DISCRIMINATORS = {
    "DCGAN discriminator": DCGANDiscriminator(ndf=2, image_size=16),
    "PatchGAN discriminator": PatchGANDiscriminator(in_channels=6, ndf=2),
    "Pix2Pix pixel discriminator": PixelDiscriminator(in_channels=6, ndf=2),
    "StarGAN discriminator": StarGANDiscriminator(image_size=16, conv_dim=2, repeat_num=3),
    "SRGAN discriminator": SRGANDiscriminator(ndf=2),
}
SMALL = SMALL_GENERATORS | SMALL_DISCRIMINATORS


def load(name: str, path) -> torch.nn.Module:
    read = gansparse.load_generator if name in SMALL_GENERATORS else gansparse.load_discriminator
    return read(path)


# ---- Every layout, every wrapper -----------------------------------------------------------------


def test_the_tables_are_complete() -> None:
    assert [row.name for row in GENERATORS] == list(SMALL_GENERATORS)
    assert [row.name for row in DISCRIMINATORS] == list(SMALL_DISCRIMINATORS)


@pytest.mark.parametrize("row", [*GENERATORS, *DISCRIMINATORS], ids=lambda row: row.name)
def test_one_row_alone_recognises_a_network(row) -> None:
    with torch.device("meta"):
        default = row.default()
    for net in (SMALL[row.name], default):
        state = net.state_dict()
        assert [r.name for r in (*GENERATORS, *DISCRIMINATORS) if r.recognise(state)] == [row.name]


@pytest.mark.parametrize("end", ["pth", "safetensors"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("name", SMALL)
def test_every_layout_loads_and_is_written_back(tmp_path, name, prefix, end) -> None:
    net, path = SMALL[name], tmp_path / f"net.{end}"
    state = {prefix + key: value for key, value in net.state_dict().items()}
    save_tensors(path, state) if end == "safetensors" else torch.save(state, path)
    loaded = load(name, path)
    assert type(loaded) is type(net)
    assert shapes_of(loaded) == shapes_of(net)
    for key, value in net.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)


@pytest.mark.parametrize("name", SMALL)
def test_files_from_before_batches_were_counted_load(tmp_path, name: str) -> None:
    state = SMALL[name].state_dict()
    old = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "old.pth")
    assert shapes_of(load(name, tmp_path / "old.pth")) == shapes_of(SMALL[name])


def filled(net: torch.nn.Module, number: float) -> State:
    return {key: torch.full_like(value, number) for key, value in net.state_dict().items()}


def test_averaged_weights_are_taken_where_there_are_any(tmp_path) -> None:
    net = SMALL_GENERATORS["BasicSR MSRResNet"]
    plain, averaged = filled(net, 1), filled(net, 2)
    for file, number in (
        ({"params": plain}, 1),
        ({"params": plain, "params_ema": averaged}, 2),
        ({"params_ema": {f"module.{key}": value for key, value in averaged.items()}}, 2),
    ):
        torch.save(file, tmp_path / "net_g_5000.pth")
        loaded = gansparse.load_generator(tmp_path / "net_g_5000.pth")
        assert all((value == number).all() for value in loaded.state_dict().values())


def test_half_precision_loads_as_float32(tmp_path) -> None:
    torch.save(ResNetGenerator(ngf=2, num_blocks=1).half().state_dict(), tmp_path / "half.pth")
    net = gansparse.load_generator(tmp_path / "half.pth")
    assert {value.dtype for value in net.parameters()} == {torch.float32}


@pytest.mark.parametrize("image_size", [28, 64])
def test_dcgan_of_either_size_loads(tmp_path, image_size: int) -> None:
    torch.save(DCGANGenerator(4, 2, image_size=image_size).state_dict(), tmp_path / "g.pth")
    torch.save(DCGANDiscriminator(2, image_size=image_size).state_dict(), tmp_path / "d.pth")
    pictures = gansparse.load_generator(tmp_path / "g.pth")(torch.randn(3, 4))
    assert pictures.shape == (3, 1, image_size, image_size)
    assert gansparse.load_discriminator(tmp_path / "d.pth")(pictures).shape == (3,)


# ---- What can't be loaded ------------------------------------------------------------------------


def refusal(path, read=None) -> str:
    with pytest.raises(CheckpointError) as caught:
        (read or gansparse.load_generator)(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_the_other_kind_is_named(tmp_path) -> None:
    path = tmp_path / "net.pth"
    for name, net in SMALL.items():
        torch.save(net.state_dict(), path)
        if name in SMALL_GENERATORS:
            message = refusal(path, gansparse.load_discriminator)
            assert message == f"no discriminator but a {name}; use load_generator"
        else:
            assert refusal(path) == f"no generator but a {name}; use load_discriminator"


def test_nearest_layout_and_first_differing_key_are_named(tmp_path) -> None:
    path = tmp_path / "net.pth"
    with torch.device("meta"):
        keys = list(UNetGenerator().state_dict())
    state = {key: torch.ones(1, 1, 4, 4) for key in keys}
    torch.save({key: state[key] for key in keys[1:]}, path)
    assert refusal(path) == (
        "no generator known here: nearest is the Pix2Pix U-Net, which has "
        "'model.model.0.weight', too"
    )
    torch.save(state | {keys[0]: torch.ones(1, 1, 3, 3)}, path)
    assert refusal(path).endswith(
        "nearest is the Pix2Pix U-Net, but model.model.0.weight has shape [1, 1, 3, 3], "
        "not [64, 3, 4, 4]"
    )


def test_a_recognised_file_is_held_to_its_layout(tmp_path) -> None:
    state = SMALL_GENERATORS["CycleGAN ResNet"].state_dict()
    del state["model.7.bias"]
    torch.save(state, tmp_path / "net.pth")
    assert refusal(tmp_path / "net.pth") == (
        "not the weights of a ResNet generator of CycleGAN: it misses 'model.7.bias'"
    )


def test_a_stranger_is_told_what_is_known(tmp_path) -> None:
    torch.save(LeNet().state_dict(), tmp_path / "lenet.pth")
    assert refusal(tmp_path / "lenet.pth") == (
        "no generator known here: the first key is 'c1.weight'; known are DCGAN generator, "
        "Pix2Pix U-Net, CycleGAN ResNet, StarGAN generator, SRGAN generator, BasicSR MSRResNet"
    )


def test_files_without_tensors_are_refused(tmp_path) -> None:
    save_tensors(tmp_path / "empty.safetensors", {}, {"of": "nothing"})
    assert "holds no tensors" in refusal(tmp_path / "empty.safetensors")
    torch.save({"params": {}}, tmp_path / "empty.pth")
    assert "not a state_dict" in refusal(tmp_path / "empty.pth")
    torch.save(SMALL_GENERATORS["DCGAN generator"], tmp_path / "module.pth")
    assert "holds more than tensors" in refusal(tmp_path / "module.pth")


# ---- The top of the package ----------------------------------------------------------------------


def test_the_package_stays_light() -> None:
    code = (
        "import sys, gansparse\n"
        "assert 'load_generator' in dir(gansparse)\n"
        "assert 'torch' not in sys.modules\n"
        "from gansparse import load_discriminator, load_generator\n"
        "assert load_generator.__module__ == 'gansparse.models.families'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
