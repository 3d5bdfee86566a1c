# SPDX-License-Identifier: Apache-2.0
"""Weights of few levels, fitted by expectation maximisation: technique m (QGAN, Wang et al. 2019).

A layer's weights are replaced by alpha * z + beta with whole z in 0 .. 2^bits - 1. The E step gives
each weight its nearest level; the M step is the least-squares line through (z, weight). Training
goes on in full precision underneath: the gradient passes straight through the rounding.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.utils import parametrize

from gansparse.compress.config import MOST_BITS
from gansparse.errors import InputError
from gansparse.sparsity.layers import Layer

_FIRST_ROUNDS, _ROUNDS = 20, 1  # of EM: when it starts, and at each step of training


class EMQuantizer(nn.Module):
    """A parametrization: full-precision weight -> weight of 2^bits levels, fitted while training.

    Args:
        weight: any shape; the levels start from its range.
        bits: of one weight, 1 to 16.

    Example:
        >>> weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
        >>> quantized = EMQuantizer(weight, bits=2)(weight)
        >>> quantized.unique().numel()
        4
    """

    def __init__(self, weight: torch.Tensor, bits: int) -> None:
        super().__init__()
        if not 1 <= bits <= MOST_BITS:
            raise InputError(f"bits must be 1..{MOST_BITS}, got {bits}")
        self.top = 2**bits - 1
        low, high = weight.detach().double().aminmax()
        self.register_buffer("alpha", (high - low) / self.top)
        self.register_buffer("beta", low.clone())
        self.alpha: torch.Tensor  # [], float64
        self.beta: torch.Tensor  # [], float64
        self.fit(weight, _FIRST_ROUNDS)

    @torch.no_grad()
    def fit(self, weight: torch.Tensor, rounds: int) -> None:
        """``rounds`` E and M steps from the present levels."""
        values = weight.double()
        for _ in range(rounds):
            z = self._nearest(values)
            spread = z - z.mean()
            variance = spread.square().sum()
            if variance == 0:  # all weights at one level: no line through one point
                return
            self.alpha.copy_((spread * values).sum() / variance)
            self.beta.copy_(values.mean() - self.alpha * z.mean())

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight at its nearest levels; its gradient is the full-precision weight's."""
        if self.training:
            self.fit(weight, _ROUNDS)
        quantized = (self._nearest(weight.double()) * self.alpha + self.beta).to(weight.dtype)
        return quantized.detach() + (weight - weight.detach())  # the levels to the last bit

    def _nearest(self, values: torch.Tensor) -> torch.Tensor:
        """Whole numbers 0..top, float64."""
        if self.alpha == 0:
            return torch.zeros_like(values)
        return ((values - self.beta) / self.alpha).round_().clamp_(0, self.top)


def quantize(layers: Iterable[Layer], bits: int) -> None:
    """The layers' weights take 2^bits levels each from now on, in place."""
    for layer in layers:
        quantizer = EMQuantizer(layer.weight, bits)
        parametrize.register_parametrization(layer.module, "weight", quantizer)


def plain(module: nn.Module) -> nn.Module:
    """The module with ordinary weights at their levels, in place; the keys it had before."""
    for layer in module.modules():
        if parametrize.is_parametrized(layer, "weight"):
            layer.eval()
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    return module
