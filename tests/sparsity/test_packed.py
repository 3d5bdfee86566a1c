# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pickle
import struct

import pytest
import torch
from safetensors.torch import save_file
from small_generators import GENERATORS, generator
from torch import nn

from gansparse.errors import CheckpointError, InputError, OutputError
from gansparse.models import (
    DCGANGenerator,
    ResNetGenerator,
    SRGANGenerator,
    StarGANGenerator,
    UNetGenerator,
    load_generator,
    shipped,
)
from gansparse.sparsity import Pruner, load_packed, save_packed


class Holder(nn.Module):
    """A module with one buffer for each tensor."""

    def __init__(self, **tensors: torch.Tensor) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)


def bits(tensor):
    """Bytes, so that NaN and -0.0 compare."""
    return tensor.reshape(-1).view(torch.uint8).tolist()


def assert_same_bits(one, other):
    for (key, a), (_, b) in zip(one.state_dict().items(), other.state_dict().items(), strict=True):
        assert a.dtype == b.dtype, key
        assert a.shape == b.shape, key
        assert bits(a) == bits(b), key


@pytest.mark.parametrize("family", GENERATORS)
@pytest.mark.parametrize("granularity", ["element", "vector", "filter"])
def test_every_family_comes_back_to_the_last_bit(tmp_path, family, granularity):
    net = generator(family)
    Pruner(net, 0.6, granularity).prune_to(0.6)
    save_packed(net, tmp_path / "net.safetensors")
    other = GENERATORS[family][0]()
    assert load_packed(tmp_path / "net.safetensors", other) is other
    assert_same_bits(net, other)
    assert_same_bits(net, load_generator(tmp_path / "net.safetensors"))


@pytest.mark.parametrize(
    ("sparsity", "dtype", "goal"),
    [
        (0.75, "float32", 0.30),
        (0.9, "float32", 0.15),
        (0.75, "float16", 0.16),
        (0.9, "float16", 0.08),
    ],
)
def test_sizes_of_the_shipped_dcgan(tmp_path, sparsity, dtype, goal):
    net = load_generator(shipped("dcgan_mnist_g.safetensors"))
    Pruner(net, sparsity).prune_to(sparsity)
    save_file(net.state_dict(), tmp_path / "dense.safetensors")
    save_packed(net, tmp_path / "packed.safetensors", dtype)
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("packed", "dense")]
    assert sizes[0] / sizes[1] <= goal


# Of the families' own shape, narrower where they would take seconds.
FAMILIES = {
    "dcgan": DCGANGenerator,
    "cyclegan": lambda: ResNetGenerator(ngf=32),
    "pix2pix": lambda: UNetGenerator(ngf=16),
    "stargan": lambda: StarGANGenerator(conv_dim=32),
    "srgan": lambda: SRGANGenerator(4),
}


@pytest.mark.parametrize(("sparsity", "goal"), [(0.75, 0.30), (0.9, 0.15)])
@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_of_every_family(tmp_path, family, sparsity, goal):
    net, path = FAMILIES[family](), tmp_path / "packed.safetensors"
    Pruner(net, sparsity, scope="layer").prune_to(sparsity)
    dense = sum(value.nbytes for value in net.state_dict().values())
    save_packed(net, path)
    packed = path.stat().st_size
    assert packed <= goal * dense
    save_packed(net, path, "float16")
    assert path.stat().st_size <= 0.68 * packed  # values of 2 bytes, their places, biases as before


def test_no_pickle_is_read(tmp_path, monkeypatch):
    net, path = generator("srgan"), tmp_path / "packed.safetensors"
    save_packed(net, path)

    def refuse(*_, **__):
        raise AssertionError("a packed file was read by pickle")

    monkeypatch.setattr(torch, "load", refuse)
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    assert_same_bits(net, load_packed(path, GENERATORS["srgan"][0]()))
    assert_same_bits(net, load_generator(path))


def test_a_dense_module_grows_by_its_index_only(tmp_path):
    net = DCGANGenerator(ngf=4)
    save_file(net.state_dict(), tmp_path / "dense.safetensors")
    save_packed(net, tmp_path / "packed.safetensors")
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("packed", "dense")]
    assert sizes[0] - sizes[1] < 300


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("zeros", [0, 1, 254, 255, 256, 509, 510, 511, 1000])
def test_gaps_of_every_length(tmp_path, dtype, zeros):
    """Runs of zeros before, between and after the values, around one byte's range."""
    run = [0.0] * zeros
    tensor = torch.tensor([*run, 1.5, *run, -2.0, *run, *[0.0] * 4000], dtype=dtype)
    path = tmp_path / "run.safetensors"
    save_packed(Holder(x=tensor.view(1, -1)), path)
    assert path.stat().st_size < tensor.nbytes / 4
    back = load_packed(path, Holder(x=torch.empty_like(tensor).view(1, -1)))
    assert bits(back.x) == bits(tensor)


