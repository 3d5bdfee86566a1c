# SPDX-License-Identifier: Apache-2.0
"""Networks with their channels in another order: the same function, and more kept under 2:4."""

from __future__ import annotations

import copy

import pytest
import torch
from small_generators import GENERATORS, generator, without_dropout
from torch import nn

from gansparse import load_generator
from gansparse.errors import InputError
from gansparse.sparsity import Pruner, find_layers, measure_effects, permute_channels
from gansparse.sparsity.channels import filters_first


def output(net, inputs):
    with torch.no_grad():
        return without_dropout(copy.deepcopy(net))(*inputs)


def in_double(inputs):
    return tuple(x.double() for x in inputs)


def kept_share(pruner, layer, scores):
    """Share of a layer's scores that its mask keeps."""
    mask = filters_first(layer, pruner.masks[layer.weight]).flatten(2)
    return float((scores * mask).sum() / scores.sum())


@pytest.mark.parametrize("family", GENERATORS)
@pytest.mark.parametrize("criterion", ["magnitude", "effect"])
def test_the_same_function_of_which_more_is_kept(family, criterion):
    net = generator(family).double()
    inputs, others = (in_double(make()) for make in GENERATORS[family][1:])
    before, parameters = copy.deepcopy(net), dict(net.named_parameters())

    def effects():
        return measure_effects(net, lambda m: m(*inputs)) if criterion == "effect" else None

    report = permute_channels(net, *inputs, effects=effects(), rounds=2)
    for given in (inputs, others):
        # In another order: sums of up to a thousand numbers, through up to 30 layers.
        error = 30 * 1000 * torch.finfo(torch.float64).eps
        torch.testing.assert_close(output(net, given), output(before, given), rtol=0, atol=error)
    assert all(value is parameters[name] for name, value in net.named_parameters())
    assert any(row.after > row.before for row in report.rows)
    assert all(row.after >= row.before and row.finished for row in report.rows)
    # What the report promises is what the pruner keeps, each layer's share counting alike.
    pruner = Pruner(net, 0.5, "2:4", effects=effects())
    scores = {layer.name: pruner._magnitude(layer)[0].clone() for layer in pruner.layers}
    pruner.prune_to(0.5)
    for layer in pruner.layers:
        own = filters_first(layer, layer.weight).flatten(2)
        fours = own[:, : own.shape[1] // 4 * 4].unflatten(1, (-1, 4))
        assert ((fours != 0).sum(2) == 2).all()
        rows = [row for row in report.rows if row.layers == (layer.name,)]
        whole = sum(row.channels for row in rows) == own.shape[1]
        if len(rows) == 1 and whole:
            share = kept_share(pruner, layer, scores[layer.name])
            assert share == pytest.approx(rows[0].after, rel=1e-6)


@pytest.mark.parametrize("family", GENERATORS)
def test_files_stay_in_the_familys_layout(family, tmp_path):
    net = generator(family)
    before = copy.deepcopy(net.state_dict())
    inputs = GENERATORS[family][1]()
    permute_channels(net, *inputs, rounds=0)
    state = net.state_dict()
    assert [(k, v.shape) for k, v in state.items()] == [(k, v.shape) for k, v in before.items()]
    assert any(not torch.equal(value, before[key]) for key, value in state.items())
    path = tmp_path / "net.pth"
    torch.save(state, path)
    loaded = load_generator(path)
    assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())


def test_what_can_not_move_stays():
    """The picture's channels, what an unknown operation reads, fours that belong to no one set."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(8, 16, 1)  # reads the picture
            self.sorted = nn.Conv2d(16, 16, 1)  # what it makes is sorted, which is not followed
            self.six, self.ten = nn.Conv2d(16, 6, 1), nn.Conv2d(16, 10, 1)
            self.mixed = nn.Conv2d(16, 8, 1)  # reads six and ten: the second four is of both
            self.few = nn.Conv2d(8, 4, 1)

        def forward(self, x):
            x = self.sorted(self.first(x).relu()).sort(1).values
            return self.few(self.mixed(torch.cat([self.six(x), self.ten(x)], 1)))

    torch.manual_seed(0)
    net = Net()
    before = copy.deepcopy(net.state_dict())
    report = permute_channels(net, torch.randn(2, 8, 5, 5))
    assert [row.layers for row in report.rows] == [("sorted",), ("few",)]
    assert report.left == {
        "first": "what it reads has to stay where it is",
        "six": "what it reads has to stay where it is",
        "ten": "what it reads has to stay where it is",
        "mixed": "what it reads makes no two fours that can be exchanged",
    }
    assert torch.equal(net.sorted.bias, before["sorted.bias"])
    for name in ("six", "ten"):
        assert torch.equal(net.state_dict()[f"{name}.weight"], before[f"{name}.weight"])
    assert str(report).count("stay where it is") == 3


def test_sums_shuffles_and_the_same_tensor_twice():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 16, 1), nn.Conv2d(3, 16, 1)
            self.up = nn.Conv2d(16, 64, 3, padding=1)
            self.slopes = nn.PReLU(16, 0.2)
            self.last = nn.Conv2d(32, 4, 1)

        def forward(self, x):
            x = self.one(x) + self.two(x).tanh()
            x = self.slopes(nn.functional.pixel_shuffle(self.up(x), 2))
            return self.last(torch.cat([x, x], 1))

    torch.manual_seed(1)
    net = Net().double()
    nn.init.uniform_(net.slopes.weight, -1, 1)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    before = net(x).detach()
    state = copy.deepcopy(net.state_dict())
    report = permute_channels(net, x)
    assert {(row.layers, row.channels) for row in report.rows} == {(("up",), 16), (("last",), 16)}
    assert all(row.after > row.before for row in report.rows)
    moved = [key for key, value in net.state_dict().items() if not torch.equal(value, state[key])]
    assert len(moved) == len(state) - 1, "all but the last bias"
    torch.testing.assert_close(net(x), before, rtol=1e-12, atol=1e-12)


def test_only_layers_that_are_pruned_count():
    net = generator("cyclegan")
    inputs = GENERATORS["cyclegan"][1]()
    report = permute_channels(net, *inputs, include="model.10", rounds=0)
    names = [layer.name for layer in find_layers(net) if layer.name.startswith("model.10.")]
    assert [row.layers for row in report.rows] == [(name,) for name in names]
    with pytest.raises(InputError, match="no layer matches 'nothing'"):
        permute_channels(net, *inputs, include="nothing")


def test_a_network_that_tells_its_channels_apart_is_left_as_it_is():
    def uneven(module, given, out):  # a hook, which tracing doesn't see
        return out * torch.arange(out.shape[1], device=out.device).view(-1, 1, 1)

    torch.manual_seed(2)
    net = nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 4, 1))
    net[1].register_forward_hook(uneven)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(InputError, match="with its channels in another order, its output differs"):
        permute_channels(net, torch.randn(1, 3, 4, 4))
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_the_time_limit_is_for_all_searches():
    net = generator("stargan")
    inputs = GENERATORS["stargan"][1]()
    before = output(net, inputs)
    report = permute_channels(net, *inputs, time_limit=0.0)
    assert not any(row.finished for row in report.rows)
    assert "ended by the time limit" in str(report)
    torch.testing.assert_close(output(net, inputs), before, rtol=1e-4, atol=1e-5)
