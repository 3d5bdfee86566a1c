# SPDX-License-Identifier: Apache-2.0
"""Documents that are missing, broken or odd: one line that names file, place and remedy."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from gansparse.errors import InputError
from gansparse.report import load_history, load_report, load_samples


def test_reads_what_is_there(run):
    report = load_report(run)
    assert report.dense_fid == 27.9
    assert [entry.key for entry in report.runs] == ["b", "d", "k"]
    first = report.runs[0]
    assert (first.sparsity, first.steps, first.parameters) == (0.75, 300, 893_500)
    history = load_history(first.history)
    assert len(history) == 60
    assert set(history[0]["terms"]) == {"gen", "out"}
    assert load_samples(first.samples).shape == (16, 1, 16, 16)
    assert load_report(run / "report.json") == report


def put(*path, value):
    def change(document):
        place = document
        for name in path[:-1]:
            place = place[name]
        place[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("title", value=None), r"report.json: title must be a string, got nothing"),
        (put("dense", "fid", value="low"), "dense.fid must be a finite number, got 'low'"),
        (put("dense", "fid", value=math.nan), "dense.fid must be a finite number, got nan"),
        (put("dense", value=[1]), r"dense must be an object, got \[1\]"),
        (put("metric", value={}), "metric.name must be a string, got nothing"),
        (put("runs", value=[]), r"runs must be a list with at least one entry, got \[\]"),
        (put("runs", 1, "fid", value=None), r"runs\[1\].fid must be a number, got nothing"),
        (put("runs", 2, value="k"), r"runs\[2\] must be an object, got 'k'"),
        (put("runs", 0, "key", value=3), r"runs\[0\].key must be a string, got 3"),
        (put("runs", 0, "steps", value=1.5), "steps must be a whole number, got 1.5"),
        (put("runs", 0, "seconds", value=True), "seconds must be a finite number, got True"),
        (put("runs", 0, "samples", value="../../x"), "samples must name a file inside the run's"),
        (put("runs", 0, "history", value=7), "history must name a file inside"),
        (put("yardstick", value={"samples_a": "x"}), "must name samples_a and samples_b"),
    ],
)
def test_refuses(edit, change, message):
    folder = edit(change)
    with pytest.raises(InputError, match=message) as caught:
        load_report(folder)
    assert str(folder / "report.json") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00"])
def test_refuses_a_file_that_is_no_document(run, text):
    (run / "report.json").write_text(text)
    with pytest.raises(InputError, match=r"report.json"):
        load_report(run)


def test_missing_file_names_the_remedy(tmp_path):
    with pytest.raises(
        InputError, match=r"report.json: no such file; make it with `gansparse demo"
    ):
        load_report(tmp_path)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"pictures": torch.zeros(1, 1, 2, 2)}, 'holds no tensor "images"'),
        ({"images": torch.zeros(4, 4)}, r"images must be \[K, C, H, W\].* got \[4, 4\]"),
        ({"images": torch.zeros(4, 2, 4, 4)}, "C 1 or 3"),
        ({"images": torch.zeros(0, 1, 4, 4)}, r"got \[0, 1, 4, 4\]"),
        ({"images": torch.full((1, 1, 2, 2), math.nan)}, "hold NaN or infinite values"),
    ],
)
def test_refuses_odd_samples(tmp_path, tensors, message):
    path = tmp_path / "samples.safetensors"
    save_file(tensors, path)
    with pytest.raises(InputError, match=message):
        load_samples(path)


def test_refuses_broken_files(run):
    samples = run / "samples_dense.safetensors"
    samples.write_bytes(samples.read_bytes()[:-100])
    with pytest.raises(
        InputError, match="not a whole safetensors file .* run the comparison again"
    ):
        load_samples(samples)
    samples.unlink()
    with pytest.raises(InputError, match=r"no weights file at .*samples_dense"):
        load_samples(samples)
    with pytest.raises(InputError, match=r"gone.jsonl: No such file or directory; run the"):
        load_history(run / "gone.jsonl")
    path = run / "h.jsonl"
    path.write_text(json.dumps({"step": 0, "loss": "high", "sparsity": 0, "terms": {}}) + "\n")
    with pytest.raises(InputError, match="line 1: loss must be a finite number, got 'high'"):
        load_history(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"h.jsonl: not text"):
        load_history(path)


def test_half_precision_samples(tmp_path):
    save_file({"images": torch.ones(1, 3, 2, 2).half()}, tmp_path / "s.safetensors")
    assert load_samples(tmp_path / "s.safetensors").dtype == np.float32
