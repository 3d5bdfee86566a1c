# SPDX-License-Identifier: Apache-2.0
"""The demo from end to end, on few steps and few samples."""

import functools
import json

import pytest
import torch

from gansparse.compress import TrainConfig
from gansparse.demo import DEMO_RECIPES, fastest_precision
from gansparse.files import load_tensors

SMALL = ("--steps", 1, "--num-samples", 40, "--device", "cpu")


def test_the_demo_writes_a_report_and_ends_with_table_path_and_next_step(
    gansparse, tmp_path, monkeypatch
):
    pytest.importorskip("mlxtend", reason="the extra 'demo' is not installed")
    # Of 50 batches: they would be most of the time.
    few = functools.partial(TrainConfig, recalibration=2)
    monkeypatch.setattr("gansparse.demo.TrainConfig", few)
    done = gansparse("demo", "--out", tmp_path / "demo", *SMALL)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.strip().splitlines()
    assert lines[-1].startswith("try next: gansparse ")
    assert lines[-2].endswith("report.html")
    table = "\n".join(lines[:-2])
    assert "FID" in table
    assert "self-supervised" in table, "a log has room for whole words"
    assert "b element 0.75 seed 0: 1/1, took" in done.stderr, "progress, with its time"
    document = json.loads((tmp_path / "demo" / "report.json").read_text())
    assert tuple(run["key"] for run in document["runs"]) == DEMO_RECIPES
    config = json.loads((tmp_path / "demo" / "b-element-0.75-seed0" / "config.json").read_text())
    assert config["precision"] == fastest_precision(torch.device("cpu"))
    for run in document["runs"]:
        assert run["achieved_sparsity"] == pytest.approx(0.75, abs=0.001)
        pictures = load_tensors(tmp_path / "demo" / run["samples"])[0]["images"]
        assert pictures.shape[1:] == (1, 64, 64)
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "data:image" in page

    before = (tmp_path / "demo" / "b-element-0.75-seed0" / "result.json").stat().st_mtime_ns
    assert gansparse("demo", "--out", tmp_path / "demo", *SMALL).returncode == 0
    after = (tmp_path / "demo" / "b-element-0.75-seed0" / "result.json").stat().st_mtime_ns
    assert after == before, "a finished run is not run again"


@pytest.mark.parametrize(
    ("device", "native", "expected"),
    [("cpu", True, "bf16"), ("cpu", False, "fp32"), ("cuda", True, "fp32")],
)
def test_training_is_in_bf16_where_the_processor_has_it(monkeypatch, device, native, expected):
    monkeypatch.setattr("gansparse._C.build_info", lambda: {"native_bf16": native})
    assert fastest_precision(torch.device(device)) == expected
