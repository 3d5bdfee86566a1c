# SPDX-License-Identifier: Apache-2.0
"""Capture and fusing: the graph computes what the network computes, and what could be is fused."""

from __future__ import annotations

import copy

import networks
import pytest
import torch
from networks import conv, picture, seeded
from small_generators import GENERATORS, generator
from torch import nn

from gansparse.deploy.capture import NotCaptured, capture
from gansparse.deploy.fuse import fuse
from gansparse.deploy.steps import Conv, Norm, kernels
from gansparse.testing.compare import close


def fused_graph(network, *inputs):
    """The fused graph, and what was fused: layer → names."""
    captured, whole = capture(network, inputs)
    assert not whole
    names = fuse(captured)
    steps = {name: captured.get_submodule(target) for target, name in names.items()}
    fused = {
        name: (step.layer.fused if isinstance(step, Conv) else step.fused)
        for name, step in steps.items()
    }
    return captured, fused, steps


def left(captured):
    """What remains as it was."""
    calls = [n for n in captured.graph.nodes if n.op.startswith("call")]
    return [n.name for n in calls if not n.name.startswith("step_")]


@torch.no_grad()
def exact(network, *inputs):
    """In float64."""
    return copy.deepcopy(network).double()(*[x.double().clone() for x in inputs])


@torch.no_grad()
def check(network, *inputs, terms=1000):
    captured, fused, steps = fused_graph(network, *inputs)
    want = exact(network, *inputs)
    close(captured(*[x.clone() for x in inputs]), want, terms=terms)
    return captured, fused, steps


@pytest.mark.parametrize("name", GENERATORS)
def test_capture_computes_the_same_bits(name):
    network, inputs = generator(name).eval(), GENERATORS[name][1]()
    captured, whole = capture(network, inputs)
    with torch.no_grad():
        torch.manual_seed(0)
        want = network(*inputs)
        torch.manual_seed(0)
        assert torch.equal(captured(*inputs), want)
    assert not whole


def test_every_layer_of_the_families_is_fused():
    shuffled = "pixel_shuffle"
    _, fused, _ = fused_graph(generator("srgan").eval(), *GENERATORS["srgan"][1]())
    assert fused["block2.conv1"] == ["batch_norm", "prelu"]
    assert fused["block2.conv2"] == ["batch_norm", "add"]
    assert fused["block5.0.conv"] == [shuffled, "prelu"]
    captured, fused, _ = fused_graph(generator("cyclegan").eval(), *GENERATORS["cyclegan"][1]())
    assert fused["model.10.conv_block.1"] == ["reflect padding"]
    assert fused["model.10.conv_block.2"] == ["relu"]
    assert fused["model.10.conv_block.6"] == ["add"]
    assert not left(captured)


def test_activations_around_a_u_nets_joins_are_fused():
    captured, fused, _ = check(generator("unet-not-live").eval(), *GENERATORS["unet-not-live"][1]())
    of_layers = list(fused.values())
    assert of_layers[0] == ["leaky_relu"]
    assert of_layers[1:4] == [["batch_norm", "leaky_relu"]] * 3
    assert of_layers[5:9] == [["batch_norm", "relu"]] * 4
    kinds = [name.rstrip("_0123456789") for name in left(captured)]
    assert sorted(kinds) == ["cat"] * 4 + ["relu"] * 4  # the skips are read before and after


def test_a_relu_of_joined_tensors_that_something_else_reads_stays():
    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = conv(), conv()

        def forward(self, x):
            both = torch.cat([self.one(x), self.two(x)], 1)
            return torch.relu(both) + both

    captured, fused, _ = check(seeded(Joined()), picture())
    assert not any(fused.values())
    assert [name for name in left(captured)] == ["cat", "relu", "add"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("TwoReaders", {"first": [], "second": ["add"]}),
        (
            "TwoReadersOfASum",
            {"first": ["add"], "second": ["add", "leaky_relu"], "third": []},
        ),
        ("InPlace", {"first": ["leaky_relu"], "second": []}),
        ("WrittenBetween", {"first": [], "second": ["add"]}),
        ("Shared", {"layer": ["tanh"], "layer #2": []}),
    ],
)
def test_what_is_read_twice_is_not_fused(name, expected):
    network = seeded(getattr(networks, name)())
    assert check(network, picture())[1] == expected


def test_batchnorm_is_folded_into_the_convolution_before_it():
    for layer in (conv(3, 6), nn.ConvTranspose2d(3, 6, 4, 2, 1, bias=False)):
        network = seeded(nn.Sequential(layer, nn.BatchNorm2d(6), nn.PReLU(6)))
        captured, fused, _ = check(network, picture(), terms=200)
        assert fused == {"0": ["batch_norm", "prelu"]}
        assert not left(captured)


