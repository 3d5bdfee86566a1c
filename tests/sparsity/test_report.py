# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from gansparse.errors import InputError
from gansparse.sparsity import GRANULARITIES, Pruner, check_masked, sparsity_report


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.ConvTranspose2d(16, 32, 4, 2, 1), nn.BatchNorm2d(32), nn.Conv2d(32, 16, 3, groups=2)
    )


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("vector_size", [4, 8, 16])
def test_counts_and_pattern(granularity, vector_size):
    model = make_model()
    pruner = Pruner(model, 0.5, granularity, "one-shot", vector_size=vector_size)
    assert [row.pattern for row in sparsity_report(model).rows] == ["dense", "dense"]
    pruner.step(0, 1)
    report = sparsity_report(model)
    tiles = granularity in ("vector", "block")
    expected = f"{granularity}-{vector_size}" if tiles else granularity
    assert report.rows[0].pattern == expected
    for row, layer in zip(report.rows, pruner.layers, strict=True):
        assert row.weights == layer.weight.numel()
        assert (
            row.zeros == int((layer.weight == 0).sum()) == int((~pruner.masks[layer.weight]).sum())
        )
    assert report.total.zeros == sum(row.zeros for row in report.rows)
    assert report.total.sparsity == pytest.approx(pruner.achieved_sparsity())


def test_masks_count_even_before_they_are_applied():
    model = make_model()
    weight = model[0].weight
    masks = {weight: torch.zeros_like(weight, dtype=torch.bool)}
    assert sparsity_report(model).rows[0].zeros == 0
    assert sparsity_report(model, masks).rows[0].zeros == weight.numel()


def macs_by_hand(layer, inputs):
    """Multiply-adds by unfolding: each weight set to 1 and a ones input counts its own uses."""
    counter = type(layer)(
        layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, 0,
        groups=layer.groups, bias=False,
    )  # fmt: skip
    nn.init.ones_(counter.weight)
    return int(counter(torch.ones_like(inputs)).sum())


def test_macs_with_no_padding_by_brute_force():
    for layer in (nn.Conv2d(4, 6, 3, 2, groups=2), nn.ConvTranspose2d(4, 6, 3, 2, groups=2)):
        inputs = torch.randn(2, 4, 7, 9)
        layer.weight.data[0] = 0
        row = sparsity_report(nn.Sequential(layer), example_input=inputs).rows[0]
        assert row.macs == macs_by_hand(layer, inputs)
        assert row.macs_left == row.macs * (row.weights - row.zeros) // row.weights
    linear = nn.Sequential(nn.Linear(5, 3))
    assert sparsity_report(linear, example_input=torch.randn(2, 7, 5)).rows[0].macs == 2 * 7 * 15


def test_example_input_leaves_the_model_as_it_was():
    model = make_model().train()
    model[1].eval()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    sparsity_report(model, example_input=torch.randn(2, 16, 5, 5))
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_texts():
    model = make_model()
    Pruner(model, 0.75, schedule="one-shot").step(0, 1)
    report = sparsity_report(model, example_input=torch.randn(1, 16, 5, 5))
    text = str(report)
    assert "ConvTranspose2d" in text
    assert "75.00%" in text
    assert "MACs left" in text
    assert json.loads(json.dumps(report.to_dict()))["total"]["sparsity"] == 0.75
    lines = report.to_markdown().splitlines()
    assert len(lines) == 2 + 2 + 1
    assert len({line.count("|") for line in lines}) == 1
    assert "MACs" not in sparsity_report(model).to_markdown()


def test_empty_model_and_empty_weight():
    assert sparsity_report(nn.ReLU()).total.sparsity == 0
    layer = nn.Conv2d(1, 4, 3)
    layer.weight = nn.Parameter(torch.empty(4, 0, 3, 3))
    assert sparsity_report(layer).rows[0].sparsity == 0
    assert "total" in str(sparsity_report(nn.ReLU()))


def test_check_masked():
    model = make_model()
    pruner = Pruner(model, 0.5, schedule="one-shot")
    pruner.step(0, 1)
    check_masked(model, pruner.masks)
    weight = model[0].weight
    weight.data[(~pruner.masks[weight]).nonzero(as_tuple=True)] = torch.nan
    count = int((~pruner.masks[weight]).sum())
    with pytest.raises(InputError, match=f"0.weight: {count} of {count} masked weights are not 0"):
        check_masked(model, pruner.masks)
    with pytest.raises(InputError, match="belongs to no parameter"):
        check_masked(nn.ReLU(), pruner.masks)
