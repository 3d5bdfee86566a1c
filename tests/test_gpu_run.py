# SPDX-License-Identifier: Apache-2.0
"""`make gpu` without a GPU: what it says where nothing can run, its stages, its table."""

from __future__ import annotations

import subprocess
import sys
import time
from importlib import import_module
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    return import_module("benchmarks.gpu")


@pytest.fixture
def run(gpu: Any, tmp_path: Path) -> Any:
    return gpu.Run(tmp_path / "log", 60.0, dict(gpu.environment()))


def with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as torch is asked."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Some GPU")


def test_without_cuda_it_ends_with_one_line(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    monkeypatch.setattr(torch.version, "cuda", None)
    found.append((gpu.main(), capsys.readouterr()))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found.append((gpu.main(), capsys.readouterr()))
    with_a_gpu(monkeypatch)
    monkeypatch.setattr(gpu.shutil, "which", lambda *_, **__: None)
    found.append((gpu.main(), capsys.readouterr()))
    assert [status for status, _ in found] == [2, 2, 2]
    assert not any(said.out for _, said in found)
    lines = [said.err.splitlines() for _, said in found]
    assert [len(line) for line in lines] == [1, 1, 1]
    for (line,), word in zip(lines, ("is a CPU build", "no CUDA device", "nvcc"), strict=True):
        assert line.startswith("make gpu: nothing to run on: ")
        assert word in line


def test_the_venv_holds_this_tree_as_the_installed_package(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "PYTHON", tmp_path / "venv" / "bin" / "python")
    version = gpu.make_venv()
    code = (
        "import gansparse, numpy; from importlib.metadata import requires\n"
        "print(gansparse.__version__, gansparse.__file__, len(requires('gansparse')))"
    )
    told = subprocess.run([gpu.PYTHON, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    needs = sum("extra ==" not in need for need in requires("gansparse") or [])
    here = str(ROOT / "gansparse" / "__init__.py")
    assert told.stdout.split() == [version, here, str(needs)], told.stderr


def test_it_builds_for_what_is_here_unless_told(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with_a_gpu(monkeypatch)
    monkeypatch.delenv("CUDAARCHS", raising=False)
    for capability, wanted in (((9, 0), "90-real;90a-real"), ((10, 0), "")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, told=capability: told)
        assert gpu.architectures() == wanted
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setenv("CUDAARCHS", "90")
    assert gpu.architectures() == ""


# ---- Stages --------------------------------------------------------------------------------------


def test_a_stage_tells_how_it_ended(run: Any) -> None:
    assert run.stage("good", "echo", "all well", limit=9) == (0, "all well\n")
    assert run.stage("bad", "sh", "-c", "echo first; echo the reason; exit 3", limit=9)[0] == 3
    run.seconds = 0.0
    assert run.stage("late", "echo", limit=9) == (None, "")
    assert [stage["result"] for stage in run.stages] == [
        "ok", "FAILED: the reason", "not run: no time left",
    ]  # fmt: skip
    assert "==== bad: sh -c" in run.log.read_text()


def test_a_stage_out_of_time_is_stopped_with_all_that_it_started(run: Any, tmp_path: Path) -> None:
    late = tmp_path / "late"
    run.stage("slow", "sh", "-c", f"(sleep 1.5; touch {late}) & echo begun; wait", limit=0.5)
    assert run.stages[-1]["result"] == "FAILED: stopped after 0.5 s"
    assert "begun" in run.log.read_text()
    time.sleep(1.5)
    assert not late.exists()


def test_every_test_is_counted_with_plugins_or_without(gpu: Any) -> None:
    alone = """
tests/a.py::test_one PASSED                                              [ 25%]
tests/a.py::test_two[2:4 x32] SKIPPED (this machine lacks nvcc)          [ 50%]
tests/a.py::test_three FAILED                                            [ 75%]
"""
    spread = """
[gw1] [  1%] PASSED tests/b.py::test_four[a b] 
[gw0] [100%] ERROR tests/b.py::test_five 
tests/b.py::test_six 
"""
    assert [tuple(test.values()) for test in gpu.outcomes(spread + alone)] == [
        ("tests/b.py::test_four[a b]", "passed"),
        ("tests/b.py::test_five", "error"),
        ("tests/a.py::test_one", "passed"),
        ("tests/a.py::test_two[2:4 x32]", "skipped"),
        ("tests/a.py::test_three", "failed"),
    ]


def test_real_output_of_pytest_is_counted(
    gpu: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the options that are used, whatever plugins are here."""
    tests = "def test_good(): pass\ndef test_bad(): assert 0\n"
    (tmp_path / "test_it.py").write_text(tests)
    monkeypatch.setattr(gpu, "PYTHON", Path(sys.executable))
    gpu.pytest(run, "tests", str(tmp_path / "test_it.py"), "--noconftest", jobs=1, limit=60)
    assert [test["outcome"] for test in run.tests] == ["passed", "failed"], run.log.read_text()
    assert "1 passed, 1 failed; first: " in run.stages[-1]["result"]


def test_a_compilers_error_is_the_reason_of_a_failed_build(gpu: Any) -> None:
    output = (
        "[1/9] good\nFAILED: x.o\n/src/x.cu(3): error: no such thing\n\nninja: build stopped.\n"
    )
    assert gpu.first_error(output) == "/src/x.cu(3): error: no such thing"
    output = "CMake Error at CMakeLists.txt:1 (project):\n  no Python.h\n\n-- Incomplete\n"
    assert gpu.first_error(output) == "CMake Error at CMakeLists.txt:1 (project): no Python.h"
    assert (
        gpu.first_error("ptxas x, line 1; error   : bad\nend\n") == "ptxas x, line 1; error : bad"
    )
    assert gpu.first_error("killed\n") == "killed"


@pytest.mark.parametrize(
    ("fails", "stages"),
    [
        ("none", ["configure", "build", "install"]),
        ("90a", ["configure", "build", "configure without 90a", "build without 90a", "install"]),
        ("all", ["configure", "build", "configure without 90a", "build without 90a"]),
    ],
)
def test_without_warpgroups_is_better_than_nothing(
    gpu: Any, run: Any, fails: str, stages: list[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A CMake whose build fails for these architectures."""
    cmake = tmp_path / "bin" / "cmake"
    cmake.parent.mkdir()
    cmake.write_text(
        "#!/bin/sh\n"
        f'[ $1 = -S ] && echo "$@" > {tmp_path}/configured\n'
        f"[ $1 = --build ] && {{ [ {fails} = all ] || grep -q {fails} {tmp_path}/configured; }} && "
        "echo 'x.cu: error: no' && exit 1\nexit 0\n"
    )
    cmake.chmod(0o755)
    run.environment["PATH"] = f"{cmake.parent}:/usr/bin:/bin"
    monkeypatch.setattr(gpu, "PYTHON", tmp_path / "venv" / "bin" / "python")
    monkeypatch.setattr(gpu, "BUILD", tmp_path)
    monkeypatch.setattr(gpu, "architectures", lambda: "90-real;90a-real")
    assert gpu.build(run, 1) == (fails != "all")
    assert [stage["name"] for stage in run.stages] == stages
    assert {s["result"] for s in run.stages} <= {"ok", "FAILED: x.cu: error: no"}


def a_python(folder: Path, script: str) -> Path:
    """A program in Python's place."""
    program = folder / "python"
    program.write_text("#!/bin/sh\n" + script)
    program.chmod(0o755)
    return program


def test_the_sanitizer_gets_some_tests_of_each_file(
    gpu: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = [f"tests/ops/test_b.py::{gpu.SANITIZED}[{i}]" for i in range(90)]
    listed += [f"tests/ops/test_a.py::{gpu.SANITIZED}[a b]", "91 tests collected"]
    (tmp_path / "listed").write_text("\n".join(listed))
    monkeypatch.setattr(gpu, "PYTHON", a_python(tmp_path, f"cat {tmp_path}/listed"))
    chosen = gpu.sanitized(run)
    assert chosen[-1] == f"tests/ops/test_a.py::{gpu.SANITIZED}[a b]"
    assert [chosen[0], chosen[1]] == [listed[0], listed[90 // gpu.MOST_SANITIZED]]
    assert len(chosen) == gpu.MOST_SANITIZED + 1


@pytest.mark.parametrize(
    ("told", "result"),
    [
        ("a.py::t PASSED [ 9%]", "stopped by the clock: no error in 1 tests"),
        ("========= Invalid __global__ read of size 4", "FAILED: stopped after 1 s"),
        ("========= Error: Race reported between", "FAILED: stopped after 1 s"),
    ],
)
def test_a_sanitizer_out_of_time_has_not_failed_for_that(
    gpu: Any, run: Any, told: str, result: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f"#!/bin/sh\necho '{told}'\nsleep 9\n")
    tool.chmod(0o755)
    run.environment["PATH"] = f"{tmp_path}:{run.environment['PATH']}"
    monkeypatch.setattr(gpu, "sanitized", lambda _: ["a.py::t"])
    monkeypatch.setattr(gpu, "SANITIZER_SECONDS", 1)
    gpu.sanitizer(run)
    assert [stage["result"] for stage in run.stages] == [result, result]


def test_a_peer_that_does_not_run_stops_no_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    harness = import_module("benchmarks.harness")

    def broken() -> None:
        raise ModuleNotFoundError("no such thing\nand more")

    def good() -> None:
        pass

    assert list(harness.working({harness.OURS: good, "peer": broken})) == [harness.OURS]
    told = capsys.readouterr().err
    assert told == "peer does not run here: left out: ModuleNotFoundError: no such thing\n"
    with pytest.raises(ModuleNotFoundError):
        harness.working({harness.OURS: broken, "peer": good})


# ---- The whole, with programs that only pretend --------------------------------------------------

PRETEND = """#!/bin/sh
case "$*" in
  *"--collect-only"*) echo "tests/ops/test_a.py::test_stays_within_its_arrays[a b]";;
  *"-m pytest"*"not cuda"*) echo "tests/a.py::test_b FAILED [100%]"; exit 1;;
  *"-m pytest"*) echo "tests/a.py::test_a PASSED [100%]";;
  *"run.py masked_adam"*)
    while [ "$1" != --file ]; do shift; done
    [ -e "$2" ] || echo op,case,device,sparsity,candidate,times_ours,share_of_limit > "$2"
    echo masked_adam,pix2pix-unet,cuda,0.75,gansparse,1,0.9 >> "$2"
    echo masked_adam,pix2pix-unet,cuda,0.75,torch fused + 2 mul,1.5,0 >> "$2"
    echo masked_adam,pix2pix-unet,cuda,0.75,torch foreach + 2 mul,2.5,0 >> "$2";;
  *"generators_cuda.py"*)
    while [ "$1" != --file ]; do shift; done
    echo generators,stargan b1 bfloat16 2:4,cuda,0.5,torch.compile max-autotune,1.25,0 >> "$2";;
  *) echo no such benchmark; exit 4;;
esac
"""
SANITIZER = '#!/bin/sh\necho "========= ERROR SUMMARY: 0 errors"\n'


@pytest.mark.parametrize("tool", [True, False])
def test_no_stage_stops_the_others_and_the_table_tells_all(
    gpu: Any, tool: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with_a_gpu(monkeypatch)
    programs = {"python": PRETEND, "nvcc": "#!/bin/sh\necho V13.0\n"}
    if tool:
        programs["compute-sanitizer"] = SANITIZER
    (tmp_path / "bin").mkdir()
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setattr(gpu, "PYTHON", tmp_path / "bin" / "python")
    monkeypatch.setattr(gpu, "nvcc", lambda: str(tmp_path / "bin" / "nvcc"))
    monkeypatch.setattr(gpu, "build", lambda *_: True)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("OUT", str(tmp_path / "out"))

    assert gpu.main() == 1
    rows = {row["name"]: row for row in gpu.read_csv(tmp_path / "out" / "gpu-some-gpu-x1.csv")}
    stages = {name: row["result"] for name, row in rows.items() if row["kind"] == "stage"}
    order = ("CUDA tests", "benchmark frechet", "benchmark gen", "compute-sanitizer", "other")
    first = [min(i for i, s in enumerate(stages) if s.startswith(name)) for name in order]
    assert first == sorted(first)
    page = (Path(gpu.__file__).with_name("README.md")).read_text(encoding="utf-8")
    told = ("the CUDA\ntests", "the benchmarks", "whole generator", "compute-sanitizer", "the rest")
    places = [page.index(name, page.index("## A CUDA machine")) for name in told]
    assert places == sorted(places)
    assert stages.pop("CUDA tests") == "ok; 1 passed"
    assert stages.pop("other tests").endswith("; 1 failed; first: tests/a.py::test_b")
    assert stages.pop("benchmark masked_adam") == "ok"
    assert stages.pop("benchmark frechet") == "FAILED: no such benchmark"
    if tool:
        assert stages.pop("compute-sanitizer memcheck") == "ok; ERROR SUMMARY: 0 errors"
    else:
        assert stages.pop("compute-sanitizer") == "not run: it is missing"
    assert rows["gpu"]["result"] == "Some GPU x1"
    adam = rows["masked_adam 54 M, fused + 2 mul / ours"]
    assert (adam["result"], adam["goal"], adam["met"]) == ("1.5", ">= 1.7", "NO")
    assert rows["the same, share of copy bandwidth"]["met"] == "yes"
    assert rows["50k x 2048 statistics, ms"]["result"] == "not measured"
    assert rows["StarGAN 2:4 bf16, batch 1, torch.compile / ours"]["result"] == "1.25"
    tests = gpu.read_csv(tmp_path / "out" / "gpu-some-gpu-x1-tests.csv")
    assert [test["outcome"] for test in tests] == ["passed", "failed"]
    table = capsys.readouterr().out.split("\n\n")
    assert "goal >= 1.7: NO" in table[-2]
    assert table[-1].startswith("written to ")


def test_old_rows_count_for_nothing(
    gpu: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an earlier run has measured is no result of this one."""
    old = tmp_path / "rows.csv"
    old.write_text("op,case,device,sparsity,candidate,times_ours\na,b,cuda,,c,1\n")
    monkeypatch.setattr(gpu, "PYTHON", Path("/bin/false"))
    gpu.benchmarks(run, old)
    assert run.rows == []


def test_a_goal_is_held_against_the_fastest_peer_of_our_best_case(gpu: Any) -> None:
    goals = import_module("benchmarks.goals")
    goal = goals.Goal("g", "conv", r"layer x\d+", "times_ours", 1.3, "0.5", "cudnn")

    def row(case: str, candidate: str, ratio: str, **other: str) -> dict[str, str]:
        found = {"op": "conv", "device": "cuda", "sparsity": "0.5", "times_ours": ratio}
        return {**found, "case": case, "candidate": candidate, **other}

    rows = [
        row("layer x32", "cudnn", "1.4"), row("layer x32", "cudnn channels_last", "1.1"),
        row("layer x64", "cudnn", "1.9"), row("layer x64", "cudnn channels_last", "1.2"),
        row("layer x64", "gansparse", "9"), row("layer b1 x64", "cudnn", "9"),
        row("layer x64", "cudnn", "9", sparsity="0.9"), row("layer x64", "cudnn", "9", op="other"),
        row("layer x64", "cudnn", "9", device="cpu"),
    ]  # fmt: skip
    assert goal.best(rows) == 1.2
    assert not goal.met(1.2)
    assert goal.best([]) is None
    milliseconds = goals.Goal("ms", "conv", ".*", "median_ms", 10.0)
    times = [row("a", "gansparse", "1", median_ms="9"), row("b", "gansparse", "1", median_ms="11")]
    assert milliseconds.best(times) == 9
    assert milliseconds.met(9)