def test_every_kind_of_number_and_tensor_comes_back(tmp_path):
    mostly = torch.zeros(8, 64)
    mostly[0, :6] = torch.tensor([-0.0, torch.nan, torch.inf, -torch.inf, 1e-45, 3.4e38])
    tensors = {
        "mostly": mostly,
        "nothing": torch.zeros(40, 30),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(0.0),
        "whole": torch.zeros(50, dtype=torch.int64),
        "flags": torch.zeros(50, dtype=torch.bool),
        "strided": torch.eye(40)[:12].T,
    }
    net = Holder(**tensors)
    save_packed(net, tmp_path / "x.safetensors")
    other = Holder(**{name: torch.ones_like(tensor) for name, tensor in tensors.items()})
    assert_same_bits(net, load_packed(tmp_path / "x.safetensors", other))


def test_float16_rounds_weights_and_nothing_else(tmp_path):
    net = generator("dcgan")
    Pruner(net, 0.5).prune_to(0.5)
    save_packed(net, tmp_path / "x.safetensors", "float16")
    back = load_packed(tmp_path / "x.safetensors", GENERATORS["dcgan"][0]())
    for key, value in net.state_dict().items():
        expected = value.half().float() if value.dim() > 1 else value
        assert torch.equal(back.state_dict()[key], expected), key


def test_refuses_what_float16_cannot_hold(tmp_path):
    net = nn.Linear(2, 2)
    net.weight.data[0, 0] = -70000.0
    with pytest.raises(InputError, match="weight holds 70000, more than float16's 65504"):
        save_packed(net, tmp_path / "x.safetensors", "float16")
    with pytest.raises(InputError, match="dtype must be float32 or float16, got 'int8'"):
        save_packed(net, tmp_path / "x.safetensors", "int8")
    assert not list(tmp_path.iterdir())


def test_any_changed_byte_is_refused(tmp_path):
    net = nn.Linear(64, 4)
    Pruner(net, 0.9, include="Linear").prune_to(0.9)
    path, other = tmp_path / "x.safetensors", nn.Linear(64, 4)
    save_packed(net, path)
    whole = path.read_bytes()
    assert b"weight:gaps" in whole
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(CheckpointError, match="x.safetensors: "):
            load_packed(path, other)
    for length in (0, 7, 8, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="copy it again"):
            load_packed(path, other)
    path.write_bytes(whole)
    load_packed(path, other)


def test_refuses_other_files_and_other_modules(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(CheckpointError, match="no packed file at"):
        load_packed(path, nn.Linear(2, 2))
    save_file(nn.Linear(2, 2).state_dict(), path)
    with pytest.raises(CheckpointError, match="not a whole packed file"):
        load_packed(path, nn.Linear(2, 2))
    path.write_bytes(struct.pack("<Q", 40) + b'{"__metadata__":{"gansparse":"[1]"}}    ')
    with pytest.raises(CheckpointError, match="not a whole packed file"):
        load_packed(path, nn.Linear(2, 2))

    save_packed(nn.Linear(4, 2), path)
    other = nn.Conv2d(4, 2, 1)
    before = other.weight.clone()
    wrong = "packed from Linear, which doesn't fit"
    with pytest.raises(CheckpointError, match=f"{wrong} Conv2d: weight has shape .2, 4., not "):
        load_packed(path, other)
    assert torch.equal(other.weight, before)
    with pytest.raises(CheckpointError, match=f"{wrong} Identity: the module has no 'bias'"):
        load_packed(path, nn.Identity())
    save_packed(nn.Linear(4, 2, bias=False), path)
    with pytest.raises(CheckpointError, match=f"{wrong} Linear: the file misses 'bias'"):
        load_packed(path, nn.Linear(4, 2))
    with pytest.raises(CheckpointError, match=r"no generator known here: .*load_packed\(path, mod"):
        load_generator(path)


def test_a_failed_save_leaves_the_older_file(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    save_packed(nn.Linear(4, 2), path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OutputError, match="No space left"):
        save_packed(nn.Linear(4, 2), path)
    assert [path.read_bytes()] == [x.read_bytes() for x in tmp_path.iterdir()] == [before]
