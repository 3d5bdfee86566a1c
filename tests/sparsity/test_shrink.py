# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from small_generators import GENERATORS, generator, randomise, without_dropout
from torch import nn

from gansparse.errors import CheckpointError, InputError
from gansparse.models import load_discriminator, load_generator, shipped
from gansparse.sparsity import (
    Pruner,
    filter_channels,
    find_layers,
    load_shrunk,
    save_shrunk,
    shrink,
    shrink_report,
)
from gansparse.sparsity.shrunk import Spread

every_family = pytest.mark.parametrize("family", GENERATORS)


def filters(layer):
    """A view of the layer's weight, one row a filter."""
    return layer.weight.data.transpose(0, 1) if layer.transposed else layer.weight.data


def empty_filters(layer):
    return (filters(layer) == 0).flatten(1).all(1)


def pruned(family):
    """Half of each layer's filters gone, each layer for itself."""
    net = generator(family)
    Pruner(net, 0.5, "filter").prune_to(0.5)
    return net


def half_pruned(family):
    """The first half of all filters but the picture's gone, so that sums lose the same ones."""
    net = generator(family)
    for layer in find_layers(net):
        if len(filters(layer)) > 3:
            filters(layer)[: len(filters(layer)) // 2] = 0
    return net


def zero_channels(net, inputs):
    """As the pruner does that removes whole channels."""
    channels = filter_channels(net, *inputs)
    gone = torch.cat(
        [channels.filters[layer.name][empty_filters(layer)] for layer in find_layers(net)]
    )
    for name, ids in channels.parameters.items():
        net.get_parameter(name).data[torch.isin(ids, gone)] = 0


@torch.no_grad()
def outputs(net, inputs):
    return without_dropout(copy.deepcopy(net))(*inputs)


def doubled(inputs):
    return [x.double() if isinstance(x, torch.Tensor) else x for x in inputs]


def shrink_exactly(net, inputs, *others, **options):
    """Shrunk in float64, where only a wrong formula makes the output differ by more than 1e-10."""
    exact = copy.deepcopy(net).double()
    small = shrink(exact, *doubled(inputs), **options)
    for given in (inputs, *others):
        expected, got = outputs(exact, doubled(given)), outputs(small, doubled(given))
        assert expected.abs().max() > 0.01
        assert (expected - got).abs().max() <= 1e-10 * max(1, expected.abs().max())
    return small


@pytest.mark.parametrize(
    ("family", "spread"),
    [*[(family, True) for family in GENERATORS], ("unet", False), ("stargan", False)],
)
def test_same_output_under_the_same_keys(tmp_path, family, spread):
    net = pruned(family)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    _, inputs, others = GENERATORS[family]
    shrink_exactly(net, inputs(), others(), spread=spread)
    small = shrink(net, *inputs(), spread=spread)
    assert (outputs(net, inputs()) - outputs(small, inputs())).abs().max() <= 1e-5
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert list(small.state_dict()) == list(before)
    assert type(small) is type(net)
    report = shrink_report(net, *inputs(), spread=spread)
    parameters = sum(p.numel() for p in small.parameters())
    assert report.parameters_before == sum(p.numel() for p in net.parameters())
    assert report.parameters_after == parameters < report.parameters_before
    assert any(isinstance(m, Spread) for m in small.modules()) <= spread

    save_shrunk(small, tmp_path / "small.safetensors", of=net)
    again = [load_shrunk(tmp_path / "small.safetensors", net)]
    if family != "unet-not-live":  # being live is no part of a file
        again.append(load_shrunk(tmp_path / "small.safetensors"))
    for each in again:
        assert torch.equal(outputs(each, others()), outputs(small, others()))


@every_family
def test_nothing_stays_where_channels_are_zero_and_sums_agree(family):
    net, inputs = half_pruned(family), GENERATORS[family][1]()
    zero_channels(net, inputs)
    small = shrink_exactly(net, inputs)
    report = shrink_report(net, *inputs)
    assert not report.others
    assert [row.stay for row in report.rows] == [{}] * len(report.rows)
    for old, new in zip(find_layers(net), find_layers(small), strict=True):
        assert len(filters(new)) == len(filters(old)) - int(empty_filters(old).sum())
        assert len(filters(old)) <= 3 or len(filters(new)) == len(filters(old)) // 2


@pytest.mark.parametrize("family", ["dcgan", "stargan", "cyclegan-batch", "unet-not-live"])
def test_one_channel_stays_for_the_constants_of_each_tensor(family):
    """These read nothing but ReLUs of norms with zeros around them, and sums that agree."""
    net, inputs = half_pruned(family), GENERATORS[family][1]()
    report = shrink_report(net, *inputs)
    stay = sum(sum(row.stay.values()) for row in report.rows)
    constants = [r for row in report.rows for r in row.stay if "its constant stands for" in r]
    assert constants
    assert stay < sum(row.empty for row in report.rows) / 2
    shrink_exactly(net, inputs)


def test_counts_of_the_shipped_dcgan():
    """Half of each layer, and one channel where the ReLU leaves any constant."""
    net = load_generator(shipped("dcgan_mnist_g.safetensors"))
    Pruner(net, 0.5, "filter", exclude="main.12").prune_to(0.5)
    z = torch.randn(4, 100, generator=torch.Generator().manual_seed(0))
    small = shrink(net, z)
    widths = [layer.weight.shape[0] for layer in find_layers(small)]
    assert widths == [100, 256, 129, 65, 33]
    assert (outputs(net, (z,)) - outputs(small, (z,))).abs().max() <= 1e-5
    report = shrink_report(net, z)
    assert report.macs_before / 4 == 819_200 + 3 * 33_554_432 + 1_048_576
    assert report.macs_after < report.macs_before / 3.5


def test_live_dropout_keeps_what_it_drops():
    """A constant of which dropout drops some is none. Not live, it is one."""
    net, inputs = half_pruned("unet"), GENERATORS["unet"][1]()
    for live, widths in ((True, [32]), (False, [])):  # the one level of a dropout has 8 · ngf
        rows = shrink_report(net.live_in_eval(live), *inputs).rows
        kept = [row for row in rows if any("not constant" in reason for reason in row.stay)]
        assert [row.before[1] for row in kept] == widths
        assert all(row.spread and row.after[1] == 16 for row in kept)


def small_net(*layers, empty):
    """A network in which the named layers have lost those filters."""
    net = nn.Sequential(*layers)
    randomise(net)
    for name, indices in empty.items():
        filters(layer_of(net, name))[indices] = 0
    return net


@pytest.mark.parametrize(
    ("reader", "left"),
    [
        (nn.Conv2d(6, 3, 3), 2),
        (nn.Conv2d(6, 3, 3, padding="valid"), 2),
        (nn.Conv2d(6, 3, 3, padding=1, padding_mode="reflect"), 2),
        (nn.Conv2d(6, 3, 3, 2, 1), 3),
        (nn.Conv2d(6, 3, 3, padding="same"), 3),
        (nn.Conv2d(6, 3, 3, bias=False), 3),
        (nn.ConvTranspose2d(6, 3, 4, 2, 1), 3),
        (nn.ConvTranspose2d(6, 3, 3, 2, output_padding=1, bias=False), 3),
    ],
)
def test_constants_go_into_a_bias_or_one_channel(reader, left):
    """Of six filters four are empty; `left` of them the reader still reads."""
    net = small_net(nn.Conv2d(2, 6, 3), nn.ELU(), reader, empty={"0": [0, 2, 3, 5]})
    x = torch.randn(1, 2, 9, 9)
    small = shrink_exactly(net, (x,))
    assert small[2].in_channels == left == len(small[0].bias)


class Mixed(nn.Module):
    """What functional code does to channels: joins, shuffles, sums in place, scales."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, 1, 1)
        self.slopes = nn.PReLU(8)
        self.norm = nn.InstanceNorm2d(8, affine=True, track_running_stats=True)
        self.second = nn.Conv2d(8, 8, 3, 1, 1)
        self.third = nn.Conv2d(16, 12, 1)
        self.last = nn.Conv2d(3, 3, 3, padding=1)
        randomise(self)
        filters(layer_of(self, "first"))[:5] = 0
        filters(layer_of(self, "second"))[2:7] = 0
        filters(layer_of(self, "third"))[4:8] = 0
        self.third.bias.data[4:8] = -0.5

    def forward(self, x, scale=2.0, flip=False):
        a = self.norm(self.slopes(self.first(x)))
        if flip:
            a = a.flip(1)
        b = F.leaky_relu(self.second(F.avg_pool2d(a, 1)), 0.1)
        b += a * scale
        joined = torch.cat([a - b, torch.tanh(b)], dim=-3)
        shuffled = F.pixel_shuffle(self.third(joined), 2).relu_()
        return F.interpolate(self.last(shuffled), scale_factor=0.5)


def layer_of(net, name):
    return next(layer for layer in find_layers(net) if layer.name == name)


def test_follows_functional_code():
    """In the sums 2, 3 and 4 are constant; 0 and 1 stay, and stand for them before `second`."""
    net, x = Mixed(), torch.randn(2, 3, 8, 6)
    report = shrink_report(net, x, spread=False)
    assert {row.layer: row.after for row in report.rows} == {
        "first": (5, 3, 3, 3),
        "second": (5, 5, 3, 3),
        "third": (8, 10, 1, 1),
        "last": (3, 2, 3, 3),
    }
    rows = {row.layer: row for row in shrink_report(net, x).rows}
    assert (rows["first"].after, rows["second"].after) == ((3, 3, 3, 3), (3, 5, 3, 3))
    assert rows["first"].stay == {"not constant where third reads it": 2}
    assert rows["second"].stay == {"not constant where second reads it": 2}
    for spread in (True, False):
        small = shrink_exactly(net, (x,), spread=spread)
        assert small.slopes.num_parameters == small.norm.num_features == 5


def test_what_it_does_not_know_stays_and_is_named():
    net, inputs = Mixed(), (torch.randn(2, 3, 8, 6), 2.0, True)
    rows = {row.layer: row for row in shrink_report(net, *inputs).rows}
    assert rows["first"].stay == {"flip reads it": 5}
    assert rows["first"].after == (3, 3, 3, 3)
    shrink_exactly(net, inputs)


def test_layers_that_cannot_be_followed_stay_and_are_named():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)
            self.grouped = nn.Conv2d(4, 4, 3, padding=1, groups=2)
            self.twice = nn.Conv2d(4, 4, 3, padding=1)
            self.unused = nn.Conv2d(4, 4, 3)

        def forward(self, x):
            return self.twice(self.twice(self.grouped(self.conv(x))))

    net, x = Odd(), torch.randn(1, 3, 6, 6)
    for layer in find_layers(net):
        filters(layer)[:2] = 0
    report = shrink_report(net, x)
    assert report.others == {
        "grouped": "has groups",
        "twice": "called twice, or its weight is another's, too",
        "unused": "not called",
    }
    assert [row.stay for row in report.rows] == [{"layer grouped reads it": 2}]
    assert "has groups" in str(report)
    assert shrink_exactly(net, (x,)).conv.weight.shape == (2, 3, 3, 3)  # spread


def test_linear_layers_shrink_too():
    net = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Sigmoid(), nn.Linear(8, 2))
    randomise(net)
    net[0].weight.data[:6] = 0
    x = torch.randn(4, 5)
    small = shrink_exactly(net, (x,))
    assert (small[0].out_features, small[1].num_features, small[3].in_features) == (2, 2, 2)


class Pooled(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.first, self.call, self.last = nn.Conv2d(2, 6, 1), call, nn.Conv2d(6, 3, 1)
        randomise(self)
        filters(layer_of(self, "first"))[:4] = 0

    def forward(self, x):
        return self.last(self.call(self.first(x)))


@pytest.mark.parametrize(
    ("pool", "left"),
    [
        (nn.AvgPool2d(3, 1, 1), 6),
        (nn.AvgPool2d((1, 5), 1, (0, 2)), 6),
        (lambda x: F.avg_pool2d(x, 3, 2, padding=1), 6),
        (lambda x: F.avg_pool2d(x, kernel_size=(3, 3), padding=1), 6),
        (nn.AvgPool2d(3, 1, 1, count_include_pad=False), 2),
        (nn.AvgPool2d(2, ceil_mode=True), 2),
        (lambda x: F.avg_pool2d(x, x.shape[-1]), 2),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 7])
def test_a_small_example_does_not_tell_what_zeros_around_a_picture_do(pool, left, size):
    """Where each window reads as many of them, a constant seems to stay one."""
    net, x = Pooled(pool), torch.randn(1, 2, size, size)
    others = () if left == 2 else ((torch.randn(1, 2, 9, 8),),)
    assert shrink_exactly(net, (x,), *others).last.in_channels == left


def test_a_network_that_writes_into_its_input():
    """Both versions are compared on what was given, which stays as it is."""
    layers = nn.LeakyReLU(0.1, inplace=True), nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 3)
    net, x = small_net(*layers, empty={"1": [0, 1]}), torch.randn(1, 3, 7, 7)
    given = x.clone()
    assert shrink(net, x)[2].in_channels == 2
    assert torch.equal(x, given)


@pytest.mark.parametrize("granularity", ["element", "vector", "kernel", "2:4"])
def test_other_patterns_leave_nothing_to_shrink(granularity):
    net, inputs = generator("srgan"), GENERATORS["srgan"][1]()
    Pruner(net, 0.5, granularity, vector_size=4, exclude=["block1.0", "block5.2"]).prune_to(0.5)
    small = shrink(net, *inputs)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), small.parameters(), strict=True))
    assert "nothing to shrink: no filter is empty" in str(shrink_report(net, *inputs))


def test_pictures_without_a_batch_are_left_alone():
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3))
    net[0].weight.data[:2] = 0
    with pytest.raises(InputError, match="can't be traced: expected 4D input"):
        shrink(net, torch.randn(2, 7, 7))
    net[1] = nn.InstanceNorm2d(4, affine=True)
    report = shrink_report(net, torch.randn(2, 7, 7))
    assert report.others == dict.fromkeys("02", "its output has 3 dimensions")
    assert report.parameters_after == report.parameters_before


def test_a_layer_keeps_one_filter():
    net = small_net(nn.Conv2d(2, 4, 3, bias=False), nn.Conv2d(4, 2, 3), empty={"0": [0, 1, 2, 3]})
    x = torch.randn(1, 2, 7, 7)
    assert shrink_exactly(net, (x,))[0].weight.shape == (1, 2, 3, 3)


def test_a_shrunk_network_trains_and_shrinks_to_itself():
    net, inputs = pruned("srgan"), GENERATORS["srgan"][1]()
    net.block1[0].weight.requires_grad_(False)
    net.eval().block2.train()
    small = shrink(net, *inputs)
    assert [m.training for m in small.modules()] == [m.training for m in net.modules()]
    assert not small.block1[0].weight.requires_grad
    small.train()(*inputs).square().mean().backward()
    assert all(p.grad is not None for p in small.parameters() if p.requires_grad)
    others = shrink_report(small, *inputs).others
    assert others["block2.conv1"] == "SpreadConv2d is not torch's own"
    assert torch.equal(outputs(torch.fx.symbolic_trace(small), inputs), outputs(small, inputs))
    again = shrink(small, *inputs)
    assert torch.equal(outputs(again, inputs), outputs(small, inputs))


def test_bfloat16_stays_bfloat16():
    net, inputs = pruned("msrresnet").bfloat16(), [x.bfloat16() for x in GENERATORS["srgan"][1]()]
    small = shrink(net, *inputs)
    assert {p.dtype for p in small.parameters()} == {torch.bfloat16}
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in net.parameters())


def test_refuses_what_it_cannot_trace_or_change():
    class Branches(nn.Sequential):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else x

    class Counts(nn.Sequential):
        def forward(self, x):
            return self[1](self[0](x).view(-1, 4, 5, 5)[:, :4])

    class Scales(nn.Sequential):
        def forward(self, x):
            features = self[0](x)
            return self[1](features * features.shape[1])

    def layers():
        return nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)

    x = torch.randn(1, 3, 5, 5)
    with pytest.raises(InputError, match="Branches can't be traced: .*control flow"):
        shrink(Branches(*layers()), x)
    with pytest.raises(InputError, match="Sequential can't be called with 2 inputs"):
        shrink(nn.Sequential(*layers()), x, x)
    with pytest.raises(InputError, match="Sequential can't be traced: .*channel"):
        shrink(nn.Sequential(*layers()), x[:, :2])
    with pytest.raises(InputError, match="unet: height and width must be multiples of 64"):
        shrink(generator("unet"), x)
    net = Scales(*layers())
    net[0].weight.data[:2] = 0
    with pytest.raises(InputError, match="Scales: shrunk, its output differs by"):
        shrink(net, x)
    net = Counts(*layers())  # `view` is not followed, so nothing goes
    net[0].weight.data[:2] = 0
    assert shrink(net, x)[1].in_channels == 4


def test_files_of_shrunk_networks_refuse(tmp_path):
    net, inputs = pruned("dcgan"), GENERATORS["dcgan"][1]()
    small, path = shrink(net, *inputs), tmp_path / "small.safetensors"
    save_file(net.state_dict(), path)
    with pytest.raises(CheckpointError, match="not a file of save_shrunk"):
        load_shrunk(path)
    with pytest.raises(InputError, match=r"must end with .safetensors, got .*small.pth"):
        save_shrunk(small, path.with_suffix(".pth"), of=net)
    with pytest.raises(InputError, match="of must be what was shrunk, got a Identity"):
        save_shrunk(small, path, of=nn.Identity())
    save_shrunk(small, path, of=net)
    with pytest.raises(CheckpointError, match="shrunk network's weights; read them with load_shru"):
        load_discriminator(path)
    assert torch.equal(outputs(load_generator(path), inputs), outputs(small, inputs))
    other = GENERATORS["dcgan-28"][0]()
    with pytest.raises(CheckpointError, match=r"shrunk DCGANGenerator, which doesn't fit .*: main"):
        load_shrunk(path, other)
    unknown = shrink(nn.Sequential(nn.Conv2d(3, 3, 3)), torch.randn(1, 3, 5, 5))
    save_shrunk(unknown, path, of=unknown)
    with pytest.raises(CheckpointError, match="no public generator; pass the module"):
        load_shrunk(path)
    assert isinstance(load_shrunk(path, nn.Sequential(nn.Conv2d(3, 3, 3))), nn.Sequential)
    small.main[0].weight.data[0, 0] = torch.nan
    save_shrunk(small, path, of=net)
    with pytest.raises(CheckpointError, match="main.0.weight holds NaN"):
        load_shrunk(path)
