# SPDX-License-Identifier: Apache-2.0
"""Documents that are missing, broken or odd: one line that names file, place and remedy."""

from __future__ import annotations

import json
import math

import pytest

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
    assert len(load_samples(first.samples)[""]) == 16
    assert load_report(run / "report.json") == report


def test_reads_further_scores_failures_and_the_yardstick(edit):
    def add(document):
        samples = document["dense"]["samples"]
        document["dense"] |= {"views": {"a to b": 9.0, "b to a": 8.0}, "input": samples}
        document["runs"][0] |= {"views": {"a to b": 10.0}, "measures": {"Set5 PSNR": 30.5}}
        document["failed"] = [
            {"key": "k", "technique": "t", "granularity": "filter", "sparsity": 0.5, "seed": 3}
            | {"reason": "step 2, G phase: the loss is nan"}
        ]
        document["yardstick"] = {"samples_a": samples, "samples_b": samples, "fid": 28.5}

    report = load_report(edit(add))
    assert report.scores == ("FID a to b", "FID b to a", "Set5 PSNR")
    assert report.dense_scores == {"FID a to b": 9.0, "FID b to a": 8.0}
    assert report.runs[0].scores == {"FID a to b": 10.0, "Set5 PSNR": 30.5}
    assert report.groups[0].scores("Set5 PSNR") == [30.5]
    assert report.groups[1].scores("Set5 PSNR") == []
    (failure,) = report.failures
    assert (failure.name, failure.reason[:6]) == ("t, seed 3", "step 2")
    assert (report.inputs, report.truth) == (report.dense_samples, None)
    assert report.yardstick_fid == 28.5


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
        (put("runs", 0, "views", value={"a to b": "low"}), "views.a to b must be a finite number"),
        (put("dense", "measures", value=[30]), r"dense.measures must be an object, got \[30\]"),
        (put("failed", value="none"), "failed must be a list, got 'none'"),
        (put("failed", value=[{"key": "b"}]), r"failed\[0\].technique must be a string"),
        (put("dense", "truth", value="/etc/passwd"), "truth must name a file inside"),
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
        InputError, match=r"report.json: no such file; gansparse demo, compare and sweep"
    ):
        load_report(tmp_path)


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
