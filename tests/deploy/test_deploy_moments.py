# SPDX-License-Identifier: Apache-2.0
"""Norms that take their convolution's moments. The CPU stands for a GPU, references for kernels."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from networks import conv, picture, seeded
from on_cuda import Clock, assert_near, inputs, kernels_of, pruned, record_graphs
from test_deploy_cuda import tiles_in_float64
from torch import nn

from gansparse import deploy
from gansparse.deploy import cuda, measure
from gansparse.deploy.plan import MOMENTS
from gansparse.ops import instance_norm_reference
from gansparse.testing.samples.instance_norm import moments_of


class Asked:
    """Stands for the two ops: counts calls, and norms by the moments that it is given."""

    def __init__(self) -> None:
        self.left = self.taken = 0
        self.wrong = 0.0

    def convolve(self, x, packed, bias):
        self.left += 1
        y = tiles_in_float64(x, packed, bias, residual=None, activation="none", slope=0.0)
        moments = moments_of(y, 3)
        moments[:, :, 1] += self.wrong
        return y, moments

    def norm(self, x, weight, bias, *, moments, **settings):
        self.taken += moments is not None
        return instance_norm_reference(x, weight, bias, moments=moments, **settings)


class MomentsClock(Clock):
    """A convolution and its norm take 1 ms by moments, and 2 ms apart."""

    def __call__(self, runs, *args, **kwargs):
        times = super().__call__(runs, *args, **kwargs)
        return times | ({"apart": 2.0} if "apart" in times else {})


@pytest.fixture
def clock(monkeypatch) -> Clock:
    """The CPU as a GPU."""
    fake = MomentsClock("2:4 x32")
    monkeypatch.setattr(measure, "interleaved", fake)
    monkeypatch.setattr(measure, "machine", lambda device: {"gpu": "none"})
    monkeypatch.setattr(cuda, "on_cuda", lambda device: device.type == "cpu")
    monkeypatch.setattr(cuda, "sparse_conv2d", tiles_in_float64)
    monkeypatch.setattr(cuda, "sparse_conv_transpose2d", tiles_in_float64)
    monkeypatch.setattr(cuda, "has_own_norm", lambda x: x.dtype != torch.float32)
    record_graphs(monkeypatch)
    return fake


@pytest.fixture
def asked(monkeypatch, clock) -> Asked:
    ops = Asked()
    monkeypatch.setattr(cuda, "sparse_conv2d_moments", ops.convolve)
    monkeypatch.setattr(cuda, "instance_norm", ops.norm)
    return ops


def norms_of(compiled):
    return [
        row for row in compiled.explain().rows if "InstanceNorm" in row.why or row.kernel == MOMENTS
    ]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("cyclegan", torch.bfloat16),
        ("stargan", torch.float16),
        ("unet-instance", torch.bfloat16),
    ],
)
def test_families(asked, name, dtype):
    network = pruned(name, "2:4", dtype)
    compiled = deploy.compile(network, tuple(inputs(name, dtype)), shrink=False)
    taking = [row for row in norms_of(compiled) if row.kernel == MOMENTS]
    tiles = sum(kernel == "2:4 x32" for kernel in kernels_of(compiled).values())
    assert 1 < len(taking) <= tiles
    assert all(" 1.000 ms, 2.000 where the norm makes them" in row.why for row in taking)
    asked.left = asked.taken = 0
    plan = next(iter(compiled._plans.values()))[0]
    plan.run(*inputs(name, dtype))
    assert asked.left == asked.taken == len(taking)
    assert_near(compiled, network, *inputs(name, dtype))
    assert_near(compiled, network, *inputs(name, dtype, 2))
    again, asked.left = copy.deepcopy(compiled), 0
    assert_near(again, network, *inputs(name, dtype))  # with the norms that were chosen
    assert asked.left


def network(*layers: nn.Module) -> nn.Module:
    """Bfloat16, 2:4."""
    made = seeded(nn.Sequential(*layers)).bfloat16()
    for layer in made:
        if isinstance(layer, nn.Conv2d):
            layer.weight.data[:, 2::4] = layer.weight.data[:, 3::4] = 0
    return made


eight = partial(conv, 8, 8)
x8 = picture(2, 8, 9, 7).bfloat16()


def test_a_norm_directly_after_a_convolution(asked):
    made = network(eight(), nn.InstanceNorm2d(8), nn.ReLU(), eight())
    compiled = deploy.compile(made, x8)
    assert [row.kernel for row in norms_of(compiled)] == [MOMENTS]
    assert "0 1.000 ms" in norms_of(compiled)[0].why
    assert_near(compiled, made, x8)
    assert_near(compiled, made, picture(1, 8, 5, 12).bfloat16())
    assert asked.taken


@pytest.mark.parametrize(
    "layers",
    [
        (eight(), nn.ReLU(), nn.InstanceNorm2d(8)),
        (eight(), nn.AvgPool2d(2), nn.InstanceNorm2d(8)),
        (nn.InstanceNorm2d(8), eight()),
        (conv(8, 32), nn.PixelShuffle(2), nn.InstanceNorm2d(8)),
    ],
)
def test_a_norm_after_something_else(asked, layers):
    made = network(*layers)
    compiled = deploy.compile(made, x8)
    assert all(row.kernel != MOMENTS for row in norms_of(compiled))
    assert not asked.left
    assert_near(compiled, made, x8)


class Between(nn.Module):
    """A convolution and a norm, and what a sum has to do with both."""

    def __init__(self, combine):
        super().__init__()
        self.inner, self.norm, self.combine = network(eight()), nn.InstanceNorm2d(8), combine

    def forward(self, x):
        return self.combine(x, self.inner, self.norm)


@pytest.mark.parametrize(
    "combine",
    [
        lambda x, inner, norm: norm(y := inner(x)) + y,  # read twice
        lambda x, inner, norm: norm(inner(x) + x),  # a sum goes into the convolution
    ],
)
def test_a_convolution_that_others_read_or_add_to(asked, combine):
    made = Between(combine)
    compiled = deploy.compile(made, x8)
    assert compiled.explain().verdict == "runs as planned, in a CUDA graph"
    assert "2:4 x32" in kernels_of(compiled).values()
    assert not asked.left
    assert_near(compiled, made, x8)


def test_a_sum_after_the_norm(asked):
    made = Between(lambda x, inner, norm: inner(norm(inner(x)) + x))
    compiled = deploy.compile(made, x8)
    assert [row.kernel for row in norms_of(compiled)] == [MOMENTS]
    assert_near(compiled, made, x8)


def test_where_apart_is_as_fast_they_stay_apart(asked, monkeypatch, clock):
    monkeypatch.setattr(measure, "interleaved", lambda runs, *_, **how: {
        name: 1.0 if name.startswith("2:4 x32") or name in ("apart", clock.whole) else 2.0
        for name in runs
    })  # fmt: skip
    made = network(eight(), nn.InstanceNorm2d(8))
    compiled = deploy.compile(made, x8)
    assert all(row.kernel != MOMENTS for row in norms_of(compiled))
    assert asked.left == 1  # to compare it
    assert_near(compiled, made, x8)


def test_dense_convolutions_leave_none(asked, clock):
    clock.kernel = "torch channels_last"
    made = network(eight(), nn.InstanceNorm2d(8))
    assert_near(deploy.compile(made, x8), made, x8)
    assert not asked.left


def test_wrong_moments_are_refused(asked):
    asked.wrong = 0.1
    made = network(eight(), nn.InstanceNorm2d(8))
    compiled = deploy.compile(made, x8)
    assert all(row.kernel != MOMENTS for row in norms_of(compiled))
    assert_near(compiled, made, x8)


def test_a_layer_that_does_not_fit_stays_apart(asked, monkeypatch):
    def refuse(*args):
        raise RuntimeError("sparse_conv2d: this layer needs 300000 bytes of shared memory")

    monkeypatch.setattr(cuda, "sparse_conv2d_moments", refuse)
    made = network(eight(), nn.InstanceNorm2d(8))
    assert_near(deploy.compile(made, x8), made, x8)
