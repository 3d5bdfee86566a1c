# SPDX-License-Identifier: Apache-2.0
"""Exponential moving average of a generator's weights; what is pruned stays exactly zero."""

from __future__ import annotations

import torch
from torch import nn

from gansparse.sparsity import Pruner


@torch.no_grad()
def update_ema(
    average: nn.Module, current: nn.Module, decay: float, step: int, pruner: Pruner | None
) -> None:
    """One update; the decay warms up as (1 + step) / (10 + step), so early weights fade fast.

    Args:
        average: changed in place: weights and BatchNorm statistics; counters are copied.
        current: the module in training.
        decay: share of the old average that stays.
        step: counted from 0.
        pruner: masks of ``current``; the average gets the same zeros.
    """
    decay = min(decay, (1 + step) / (10 + step))
    values = current.state_dict()
    for name, mean in average.state_dict().items():
        if mean.is_floating_point():
            mean.lerp_(values[name], 1.0 - decay)
        else:
            mean.copy_(values[name])
    if pruner is not None:
        mask_average(average, pruner)


@torch.no_grad()
def mask_average(average: nn.Module, pruner: Pruner) -> None:
    """Give the average, in place, the zeros that the module in training has."""
    for name, mask in pruner.named_masks().items():
        average.get_parameter(name).mul_(mask)
