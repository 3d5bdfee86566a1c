# SPDX-License-Identifier: Apache-2.0
"""BatchNorm in a network whose weights are changing: freeze its statistics, or take them anew.

And InstanceNorm's gradient put right.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm


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


def put_gradients_right(module: nn.Module) -> None:
    """Lets no InstanceNorm get its gradient in channels_last.

    Of a batch of one picture, torch 2.13.0 on the CPU takes such a gradient's numbers in their
    order in memory, so that what it gives back is wrong altogether, silently. A convolution in
    channels_last gives just that.

    Args:
        module: gets a hook on each InstanceNorm; `leave_gradients` takes them away.
    """
    leave_gradients(module)
    for part in module.modules():
        if isinstance(part, _InstanceNorm):
            part.register_forward_hook(_with_contiguous_gradient)


def leave_gradients(module: nn.Module) -> None:
    """Undo `put_gradients_right`."""
    for part in module.modules():
        for key, hook in list(part._forward_hooks.items()):
            if hook is _with_contiguous_gradient:
                del part._forward_hooks[key]


def _with_contiguous_gradient(module: nn.Module, given: Any, made: Tensor) -> None:
    if made.requires_grad:
        made.register_hook(Tensor.contiguous)  # type: ignore[no-untyped-call]