def test_batchnorm_is_folded_with_groups():
    for layer in (
        nn.Conv2d(4, 6, 3, groups=2),
        nn.ConvTranspose2d(4, 6, 3, groups=2),
    ):
        network = seeded(nn.Sequential(layer, nn.BatchNorm2d(6)))
        assert check(network, picture(2, 4, 8, 9), terms=200)[1] == {"0": ["batch_norm"]}


@pytest.mark.parametrize(("mode", "folded"), [("zeros", False), ("reflect", True)])
def test_batchnorm_before_a_convolution_is_folded_where_no_zeros_are_padded(mode, folded):
    captured, fused, _ = check(seeded(networks.NormFirst(mode)), picture(), terms=200)
    padding = ["reflect padding"] if mode == "reflect" else []
    if mode == "reflect":  # padding stands between them, and norms come first
        assert left(captured) == []
    assert fused == {"layer": [*padding, *["batch_norm"] * folded]}


@pytest.mark.parametrize("padding", [nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d])
def test_padding_modules_are_fused(padding):
    network = seeded(nn.Sequential(padding((2, 2, 1, 1)), nn.Conv2d(3, 4, 3), nn.Tanh()))
    captured, fused, _ = check(network, picture(), terms=200)
    assert len(fused["1"]) == 2
    assert not left(captured)


@pytest.mark.parametrize(
    "padding", [nn.ZeroPad2d((1, 0, 0, 1)), nn.ConstantPad2d(1, 0.5), nn.CircularPad2d(1)]
)
def test_other_paddings_stay(padding):
    network = seeded(nn.Sequential(padding, nn.Conv2d(3, 4, 3)))
    captured, fused, _ = check(network, picture(), terms=200)
    assert fused == {"1": []}
    assert left(captured) == ["pad"]


def test_reflection_before_a_padded_convolution_stays():
    network = seeded(nn.Sequential(nn.ReflectionPad2d(1), conv()))
    assert check(network, picture(), terms=200)[1] == {"1": []}


@pytest.mark.parametrize(
    "norm",
    [
        nn.InstanceNorm2d(6),
        nn.InstanceNorm2d(6, affine=True),
        nn.InstanceNorm2d(6, affine=True, track_running_stats=True),
    ],
)
def test_both_kinds_of_instancenorm(norm):
    network = seeded(nn.Sequential(conv(3, 6), norm, nn.LeakyReLU(0.2)))
    _, fused, steps = check(network, picture(), terms=4000)
    if norm.track_running_stats:
        assert fused == {"0": ["instance_norm", "leaky_relu"]}
    else:
        assert fused == {"0": [], "1": ["leaky_relu"]}
        assert isinstance(steps["1"], Norm)


def test_live_batchnorm_of_one_picture_is_an_instancenorm():
    network, inputs = generator("unet").eval(), (picture(1, 3, 64, 64),)
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    captured, _, steps = check(network, *inputs, terms=4000)
    assert sum(isinstance(step, Norm) for step in steps.values()) == 9
    assert not [name for name in left(captured) if "norm" in name]


def test_functions_and_computed_weights():
    captured, fused, steps = check(seeded(networks.Functional()), picture(), terms=200)
    assert [list(names) for names in fused.values()] == [["zeros padding", "relu"]]
    assert all(isinstance(step, Conv) for step in steps.values())
    assert not [name for name in left(captured) if "mul" in name]


def test_same_and_valid_padding():
    for padding in ("same", "valid"):
        network = seeded(nn.Conv2d(3, 4, (3, 5), padding=padding, dilation=2))
        assert check(network, picture(1, 3, 12, 14), terms=200)[1]


def test_slopes_of_channels_stay_behind_a_shuffle():
    one = seeded(nn.Sequential(conv(3, 12), nn.PReLU(), nn.PixelShuffle(2)))
    assert check(one, picture(), terms=200)[1] == {"0": ["prelu", "pixel_shuffle"]}
    each = seeded(nn.Sequential(conv(3, 12), nn.PReLU(12), nn.PixelShuffle(2)))
    assert check(each, picture(), terms=200)[1] == {"0": ["prelu"]}


