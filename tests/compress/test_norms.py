# SPDX-License-Identifier: Apache-2.0
"""BatchNorm's statistics: frozen, and taken anew."""

import copy

import pytest
import torch
from torch import nn

from gansparse.compress.norms import freeze_norms, leave_gradients, recalibrate
from gansparse.compress.start import place
from gansparse.models import PatchGANDiscriminator, ResNetGenerator


def batches(count: int) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [3 + 2 * torch.randn(8, 2, 5, 5, generator=rng) for _ in range(count)]


def test_frozen_norms_keep_their_statistics_and_learn_on():
    net = nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 1, 3)).train()
    freeze_norms(net)
    net(batches(1)[0]).sum().backward()
    assert net.training
    assert net[0].running_mean.tolist() == [0, 0]
    assert net[0].num_batches_tracked == 0
    assert net[0].bias.grad.abs().sum() > 0


def test_recalibration_is_the_plain_mean_over_the_batches():
    net = nn.Sequential(nn.BatchNorm2d(2, momentum=0.3)).eval()
    net[0].running_mean.fill_(99.0)
    given = batches(4)

    def run(module):
        assert module.training
        for batch in given:
            module(batch)

    recalibrate(net, run)
    means = torch.stack([batch.mean(dim=(0, 2, 3)) for batch in given]).mean(0)
    variances = torch.stack([batch.var(dim=(0, 2, 3)) for batch in given]).mean(0)
    torch.testing.assert_close(net[0].running_mean, means)
    torch.testing.assert_close(net[0].running_var, variances)
    assert not net.training
    assert net[0].momentum == 0.3


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("kind", ["generator", "discriminator"])
def test_gradients_of_a_placed_network_are_those_of_the_network(kind, batch):
    """In float64, where the two differ by nothing but the order of sums."""
    torch.manual_seed(0)
    if kind == "generator":
        net = ResNetGenerator(3, 3, 4, num_blocks=1).double()
    else:
        net = PatchGANDiscriminator(3, 4, norm="instance").double()
    x = torch.randn(batch, 3, 32, 32, dtype=torch.float64)
    placed = place(copy.deepcopy(net), torch.device("cpu"))
    for each in (net.train(), placed):
        made = each(x)
        (
            made * torch.linspace(-1, 1, made.numel(), dtype=made.dtype).view_as(made)
        ).sum().backward()
    for own, other in zip(net.parameters(), placed.parameters(), strict=True):
        torch.testing.assert_close(other.grad, own.grad, rtol=1e-8, atol=1e-10)
    leave_gradients(placed)
    assert not any(part._forward_hooks for part in placed.modules())
