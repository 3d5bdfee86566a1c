# SPDX-License-Identifier: Apache-2.0
"""`explain`: which layer of a compiled generator runs how and why, also where it runs as it was."""

from __future__ import annotations

import io
import types

import networks
import pytest
import torch
from networks import assert_same, conv, convolutions, picture, seeded
from torch import nn

from gansparse import deploy


def test_a_branch_within_runs_as_it_was_and_is_named():
    network = seeded(networks.Around(networks.Branch()))
    compiled = deploy.compile(network, picture())
    assert "inner runs as it was: DataDependentOutputException" in str(compiled.explain())
    assert convolutions(compiled) == {"before": "sparse", "after": "sparse"}
    for x in (picture(), -picture(1, 3, 6, 6)):
        assert_same(compiled, network, x)


def test_a_network_that_cant_be_captured_runs_as_it_was():
    network = seeded(networks.Branch())
    compiled = deploy.compile(network, picture())
    explained = compiled.explain()
    assert "can't be captured: DataDependent" in explained.verdict
    (row,) = explained.rows
    assert (row.layer, row.shape) == ("layer", "2×3×8×10 → 2×3×8×10")
    assert (row.kernel, row.times, row.why) == ("torch", {"torch": 2.0}, "runs as it was")
    assert 0.3 < row.sparsity < 0.9
    assert "DataDependent" in str(explained)
    for sign in (1, -1):
        assert torch.equal(compiled(sign * picture()), network(sign * picture()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_run_as_they_were(dtype):
    network = seeded(nn.Sequential(conv())).to(dtype)
    compiled = deploy.compile(network, picture().to(dtype))
    assert f"0.weight is {str(dtype)[6:]}" in str(compiled.explain())
    assert convolutions(compiled) == {"0": "torch"}
    assert torch.equal(compiled(picture().to(dtype)), network(picture().to(dtype)))


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Conv2d(4, 6, 3, groups=2), "groups 2"),
        (nn.Conv2d(4, 6, 3, dilation=2), "dilation (2, 2)"),
        (nn.Conv2d(4, 6, 3, stride=3), "stride (3, 3)"),
        (nn.Conv2d(4, 6, 3, stride=(1, 2)), "stride (1, 2)"),
        (nn.Conv2d(4, 6, (1, 17), padding=8), "1x17 taps"),
        (nn.ConvTranspose2d(4, 6, 3, 2, 3), "padding (3, 3) of 3x3 taps, transposed"),
        (nn.ConvTranspose2d(4, 6, 3, 1, output_padding=1, dilation=2), "dilation (2, 2)"),
    ],
)
def test_layers_that_no_sparse_kernel_takes_are_named(layer, reason):
    network, x = seeded(nn.Sequential(layer, nn.ReLU())), picture(1, 4, 9, 9)
    compiled = deploy.compile(network, x)
    (row,) = compiled.explain().rows
    assert row.kernel in ("torch", "torch channels_last", "onednn", "onednn channels_last")
    assert row.why.endswith(f"; not sparse: {reason}")
    assert_same(compiled, network, x)


def test_explains_itself():
    network = seeded(nn.Sequential(conv(), nn.InstanceNorm2d(3), nn.ReLU(), nn.Softmax(1)))
    explained = deploy.compile(network, picture()).explain()
    text = str(explained)
    assert [row.layer for row in explained.rows] == ["0", "1", "3: softmax"]
    assert explained.rows[0].times.keys() >= {"torch", "torch channels_last", "sparse"}
    assert explained.rows[0].shape == "2×3×8×10 → 2×3×8×10"
    for word in (
        "sparse",
        f"{explained.rows[0].sparsity:.0%}",
        "relu",
        "before 2.00 ms, after 1.00 ms: 2.00x",
        "2×3×8×10",
    ):
        assert word in text
    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=200).print(explained)
    assert "before 2.00 ms" in out.getvalue()


def test_explains_each_call_where_it_runs_as_it_was():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.Sequential(conv(), nn.ReLU(True))
            self.calls = 0

        def forward(self, x, scale):
            self.calls += 1
            return self.block(self.block(x * scale))

    x, double = picture().double(), {"torch": 2.0}
    rows = deploy.compile(seeded(Twice()).double(), (x, 2.0)).explain().rows
    assert [row.layer for row in rows] == ["block.0", "block.1", "block.0 #2", "block.1 #2"]
    assert [row.sparsity is None for row in rows] == [False, True, False, True]
    assert [row.times for row in rows] == [double] * 4
    alone = deploy.compile(seeded(conv()).double(), x).explain().rows
    assert [(row.layer, row.times) for row in alone] == [("Conv2d", double)]


def test_what_cant_be_followed_in_and_out_runs_as_it_was():
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = conv()

        def forward(self, xs):
            return self.layer(xs[0])

    class Boxed(Listed):
        def forward(self, x):
            return types.SimpleNamespace(y=self.layer(x))

    network = seeded(Listed())
    compiled = deploy.compile(network, ([picture()],))
    assert "input 0 is a list" in compiled.explain().verdict
    for x in (picture(), picture(1, 3, 4, 4)):
        assert torch.equal(compiled([x]), network([x]))
    boxed = deploy.compile(seeded(Boxed()), picture())
    assert "it returns a SimpleNamespace" in boxed.explain().verdict
    assert torch.equal(boxed(picture()).y, seeded(Boxed())(picture()).y)
