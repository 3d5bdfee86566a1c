# SPDX-License-Identifier: Apache-2.0
"""Times that can be compared: how many rounds there are, and what a results file keeps."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from gansparse.info import collect
from gansparse.testing import timing

ROOT = Path(__file__).parents[1]


def test_no_round_begins_when_time_is_up_but_three_there_are() -> None:
    count = {"a": 0, "b": 0}

    def run(name: str) -> None:
        count[name] += 1

    candidates = {"a": lambda: run("a"), "b": lambda: run("b")}
    few = timing.interleave(candidates, 40, seconds=0.0)
    assert {name: len(times) for name, times in few.seconds.items()} == {"a": 3, "b": 3}
    assert few.spread("a") >= 0
    all_of_them = timing.interleave(candidates, 5)
    assert [len(times) for times in all_of_them.seconds.values()] == [5, 5]
    assert min(count.values()) > 0


def test_warm_turns_begin_with_a_call_that_is_not_timed() -> None:
    seen: list[str] = []

    def slow(name: str) -> None:
        seen.append(name)
        time.sleep(0.03)  # longer than a turn, so that each turn times one call

    candidates = {"a": lambda: slow("a"), "b": lambda: slow("b")}
    found = timing.interleave(candidates, 3, warm_up=1, warm=True)
    assert "".join(seen) == "aabb" + "aabb" + "bbaa" + "aabb"
    assert min(min(times) for times in found.seconds.values()) < 0.05


def test_new_rows_replace_those_of_their_case_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import harness

    def row(op: str, case: str, value: str) -> dict[str, str]:
        return {"op": op, "case": case, "median_ms": value}

    path = tmp_path / "new" / "rows.csv"
    harness.save_results([row("b", "one", "1"), row("b", "two", "2"), row("a", "one", "3")], path)
    harness.save_results([row("b", "two", "4")], path)
    found = {(r["op"], r["case"]): r["median_ms"] for r in harness.read_results(path)}
    assert found == {("a", "one"): "3", ("b", "one"): "1", ("b", "two"): "4"}


def test_what_was_measured_on_a_gpu_tells_all_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import harness

    versions = {"driver", "cuda", "cudnn", "nvcc"}
    facts = collect()
    monkeypatch.setattr(harness, "collect", lambda: facts)
    monkeypatch.setattr(harness, "_told", lambda *command: "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    facts["cuda"] |= {"devices": [{"name": "Some GPU"}], "nvcc": "13.0.88", "driver": 13010}
    without = harness.machine()
    assert not versions & set(without)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    assert harness.machine()["driver"] == "CUDA 13.1", "where there is no nvidia-smi"
    told = {"nvidia-smi": "590.44.01\n590.44.01"}
    monkeypatch.setattr(harness, "_told", lambda name, *rest: told.get(name, ""))
    found = harness.machine()
    expected = {"driver": "590.44.01 CUDA 13.1", "cuda": "12.8", "cudnn": "91002"}
    assert found == {**without, **expected, "nvcc": "13.0.88"}

    # Beside rows that tell less, in either order.
    path, row = tmp_path / "rows.csv", {"op": "a", "case": "one"}
    for case, machine in (("one", without), ("two", found), ("three", without)):
        harness.save_results([{**row, "case": case, **machine}], path)
    rows = {r["case"]: r for r in harness.read_results(path)}
    assert rows["two"] == {**row, "case": "two", **found}
    assert rows["one"]["nvcc"] == rows["three"]["nvcc"] == ""

    facts["cuda"]["devices"] = []
    assert not versions & set(harness.machine())