KINDS = {
    "conv": nn.Conv2d(5, 16, 3, 2, 1),
    "reflect": nn.Conv2d(5, 16, 3, padding=1, padding_mode="reflect"),
    "no bias": nn.Conv2d(5, 16, 5, padding=2, bias=False),
    "transposed": nn.ConvTranspose2d(5, 16, 4, 2, 1),
    "output padding": nn.ConvTranspose2d(5, 16, 3, 2, 1, output_padding=1),
    "3 x 3": nn.Conv2d(5, 16, 3, padding=1),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tail", ["prelu", "shuffle", "shuffle each"])
@torch.no_grad()
def test_every_kernel_computes_the_layer(kind, tail):
    after = {
        "prelu": [nn.PReLU(16)],
        "shuffle": [nn.PixelShuffle(2), nn.LeakyReLU(0.3)],
        "shuffle each": [nn.PixelShuffle(2), nn.PReLU(4)],
    }[tail]
    network = seeded(nn.Sequential(KINDS[kind], *after))
    weight = network[0].weight
    filters = weight.transpose(0, 1) if isinstance(network[0], nn.ConvTranspose2d) else weight
    filters[4:8] = 0  # dense kernels leave these out
    x = picture(2, 5, 8, 10)
    _, _, steps = fused_graph(network, x)
    want = exact(network, x)
    ways = kernels(steps["0"].layer, tuple(x.shape))
    assert {"torch", "torch channels_last", "sparse"} <= ways.keys()
    for name, way in ways.items():
        step = way.make()
        for given in (x, x.contiguous(memory_format=torch.channels_last)):
            close(step(given), want, terms=200, name=name)


@pytest.mark.parametrize("biased", [True, False])
@torch.no_grad()
def test_single_pixels_are_a_matrix_product(biased):
    network = seeded(
        nn.Sequential(nn.ConvTranspose2d(5, 16, 4, 1, 0, bias=biased), nn.PReLU(16)), zeros=0
    )
    x = picture(3, 5, 1, 1)
    _, _, steps = fused_graph(network, x)
    ways = kernels(steps["0"].layer, tuple(x.shape))
    close(ways["matrix"].make()(x), exact(network, x), terms=200)
    assert "matrix" not in kernels(steps["0"].layer, (3, 5, 1, 2))


@torch.no_grad()
def test_filters_that_share_a_pattern_are_found():
    layer = nn.Conv2d(8, 32, 3, padding=1)
    mask = (torch.rand(4, 8, 3, 3) > 0.7).repeat_interleave(8, 0)
    layer.weight *= mask
    network, x = seeded(nn.Sequential(layer), zeros=0), picture(1, 8, 8, 8)
    network[0].weight *= mask
    _, _, steps = fused_graph(network, x)
    ways = kernels(steps["0"].layer, tuple(x.shape))
    assert {name for name in ways if name.startswith("sparse")} == {
        "sparse vector-8",
        "sparse vector-4",
    }
    for way in ways.values():
        close(way.make()(x), exact(network, x), terms=200)


@pytest.mark.parametrize(
    ("out", "zeros", "offered"),
    [(16, 432, True), (16, 433, False), (9, 200, True), (8, 180, False)],  # 432 are 60 %
)
@torch.no_grad()
def test_sixteen_filters_may_share_what_any_of_them_has(out, zeros, offered):
    """Of single weights, up to 60 % zeros: as good as dense, and as fast on small pictures."""
    network, x = seeded(nn.Sequential(conv(5, out)), zeros=0), picture(1, 5, 4, 4)
    gone = torch.randperm(45 * out, generator=torch.Generator().manual_seed(0))[:zeros]
    network[0].weight.view(-1)[gone] = 0
    _, _, steps = fused_graph(network, x)
    ways = kernels(steps["0"].layer, tuple(x.shape))
    assert {name for name in ways if name.startswith("sparse")} == {
        "sparse",
        *["sparse vector-16"] * offered,
    }
    if offered:
        made = ways["sparse vector-16"].make()
        assert made.conv.packed.geometry.vector == 16
        close(made(x), exact(network, x), terms=200)


@torch.no_grad()
def test_what_cant_be_captured_stays_whole():
    network, x = seeded(networks.Around(networks.Branch())), picture()
    captured, whole = capture(network, (x,))
    assert list(whole) == ["inner"]
    assert "DataDependent" in whole["inner"]
    for sign in (1, -1):
        assert torch.equal(captured(sign * x), network(sign * x))


def test_says_why_nothing_can_be_captured():
    for network, reason in (
        (networks.Branch(), "DataDependent"),
        (networks.WritesIntoViews(), "written over"),
    ):
        with pytest.raises(NotCaptured, match=reason):
            capture(network, (picture(),))


def test_a_norm_that_learns_stays_whole():
    whole = capture(nn.Sequential(conv(), nn.BatchNorm2d(3)).train(), (picture(),))[1]
    assert list(whole) == ["1"]


def test_capture_changes_nothing():
    network = seeded(networks.InPlace())
    before, x = copy.deepcopy(network.state_dict()), picture()
    capture(network, (x,))
    assert torch.equal(x, picture())
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key])
    assert "forward" not in vars(network.first)
