# SPDX-License-Identifier: Apache-2.0
"""InstanceNorm in compiled generators, on the CPU and as CUDA has it, against float64."""

from __future__ import annotations

import pytest
import torch
from networks import picture
from torch.nn import functional

from gansparse.deploy import cuda
from gansparse.deploy.steps import Norm, activate
from gansparse.ops import instance_norm_reference
from gansparse.testing.compare import close

EPS = 1e-5


def norm(*, activation="none", slope=0.0, weight=None, bias=None):
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
    made = norm(activation=activation, slope=slope, weight=weight, bias=bias)(x, residual)
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
    made = norm()(x)
    assert made[0, :2].abs().max() <= 1e-2  # rounding of the mean over the root of eps
    want = functional.instance_norm(x.double(), eps=EPS)
    assert torch.allclose(made[0, 2].double(), want[0, 2], atol=1e-5)


def test_the_default_dtype_does_not_matter():
    x = torch.randn(1, 3, 4, 4)
    want = norm()(x)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(norm()(x), want)
    finally:
        torch.set_default_dtype(torch.float32)


def test_nothing_and_not_finite():
    assert norm()(torch.empty(0, 3, 4, 4)).shape == (0, 3, 4, 4)
    x = torch.randn(1, 2, 4, 4)
    x[0, 0, 1, 1] = float("nan")
    made = norm()(x)
    assert made[0, 0].isnan().all()
    assert made[0, 1].isfinite().all()


@pytest.mark.parametrize("dtype", cuda.DTYPES)
@torch.no_grad()
def test_norms_keep_channels_last(dtype):
    x = picture(3, 5, 6, 7) * 2 + torch.arange(5).view(-1, 1, 1)
    x = x.to(dtype, memory_format=torch.channels_last)
    weight, bias, slope = (picture(3, 5)[i].to(dtype) for i in range(3))
    norm = Norm(weight, bias, 1e-5, activation="prelu", slope=slope, fused=["prelu"])
    y = cuda.ChannelsLastNorm(norm)(x, x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    wide = [t.double() for t in (x, weight, bias, slope)]
    normed = functional.instance_norm(wide[0], None, None, *wide[1:3])
    want = functional.prelu(normed + wide[0], wide[3])
    scale = (normed.abs() + wide[0].abs() * (1 + wide[0].mean((2, 3), keepdim=True).abs())).max()
    close(y, want, terms=16, scale=float(scale))
    plain = Norm(None, None, 1e-5, fused=[])
    assert torch.isfinite(cuda.ChannelsLastNorm(plain)(torch.full_like(x, 3.0))).all()


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("number", [False, True])
@torch.no_grad()
def test_norms_by_our_own_op(monkeypatch, affine, number):
    """What a GPU would take in 16 bits, by the op's reference."""
    monkeypatch.setattr(cuda, "has_own_norm", lambda x: True)
    monkeypatch.setattr(cuda, "instance_norm", instance_norm_reference)
    x = picture(3, 8, 6, 7).to(torch.bfloat16, memory_format=torch.channels_last)
    weight, bias, slope = (picture(3, 8)[i].bfloat16() for i in range(3))
    affines = (weight, bias) if affine else (None, None)
    norm = Norm(*affines, 1e-5, activation="prelu", slope=0.3 if number else slope, fused=[])
    y = cuda.ChannelsLastNorm(norm)(x, x)
    wide = [None if t is None else t.double() for t in affines]
    normed = functional.instance_norm(x.double(), None, None, *wide)
    slopes = torch.tensor([0.3]).double() if number else slope.double()
    want = functional.prelu(normed + x.double(), slopes)
    close(y, want, terms=4)
