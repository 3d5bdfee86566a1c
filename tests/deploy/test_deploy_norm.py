# SPDX-License-Identifier: Apache-2.0
"""The core's instance_norm, as compiled generators call it, against float64."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from gansparse.deploy.steps import Norm, activate

EPS = 1e-5


def norm(x, *, activation="none", slope=0.0, weight=None, bias=None):
    step = Norm(weight, bias, EPS, activation=activation, slope=slope, fused=[])
    step.on_cpu = True
    return step


@pytest.mark.parametrize("size", [(1, 2), (3, 5), (7, 16), (33, 61), (64, 64)])
@pytest.mark.parametrize("mean", [0.0, 3.0, 1e3])
@pytest.mark.parametrize("activation", ["none", "relu", "leaky_relu", "prelu", "tanh"])
def test_against_float64(size, mean, activation):
    torch.manual_seed(0)
    x, residual = torch.randn(2, 5, *size) + mean, torch.randn(2, 5, *size)
    weight, bias, slope = torch.randn(5), torch.randn(5), torch.rand(5)
    slope = slope if activation == "prelu" else 0.2
    made = norm(x, activation=activation, slope=slope, weight=weight, bias=bias)(x, residual)
    wide = [t.double() if isinstance(t, torch.Tensor) else t for t in (weight, bias, slope)]
    want = functional.instance_norm(x.double(), weight=wide[0], bias=wide[1], eps=EPS)
    want = activate(want + residual.double(), activation, wide[2])
    # A few roundings of x less a number near its mean, which is exact, of the scale and of sums.
    most = 16 * torch.finfo(torch.float32).eps * (1 + float(want.abs().max()))
    assert float((made - want).abs().max()) <= most


def test_constant_channels_and_large_means():
    """x less its mean is exact or 0; what mean square less squared mean loses is all there."""
    x = torch.full((1, 3, 40, 40), 1e4)
    x[0, 1] = -7.3
    x[0, 2, ::2] += 0.25  # a deviation of 0.125, the mean 8e4 times that
    made = norm(x)(x)
    assert made[0, :2].abs().max() <= 1e-2  # rounding of the mean over the root of eps
    want = functional.instance_norm(x.double(), eps=EPS)
    assert torch.allclose(made[0, 2].double(), want[0, 2], atol=1e-5)


def test_nothing_and_not_finite():
    assert norm(None)(torch.empty(0, 3, 4, 4)).shape == (0, 3, 4, 4)
    x = torch.randn(1, 2, 4, 4)
    x[0, 0, 1, 1] = float("nan")
    made = norm(x)(x)
    assert made[0, 0].isnan().all()
    assert made[0, 1].isfinite().all()
