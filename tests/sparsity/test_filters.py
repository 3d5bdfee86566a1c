# SPDX-License-Identifier: Apache-2.0
"""Whole channels: what goes together, and that a network pruned so really becomes smaller."""

from __future__ import annotations

import pytest
import torch
from small_generators import GENERATORS, generator, without_dropout
from torch import nn

from gansparse.errors import InputError
from gansparse.optim import MaskedAdam
from gansparse.sparsity import (
    FilterChannels,
    Pruner,
    check_masked,
    filter_channels,
    find_layers,
    shrink,
    shrink_report,
)


def pruner_of(net, inputs, sparsity=0.5, **options):
    return Pruner(net, sparsity, "filter", channels=filter_channels(net, *inputs), **options)


@pytest.mark.parametrize("scope", ["layer", "erk", "global"])
@pytest.mark.parametrize("family", GENERATORS)
def test_pruned_channels_vanish_through_training(family, scope):
    """After steps of Adam no channel of a removed filter is left, and none stays in the sums."""
    net, inputs = generator(family), GENERATORS[family][1]()
    pruner = pruner_of(net, inputs, scope=scope)
    optimizer = MaskedAdam(net.parameters(), lr=1e-2, masks=pruner.masks)
    for sparsity in (0.3, 0.5):
        pruner.prune_to({name: sparsity / 0.5 * each for name, each in pruner.targets.items()})
        optimizer.set_masks(pruner.masks)
        net.train()(*inputs).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    check_masked(net, pruner.masks)
    without_dropout(net)
    report = shrink_report(net, *inputs)
    assert [row.stay for row in report.rows] == [{}] * len(report.rows)
    assert report.parameters_after < 0.5 * report.parameters_before
    with torch.no_grad():
        whole, small = net(*inputs), shrink(net, *inputs)(*inputs)
    assert (whole - small).abs().max() <= 1e-5 * max(1, whole.abs().max())
    assert len(pruner.layers) == len(find_layers(net)) - 1, "the picture's layer stays whole"


def test_what_is_added_up_or_shuffled_goes_together():
    net, inputs = generator("srgan"), GENERATORS["srgan"][1]()
    channels = filter_channels(net, *inputs)
    summed = ["block1.0", "block2.conv2", "block3.conv2", "block4.0"]
    assert len({tuple(channels.filters[name].tolist()) for name in summed}) == 1
    assert set(channels.filters["block2.conv1"].tolist()).isdisjoint(
        channels.filters["block1.0"].tolist()
    )
    shuffled = channels.filters["block5.0.conv"].view(-1, 4)
    assert torch.equal(shuffled, shuffled[:, :1].expand_as(shuffled))
    assert channels.outputs == ("block5.2",)
    assert torch.equal(channels.parameters["block2.bn2.weight"], channels.filters["block1.0"])
    assert (channels.parameters["block5.2.bias"] == -1).all()
    assert "block2.prelu.weight" not in channels.parameters

    pruner = pruner_of(net, inputs, {"block1.0": 0.25, "block*.conv2": 0.75, "block5.0": 0.5})
    sizes = {layer.name: layer.weight.numel() for layer in pruner.layers}
    mean = (0.25 * sizes["block1.0"] + 0.75 * 2 * sizes["block2.conv2"]) / (
        sizes["block1.0"] + 2 * sizes["block2.conv2"]
    )
    assert [pruner.targets[name] for name in summed[:3]] == pytest.approx([mean] * 3)
    assert pruner.targets["block5.0.conv"] == 0.5
    # block4.0 is added to them and not pruned: no channel of theirs vanishes, so no norm is masked
    assert set(pruner.named_masks()) == {f"{name}.weight" for name in sizes} | {
        "block5.0.conv.bias"
    }


def test_the_channel_whose_filters_are_least_goes():
    """By hand: [1, 4, 2, 3] over its mean 2.5, and [9, 1, 1, 1] over its mean 3."""

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = (nn.Conv2d(2, 4, 1) for _ in range(2))
            self.last = nn.Conv2d(4, 2, 1)

        def forward(self, x):
            return self.last(self.a(x) + self.b(x))

    net = Sum()
    for layer, sizes in ((net.a, [1.0, 4, 2, 3]), (net.b, [9.0, 1, 1, 1])):
        layer.weight.data[:] = torch.tensor(sizes).view(4, 1, 1, 1)
    pruner = pruner_of(net, (torch.randn(1, 2, 3, 3),), scope="global")
    # 16 weights of a and b; a channel has 4
    assert pruner.prune_to(0.25)
    assert pruner.masks[net.a.bias].tolist() == [True, True, False, True]
    assert pruner.prune_to(0.5)
    for parameter in (net.a.weight, net.b.weight, net.a.bias, net.b.bias):
        kept = pruner.masks[parameter].view(4, -1).all(1)
        assert kept.tolist() == [True, True, False, False]
        assert (parameter[~kept] == 0).all()
    assert not pruner.prune_to(0.5), "nothing changes, nothing comes back"
    pruner.prune_to(0.99)
    assert pruner.masks[net.a.bias].sum() == 1, "a layer's best channel stays"


def test_a_resumed_pruner_goes_on_alike():
    inputs = GENERATORS["stargan"][1]()
    nets = [generator("stargan") for _ in range(2)]
    first, second = (pruner_of(net, inputs, 0.6) for net in nets)
    first.prune_to(0.3)
    nets[1].load_state_dict(nets[0].state_dict())
    second.load_state_dict(first.state_dict())
    for each in (first, second):
        each.prune_to(0.6)
    assert first.state_dict().keys() == second.state_dict().keys()
    for key, mask in first.state_dict().items():
        assert torch.equal(mask, second.state_dict()[key])
    assert "main.1.bias" in first.state_dict()
    assert first.achieved_sparsity() == pytest.approx(0.6, abs=0.1)


def test_two_generators_are_numbered_apart():
    nets = nn.ModuleDict({"a": generator("stargan"), "b": generator("stargan")})
    inputs = GENERATORS["stargan"][1]()
    parts = {name: filter_channels(net, *inputs) for name, net in nets.items()}
    both = FilterChannels.joined(parts)
    assert set(both.filters["a.main.0"].tolist()).isdisjoint(both.filters["b.main.0"].tolist())
    assert both.outputs == ("a.main.17", "b.main.17")
    pruner = Pruner(nets, 0.5, "filter", channels=both)
    nets["a"].main[0].weight.data[0] *= 1e-3
    pruner.prune_to(0.5)
    assert (nets["a"].main[0].weight[0] == 0).all()
    check_masked(nets, pruner.masks)


def test_grouped_layers_are_pruned_for_themselves():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.Conv2d(8, 8, 3, groups=2),
        nn.ConvTranspose2d(8, 4, 3, groups=2),
        nn.Conv2d(4, 3, 3),
    )
    pruner = pruner_of(net, (torch.randn(1, 3, 9, 9),))
    pruner.prune_to(0.5)
    assert [layer.name for layer in pruner.layers] == ["0", "1", "2"]
    empty = [int((net[i].weight == 0).flatten(1).all(1).sum()) for i in (0, 1)]
    assert empty == [4, 4]
    assert all((net[i].bias != 0).all() for i in range(4)), "no channel here is known to vanish"


def test_other_granularities_refuse_channels():
    net, inputs = generator("dcgan"), GENERATORS["dcgan"][1]()
    with pytest.raises(InputError, match="at granularity filter only, got 'element'"):
        Pruner(net, 0.5, channels=filter_channels(net, *inputs))
