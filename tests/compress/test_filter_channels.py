# SPDX-License-Identifier: Apache-2.0
"""Technique b at granularity filter leaves a generator that shrinks."""

import copy
from dataclasses import replace

import pytest
import torch
from tiny import in_two_parts_as_in_one
from torch import nn

from gansparse.compress import RECIPES, TrainConfig, Trainer
from gansparse.compress.start import make_pruner
from gansparse.errors import InputError
from gansparse.sparsity import shrink_report
from gansparse.tasks import dcgan_task


def config(**changes):
    settings = {"steps": 6, "sparsity": 0.5, "save_every": 0, "recalibration": 2}
    settings["filters"] = "channels"
    return TrainConfig(granularity="filter", scope="layer", **{**settings, **changes})


def left(task, result):
    report = shrink_report(result.generator, task.batch(0)["z"])
    return report.parameters_after / report.parameters_before


def test_the_averaged_generator_shrinks(task):
    result = Trainer(task, config()).run()
    assert not result.notes
    widths = [w.shape[1] for w in result.generator.parameters() if w.ndim == 4]
    assert left(task, result) < 0.4  # a quarter of the inner layer, half of the first and the last
    gone = result.masks["main.1.bias"].logical_not()
    assert int(gone.sum()) == widths[0] // 2
    norm = result.generator.main[1]
    assert (norm.bias[gone] == 0).all()
    assert (norm.weight[gone] == 0).all()
    assert (norm.bias[~gone] != 0).any()
    assert (result.generator.main[-2].weight != 0).all(), "the picture's layer is whole"


def test_weights_only_is_the_default(task):
    result = Trainer(task, config(filters="weights")).run()
    assert TrainConfig().filters == "weights"
    assert all(name.endswith("weight") for name in result.masks)
    assert "main.6.weight" not in result.masks
    with pytest.raises(InputError, match="filters must be one of weights, channels, got 'some'"):
        config(filters="some")


@pytest.mark.parametrize("filters", ["weights", "channels"])
@pytest.mark.parametrize("scope", ["layer", "erk", "global"])
def test_no_channel_of_the_picture_goes(filters, scope):
    images = torch.randint(0, 256, (16, 3, 16, 16), dtype=torch.uint8)
    task = dcgan_task(images, nz=8, ngf=8, ndf=8, batch_size=8)
    settings = config(filters=filters, sparsity=0.7).with_settings([f"scope={scope}"])
    pruner = make_pruner(task.generator, RECIPES["b"], settings, task)
    assert "main.6" not in pruner.targets
    pruner.prune_to(0.7)
    assert (task.generator.main[6].weight != 0).all()
    named = make_pruner(
        task.generator,
        RECIPES["b"],
        replace(settings, filters="weights", include=("main.6",)),
        task,
    )
    assert list(named.targets) == ["main.6"], "unless it is asked for"


def test_a_run_in_two_parts_ends_as_one_in_one(tmp_path):
    in_two_parts_as_in_one(config(), 3, tmp_path)


def test_a_generator_that_cannot_be_traced_is_pruned_by_weights_and_said_so(task):
    class Branches(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, z):
            return self.inner(z if z.sum() > -1e9 else -z)

    task.generator = Branches(copy.deepcopy(task.generator))
    result = Trainer(task, config()).run()
    assert any("Branches can't be traced" in note for note in result.notes)
    assert all(name.endswith("weight") for name in result.masks)
