# SPDX-License-Identifier: Apache-2.0
"""The moving average of the weights: its values, its statistics, its zeros."""

import copy

import torch
from torch import nn

from gansparse.compress.ema import update_ema
from gansparse.sparsity import Pruner


def filled(value: float) -> nn.Module:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    for tensor in net.state_dict().values():
        tensor.fill_(value)
    return net


def test_values_by_hand_and_the_decay_warms_up():
    average, current = filled(0.0), filled(1.0)
    wanted = 0.0
    for step, decay in enumerate([0.1, 2 / 11, 0.2, 0.2]):  # (1 + step) / (10 + step), at most 0.2
        update_ema(average, current, 0.2, step, None)
        wanted = decay * wanted + (1 - decay)
        for name, value in average.state_dict().items():
            if value.is_floating_point():
                torch.testing.assert_close(value, torch.full_like(value, wanted), msg=name)
    assert average[1].num_batches_tracked == 1, "counters are copied"
    assert all((value == 1).all() for value in current.state_dict().values())


def test_what_is_pruned_is_zero_in_the_average_at_once():
    current = nn.Sequential(nn.Conv2d(4, 4, 3))
    average = copy.deepcopy(current)
    pruner = Pruner(current, 0.5, schedule="one-shot")
    pruner.step(0, 10)
    update_ema(average, current, 0.999, 1_000_000, pruner)
    (mask,) = pruner.masks.values()
    assert (average[0].weight[~mask] == 0).all()
    assert (average[0].weight[mask] != 0).all()
