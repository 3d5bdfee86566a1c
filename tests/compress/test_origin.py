# SPDX-License-Identifier: Apache-2.0
"""Data are the same however their folder is spelled, in what older runs wrote down, too."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from test_compare import comparison, entry
from tiny import tiny_task

from gansparse.compress import TrainConfig, Trainer
from gansparse.compress.origin import changes, origin_of
from gansparse.errors import CheckpointError, InputError


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "others").mkdir()
    (tmp_path / "link").symlink_to("pictures")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def origin(name):
    task = tiny_task()
    return origin_of(replace(task, data_name=name), task.batch(0))


SPELLINGS = ["pictures", "./pictures", "others/../pictures/", "link"]


@pytest.mark.parametrize("phase", ["", " (train)"])
def test_spellings_of_one_folder(place, phase):
    first = origin(f"pictures{phase}")
    for folder in (*SPELLINGS, str(place / "pictures")):
        assert changes(first, origin(folder + phase)) == ""
    assert changes(first, origin(f"others{phase}")) == "data"
    assert changes(first, origin("pictures (test)")) == "data"
    assert str(place) not in json.dumps(first)  # reports are published


def test_what_a_run_of_before_wrote_down(place):
    old = {key: value for key, value in origin("./pictures").items() if key != "place"}
    assert changes(old, origin("./pictures")) == ""
    assert changes(old, origin("pictures")) == ""
    assert changes(old, origin("others")) == "data"


def test_the_same_words_go_on_from_another_folder(place, monkeypatch):
    """All that lies together may be moved; names that are no folder's stay names."""
    first, digits = origin("pictures"), origin("mnist.npz (train split)")
    place.joinpath("moved", "pictures").mkdir(parents=True)
    monkeypatch.chdir(place / "moved")
    assert changes(first, origin("pictures")) == ""
    assert changes(digits, origin("mnist.npz (train split)")) == ""
    assert changes(digits, origin("emnist.npz (train split)")) == "data"


def test_resuming_and_comparing(place):
    config = TrainConfig("b", steps=4, sparsity=0.5, save_every=2)
    torch.manual_seed(0)
    Trainer(replace(tiny_task(), data_name="pictures"), config, out=place / "run").run()
    comparison(replace(tiny_task(), data_name="pictures"), place / "compared").run([entry("g")])
    for name in (*SPELLINGS, "others"):
        task = replace(tiny_task(), data_name=name)
        if name != "others":
            assert Trainer(task, config, out=place / "run", resume=True).step == 4
            document = comparison(task, place / "compared").run([entry("g")])
            assert document["data"] == name  # as reports show it
            continue
        with pytest.raises(CheckpointError, match="was made with another data; resume"):
            Trainer(task, config, out=place / "run", resume=True)
        with pytest.raises(InputError, match="holds a comparison with another data; choose"):
            comparison(task, place / "compared").run([entry("g")])
