# SPDX-License-Identifier: Apache-2.0
"""What a weight does: its size, times the input it meets, over what the norm behind divides by.

Magnitudes compare weights of one filter at best. A BatchNorm or InstanceNorm behind a layer makes
the size of a whole filter mean nothing, since it divides it out again and multiplies by its own
scale; and a weight that reads a quiet channel does little whatever its size. So a weight w of
output channel o and input channel c is scored by what it adds to the normalised output:

    |w| · rms(x_c) · |γ_o| / σ_o

with x_c measured on a batch, γ and σ those of the norm that reads the layer's output (both 1 where
there is none). |w| · |γ_o| / σ_o is the weight of the network with its BatchNorms folded, and
|w| · rms(x_c) the score of Wanda (Sun et al. 2023, arXiv:2306.11695).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gansparse.sparsity.channels import NORMS
from gansparse.sparsity.layers import find_layers


@dataclass(frozen=True)
class Effect:
    """What surrounds a layer.

    Args:
        inputs: [C], the root mean square of each input channel.
        variance: [O], the variance over pixels (mean over samples) of each output channel.
        norm: the norm that reads the output; live, so that training changes the scores.
    """

    inputs: Tensor
    variance: Tensor
    norm: nn.Module | None

    def outputs(self) -> Tensor:
        """[O], what the norm makes of each output channel: |γ| / σ."""
        if self.norm is None:
            return torch.ones_like(self.variance)
        norm: Any = self.norm  # one of NORMS: a running_var and a weight, or None
        variance = self.variance if norm.running_var is None else norm.running_var
        scale: Tensor = (variance + norm.eps).rsqrt()
        return scale if norm.weight is None else scale * norm.weight.detach().abs()

    def scaled(
        self,
        magnitude: Tensor,  # [G, O / G, C / G, T], −1 where pruned
    ) -> Tensor:
        """The scores of the weights; what is pruned stays −1."""
        groups = magnitude.shape[0]
        scale = self.outputs().view(groups, -1, 1, 1) * self.inputs.view(groups, 1, -1, 1)
        return torch.where(magnitude < 0, magnitude, magnitude * scale.to(magnitude.dtype))


def measure_effects(model: nn.Module, run: Callable[[nn.Module], object]) -> dict[str, Effect]:
    """What surrounds each layer, measured in eval mode on a copy; the model is not changed.

    Args:
        model: to be pruned.
        run: calls the model that it is given, on a batch or several.

    Returns:
        by layer name; layers that ``run`` doesn't reach are missing.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
        >>> effects = measure_effects(model, lambda m: m(torch.full([8, 2, 4, 4], 3.0)))
        >>> effects["0"].inputs, effects["0"].norm is model[1]
        (tensor([3., 3.]), True)
    """
    watched = copy.deepcopy(model).eval()
    inputs: dict[str, list[Tensor]] = {}
    variances: dict[str, list[Tensor]] = {}
    readers: dict[str, str] = {}
    newest: dict[str, Tensor] = {}  # holds the output, so that its id stays its own

    def layer_hook(name: str) -> Any:
        def hook(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
            inputs.setdefault(name, []).append(_channels(module, given[0]).square().mean((0, 2)))
            pixels = _channels(module, output)
            variances.setdefault(name, []).append(pixels.var(2, unbiased=False).mean(0))
            newest[name] = output

        return hook

    def norm_hook(name: str) -> Any:
        def hook(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            for layer, output in newest.items():
                if output is given[0]:
                    readers[layer] = name

        return hook

    for layer in find_layers(watched):
        layer.module.register_forward_hook(layer_hook(layer.name))
    for name, module in watched.named_modules():
        if isinstance(module, NORMS):
            module.register_forward_pre_hook(norm_hook(name))
    with torch.no_grad():
        run(watched)
    return {
        name: Effect(
            torch.stack(inputs[name]).mean(0).sqrt(),
            torch.stack(variances[name]).mean(0),
            model.get_submodule(readers[name]) if name in readers else None,
        )
        for name in inputs
    }


def _channels(module: nn.Module, tensor: Tensor) -> Tensor:
    """[N, C, pixels], float32, of a layer's input or output."""
    tensor = tensor.detach().float()
    if isinstance(module, nn.Linear):
        return tensor.reshape(-1, tensor.shape[-1], 1)
    dims = len(module.kernel_size)  # type: ignore[arg-type]
    tensor = tensor if tensor.dim() == dims + 2 else tensor[None]
    return tensor.flatten(2)
