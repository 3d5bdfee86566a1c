# SPDX-License-Identifier: Apache-2.0
"""Exported generators give the generator's output in the runtime that reads them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from gansparse.deploy import compile
from gansparse.errors import InputError
from gansparse.export import to_onnx, to_torch_export
from gansparse.models import ResNetGenerator, SRGANGenerator, StarGANGenerator, UNetGenerator
from gansparse.sparsity import Pruner, filter_channels, shrink

sys.path.insert(0, str(Path(__file__).parent / "sparsity"))

from small_generators import GENERATORS, generator, randomise, without_dropout

# What is alike is there once: capture and exporter take their time for each layer.
SHORT = {
    "unet": lambda: UNetGenerator(ngf=4, num_downs=5),
    "cyclegan": lambda: ResNetGenerator(ngf=4, num_blocks=1),
    "stargan": lambda: StarGANGenerator(conv_dim=4, repeat_num=1),
    "srgan": lambda: SRGANGenerator(4, 8, 1),
}


def pruned_and_shrunk(family):
    """Half of the filters gone, and of what is left half of the weights."""
    net, inputs = SHORT.get(family, GENERATORS[family][0])(), GENERATORS[family][1]()
    randomise(net)
    Pruner(net, 0.5, "filter", channels=filter_channels(net, *inputs)).prune_to(0.5)
    small = shrink(net, *inputs)
    Pruner(small, 0.5).prune_to(0.5)
    return small


def one_of_each(family):
    """An example of batch 1."""
    return tuple(x[:1] for x in GENERATORS[family][1]())


@torch.no_grad()
def expected(net, inputs):
    return without_dropout(net)(*inputs)


@pytest.mark.parametrize("family", ["dcgan", "unet-instance", "cyclegan", "stargan", "srgan"])
def test_onnx_runtime_gives_the_same(tmp_path, family):
    onnxruntime = pytest.importorskip("onnxruntime", reason="lacks onnxruntime")
    pytest.importorskip("onnxscript", reason="lacks onnxscript")
    net, path = pruned_and_shrunk(family), tmp_path / "g.onnx"
    training = [module.training for module in net.modules()]
    made = to_onnx(net, one_of_each(family), path)
    assert [module.training for module in net.modules()] == training
    assert made.size == path.stat().st_size
    assert made.difference < 1e-5
    for shape in made.inputs.values():
        free = ("batch", "height", "width") if len(shape) == 4 and family != "dcgan" else ("batch",)
        assert tuple(size for size in shape if isinstance(size, str)) == free
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert {x.name: tuple(x.shape) for x in session.get_inputs()} == made.inputs
    assert session.get_outputs()[0].shape[0] == "batch"
    inputs = GENERATORS[family][2 if family != "dcgan" else 1]()  # another batch and size
    given = {name: x.numpy() for name, x in zip(made.inputs, inputs, strict=True)}
    got = torch.from_numpy(session.run(None, given)[0])
    torch.testing.assert_close(got, expected(net, inputs), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["dcgan-28", "stargan", "unet"])  # ONNX starts from the same
def test_torch_export_gives_the_same(tmp_path, family):
    net, path = pruned_and_shrunk(family), tmp_path / "g.pt2"
    made = to_torch_export(net, one_of_each(family), path)
    assert made.difference < 1e-6
    program = torch.export.load(path).module()
    inputs = GENERATORS[family][2]()
    with torch.no_grad():
        torch.testing.assert_close(program(*inputs), expected(net, inputs), rtol=0, atol=1e-6)


def test_sizes_that_the_network_fixes_stay_fixed(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(2 * 6 * 6, 4))
    made = to_torch_export(net, torch.randn(1, 3, 8, 8), tmp_path / "g.pt2")
    assert made.inputs == {"input": ("batch", 3, 8, 8)}
    assert "batch×3×8×8" in str(made)
    # with its bottleneck of one pixel the U-Net's own size is another case than all larger ones
    unet, inputs = generator("unet-not-live"), GENERATORS["unet-not-live"][1]()
    made = to_torch_export(unet, inputs, tmp_path / "unet.pt2")
    assert made.inputs == {"images": ("batch", 3, 32, 32)}


def test_what_cannot_be_exported_is_one_line(tmp_path):
    class Branches(nn.Module):
        def forward(self, x):
            return x * 2 if x.sum() > 0 else x

    class Counts(nn.Module):
        calls = 0

        def forward(self, x):
            Counts.calls += 1
            return x + (Counts.calls > 2)  # it is looked at, captured, then compared

    path = tmp_path / "g.pt2"
    for net, message in ((Branches(), "Branches can't be exported: "), (Counts(), "differs by 1")):
        with pytest.raises(InputError, match=message) as caught:
            to_torch_export(net, torch.ones(1, 3, 8, 8), path)
        assert "\n" not in str(caught.value)
        assert not path.exists()


class PadsToFour(nn.Module):
    """To a multiple of 4, and back: the common wrapper of a U-Net."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.ConvTranspose2d(4, 3, 4, 4))

    def forward(self, x):
        high, wide = x.shape[2:]
        more_high, more_wide = -high % 4, -wide % 4
        if more_high or more_wide:
            x = torch.nn.functional.pad(x, (0, more_wide, 0, more_high), "reflect")
        return self.net(x)[:, :, :high, :wide]


def test_a_file_does_not_claim_sizes_that_it_gets_wrong(tmp_path):
    """A branch on the size is frozen by the capture: then the size is, too."""
    pytest.importorskip("onnxruntime")
    made = to_onnx(PadsToFour(), torch.randn(1, 3, 32, 32), tmp_path / "g.onnx")
    assert made.inputs == {"x": ("batch", 3, 32, 32)}
    assert made.difference < 1e-5


class TwoSizes(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x, style):
        return self.conv(x) + style.mean((2, 3), keepdim=True)


def test_two_inputs_of_different_sizes(tmp_path):
    pytest.importorskip("onnxruntime")
    inputs = (torch.randn(1, 3, 16, 16), torch.randn(1, 1, 8, 8))
    assert to_onnx(TwoSizes(), inputs, tmp_path / "g.onnx").difference < 1e-5


class Two(nn.Module):
    def forward(self, x):
        return x, x


def test_what_gives_no_picture_is_refused(tmp_path):
    for export in (to_onnx, to_torch_export):
        with pytest.raises(InputError, match="Two gives tuple: export a module"):
            export(Two(), torch.randn(1, 3, 8, 8), tmp_path / "g")
        with pytest.raises(InputError, match=r"gives torch\.int64"):
            export(nn.Flatten(), torch.ones(1, 3, dtype=torch.int64), tmp_path / "g")


def test_a_compiled_generator_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("GANSPARSE_CACHE", str(tmp_path))
    x, path = torch.randn(1, 3, 8, 8), tmp_path / "g"
    fast = compile(nn.Sequential(nn.Conv2d(3, 3, 3)), x)
    for export in (to_onnx, to_torch_export):
        with pytest.raises(InputError, match=r"give the generator that it was made of"):
            export(fast, x, path)
    assert not path.exists()


def test_without_the_exporter_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(InputError, match=r"pip install 'gansparse\[export\]'"):
        to_onnx(nn.Conv2d(3, 3, 3), torch.randn(1, 3, 8, 8), tmp_path / "g.onnx")
