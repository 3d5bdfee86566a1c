# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch import nn

from gansparse.models.dcgan import DCGANGenerator
from gansparse.sparsity import Pruner, erdos_renyi_kernel, find_layers


@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.5, 0.75, 0.9, 0.99])
def test_the_ratios_sum_to_the_models(sparsity):
    layers = find_layers(DCGANGenerator(nz=20, ngf=8))
    ratios = erdos_renyi_kernel(layers, sparsity)
    sizes = {layer.name: layer.weight.numel() for layer in layers}
    pruned = sum(ratios[name] * size for name, size in sizes.items())
    assert pruned == pytest.approx(sparsity * sum(sizes.values()), rel=1e-12)
    assert all(0 <= ratio < 1 for ratio in ratios.values())


def test_what_a_layer_keeps_is_in_proportion_to_the_sum_of_its_dimensions():
    layers = find_layers(
        nn.Sequential(nn.Conv2d(32, 64, 3), nn.Conv2d(64, 128, 5), nn.Linear(9, 9))
    )
    layers = layers[:2]
    ratios = erdos_renyi_kernel(layers, 0.9)
    kept = [(1 - ratios[layer.name]) * layer.weight.numel() for layer in layers]
    assert kept[0] / kept[1] == pytest.approx((32 + 64 + 3 + 3) / (64 + 128 + 5 + 5), rel=1e-9)


def test_the_pruner_follows_them():
    torch.manual_seed(0)
    net = DCGANGenerator(nz=20, ngf=8)
    pruner = Pruner(net, 0.9, scope="erk", schedule="one-shot")
    pruner.step(0, 10)
    assert pruner.achieved_sparsity() == pytest.approx(0.9, abs=1e-3)
    ratios = erdos_renyi_kernel(find_layers(net), 0.9)
    for layer in find_layers(net):
        zeros = int((layer.weight == 0).sum())
        assert zeros == round(ratios[layer.name] * layer.weight.numel())
    assert ratios["main.12"] == 0  # the smallest layer stays whole
