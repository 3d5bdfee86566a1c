# SPDX-License-Identifier: Apache-2.0
"""What is written into a compiled generator's `original`: the next call has it."""

from __future__ import annotations

import copy

import networks
import pytest
import torch
from networks import assert_same, conv, picture, seeded
from torch import nn

from gansparse import deploy
from gansparse.deploy import capture


def network() -> nn.Sequential:
    return seeded(nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 3)))


def load(original):
    original.load_state_dict({k: v + 1 for k, v in original.state_dict().items()})


def train(original):
    optimizer = torch.optim.Adam(original.parameters(), lr=0.1)
    original(picture()).sum().backward()
    optimizer.step()


def run_in_training_mode(original):
    original.train()(picture() + 3)
    original.eval()


def write_in_inference_mode(original):
    with torch.inference_mode():
        original[0].bias.add_(1)


def assign_data(original):
    original[0].weight.data = original[0].weight.data + 1


def assign_a_parameter(original):
    original[0].weight = nn.Parameter(original[0].weight.detach() + 1)


def assign_a_layer(original):
    original[2] = nn.LeakyReLU(0.3)


def take_a_bias(original):
    original[0].bias = None


WAYS = [
    load, train, run_in_training_mode, write_in_inference_mode, assign_data, assign_a_parameter,
    assign_a_layer, take_a_bias,
]  # fmt: skip


@pytest.mark.parametrize("write", WAYS)
def test_what_is_written_is_noticed(write):
    compiled = deploy.compile(network(), picture())
    compiled(picture(1, 3, 5, 5))  # of each shape
    before = compiled(picture())
    write(compiled.original)
    for shape in ((2, 3, 8, 10), (1, 3, 5, 5)):
        assert_same(compiled, compiled.original, picture(*shape))
    assert not torch.equal(compiled(picture()), before)
    assert compiled.explain().verdict == "runs as planned"


@torch.no_grad()
def empty(original, channels):
    for tensor in (original[0].weight, original[0].bias, original[1].weight, original[1].bias):
        tensor[:channels] = 0


def test_it_is_shrunk_again():
    """Of the new state's empty filters, with the kernels that were chosen."""
    pruned = network()
    empty(pruned, 2)
    compiled = deploy.compile(pruned, picture())
    assert len(compiled.shrunk[0].weight) == 6
    empty(compiled.original, 4)
    assert_same(compiled, compiled.original, picture())
    assert len(compiled.shrunk[0].weight) == 4
    compiled.original.load_state_dict(network().state_dict())
    assert_same(compiled, network(), picture())
    assert compiled.shrunk is None
    assert compiled.explain().verdict == "runs as planned"


def test_in_training_mode_it_runs_as_it_is():
    compiled = deploy.compile(network(), picture())
    compiled.original.train()
    mean, twin = compiled.original[1].running_mean.clone(), copy.deepcopy(compiled.original)
    with torch.no_grad():
        assert torch.equal(compiled(picture()), twin(picture()))
    assert torch.equal(compiled.original[1].running_mean, twin[1].running_mean)  # once
    assert not torch.equal(compiled.original[1].running_mean, mean)
    compiled.eval()
    assert_same(compiled, twin.eval(), picture())
    assert compiled.explain().verdict == "runs as planned"


def test_what_the_generator_writes_itself_is_no_news(monkeypatch):
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls.add_(1)
            return x + self.calls * 0

    compiled = deploy.compile(seeded(networks.Around(Counting())), picture())
    assert compiled.explain().verdict == "runs as planned"
    assert list(compiled.explain().whole) == ["inner"]
    compiled(picture())
    calls = int(compiled.original.inner.calls)
    monkeypatch.setattr(capture, "_Recorder", lambda *_: pytest.fail("planned again"))
    compiled(picture())
    assert int(compiled.original.inner.calls) == calls + 1


def test_copies_notice_too():
    compiled = copy.deepcopy(deploy.compile(network(), picture()))
    compiled(picture())
    load(compiled.original)
    assert_same(compiled, compiled.original, picture())
