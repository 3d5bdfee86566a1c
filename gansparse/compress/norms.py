# SPDX-License-Identifier: Apache-2.0
"""BatchNorm in a network whose weights are changing: freeze its statistics, or take them anew."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def batch_norms(module: nn.Module) -> list[_BatchNorm]:
    """Every BatchNorm in the module that keeps running statistics."""
    return [
        layer
        for layer in module.modules()
        if isinstance(layer, _BatchNorm) and layer.track_running_stats
    ]


def freeze_norms(module: nn.Module) -> None:
    """BatchNorms use their running statistics; their scales and offsets go on learning."""
    for layer in batch_norms(module):
        layer.eval()


def recalibrate(module: nn.Module, run: Callable[[nn.Module], None]) -> None:
    """Replaces running statistics by the plain average over the batches that ``run`` feeds.

    Pruning and weight averaging move activations away from statistics gathered on the way.

    Args:
        module: left in the mode it had.
        run: feeds batches through the module, which is in training mode meanwhile.
    """
    layers = batch_norms(module)
    momenta = [layer.momentum for layer in layers]
    training = module.training
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # cumulative average
    module.train()
    try:
        if layers:
            run(module)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        module.train(training)
