# SPDX-License-Identifier: Apache-2.0
"""`gansparse compare` and `gansparse sweep`: what is run of which options, and how it ends."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from gansparse.cli import app
from gansparse.cli.compare import (
    devices_for,
    entries_of,
    parse_techniques,
    run_entries,
)
from gansparse.compress import TrainConfig
from gansparse.errors import GansparseError, InputError
from gansparse.files import save_tensors
from gansparse.models import DCGANDiscriminator, DCGANGenerator
from gansparse.progress import ProgressBars

ENVIRONMENT = {"COLUMNS": "200", "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A batch of digits, a small pair, and a second generator of another seed."""
    folder = tmp_path_factory.mktemp("compare")
    digits = np.random.default_rng(0).integers(0, 256, (64, 28, 28), dtype=np.uint8)
    labels = np.arange(64, dtype=np.int64) % 10
    np.savez(folder / "mnist.npz", x_train=digits, y_train=labels, x_test=digits, y_test=labels)
    for name, seed in (("g", 0), ("second", 1)):
        torch.manual_seed(seed)
        net = DCGANGenerator(nz=8, ngf=4, image_size=32)
        save_tensors(folder / f"{name}.safetensors", net.state_dict())
    save_tensors(folder / "d.safetensors", DCGANDiscriminator(ndf=4, image_size=32).state_dict())
    return folder


def arguments(folder, command, out, *more):
    pair = ("--generator", folder / "g.safetensors", "--discriminator", folder / "d.safetensors")
    small = ("--steps", 3, "--batch-size", 4, "--num-samples", 20, "--device", "cpu")
    return [
        *map(str, (command, "--data", folder / "mnist.npz", *pair, *small, "--out", out, *more))
    ]


def invoke(*words):
    return CliRunner(env=ENVIRONMENT).invoke(app, arguments(*words))


def keys(out):
    runs = json.loads((out / "report.json").read_text())["runs"]
    return [(run["key"], run["granularity"], run["sparsity"], run["seed"]) for run in runs]


def test_compare_ends_with_table_and_reports(workplace, tmp_path):
    out = tmp_path / "run"
    more = ("--techniques", "b,g", "--sparsity", 0.5, "--seeds", "0,1", "--set", "ema=0")
    second = ("--yardstick", workplace / "second.safetensors")
    done = invoke(workplace, "compare", out, *more, *second)
    assert done.exit_code == 0, done.output
    assert keys(out) == [(key, "element", 0.5, seed) for seed in (0, 1) for key in ("b", "g")]
    assert "self-supervised" in done.stdout
    assert str(out / "report.html") in done.stdout
    assert "all runs: 4/4" in done.stderr
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Yardstick" in page
    assert "dcgan: 2 techniques, element 50 %" in page
    table = list(csv.DictReader((out / "report.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["key"] for row in table] == ["", "b", "g", "b", "g"]
    assert (out / "report.md").read_text(encoding="utf-8").startswith("# dcgan")
    chosen = json.loads((out / "b-element-0.5-seed1" / "config.json").read_text())
    assert (chosen["ema"], chosen["steps"], chosen["seed"]) == (0, 3, 1)

    before = (out / "b-element-0.5-seed0" / "result.json").stat().st_mtime_ns
    again = invoke(workplace, "compare", out, *more, "--granularities", "element,filter")
    assert again.exit_code == 0, again.output
    assert len(keys(out)) == 8
    assert "all runs: 4/8" in again.stderr, "what is done is not run again"
    assert (out / "b-element-0.5-seed0" / "result.json").stat().st_mtime_ns == before


def test_sweep_by_default_is_ours_by_sparsity_and_granularity(workplace, tmp_path):
    done = invoke(workplace, "sweep", tmp_path, "--sparsities", "0.5,0.9")
    assert done.exit_code == 0, done.output
    assert keys(tmp_path) == [("b", g, s, 0) for g in ("element", "filter") for s in (0.5, 0.9)]
    assert "Pictures by sparsity" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_failed_run_is_in_the_table_and_the_status_is_2(workplace, tmp_path):
    done = invoke(workplace, "compare", tmp_path, "--techniques", "d,g", "--set", "d_lr=1e38")
    assert done.exit_code == 2, done.output
    assert [key for key, *_ in keys(tmp_path)] == ["g"]
    assert "failed: d  one-shot pruning, fine-tuning, seed 0, element" in done.stdout
    assert "phase: the loss is" in done.stdout


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--techniques", "a-z"), "--techniques: letters of Table 1"),
        (("--techniques", "d-b"), "--techniques: letters of Table 1"),
        (("--techniques", ""), "--techniques: letters of Table 1"),
        (("--sparsity", "half"), "--sparsities: numbers with commas between, got 'half'"),
        (("--sparsity", "1.5"), "sparsity must be 0 <= sparsity < 1, got 1.5"),
        (("--seeds", "0,x"), "--seeds: numbers with commas"),
        (("--techniques", "m", "--bits", "0"), "bits must be at least 1, got 0"),
        (("--techniques", "m", "--bits", "17"), "bits must be at most 16, got 17"),
        (
            ("--granularity", "row"),
            "--granularities: of element, vector, block, kernel, filter, 2:4; got",
        ),
        (("--set", "lamda=1"), "no setting 'lamda'"),
        (("--extractor", "eye"), "no extractor 'eye'"),
        (("--mode", "clean"), "extractor lenet-mnist has no option 'mode'"),
        (("--weights", "absent.pth"), "no weights file at absent.pth"),
        (("--weight", "rec"), "--weight is NAME=VALUE"),
        (("--weight", "style=2"), "weight for unknown term 'style'"),
        (("--yardstick", "absent.pth"), "no weights file at absent.pth"),
        (("--direction", "AtoB"), "task dcgan has no option direction"),
    ],
)
def test_bad_options_are_one_line_and_write_nothing(workplace, tmp_path, more, message):
    out = tmp_path / "out"
    done = invoke(workplace, "compare", out, "--techniques", "g", *more)
    assert isinstance(done.exception, GansparseError), done.output
    assert message in str(done.exception)
    assert "\n" not in str(done.exception)
    assert not out.exists()


def test_ctrl_c_ends_all_processes_and_the_same_command_goes_on(workplace, tmp_path):
    out = tmp_path / "run"
    more = ("--techniques", "d,h", "--steps", 40, "--save-every", 4, "--threads", 1)
    words = arguments(workplace, "compare", out, *more, "--processes", 2)
    process = subprocess.Popen(
        [sys.executable, "-m", "gansparse", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **ENVIRONMENT},
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while len({path.parent for path in out.glob("*/checkpoints/step-*")}) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no checkpoints for two minutes"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.strip().endswith("stopped; the same command goes on where it was")
    assert "Traceback" not in errors
    with pytest.raises(ProcessLookupError):  # nothing of its session is left
        for _ in range(100):
            os.killpg(process.pid, 0)
            time.sleep(0.05)
    assert not list(out.glob("**/.*-*")), "no half-written files"

    done = invoke(workplace, "compare", out, *more)
    assert done.exit_code == 0, done.output
    assert [key for key, *_ in keys(out)] == ["d", "h"]


@pytest.mark.parametrize(("command", "default"), [("compare", "a-o"), ("sweep", "element,filter")])
def test_help_shows_examples_options_and_defaults(command, default):
    shown = CliRunner(env={**ENVIRONMENT, "COLUMNS": "120"}).invoke(app, [command, "--help"])
    assert shown.exit_code == 0
    words = (f"gansparse {command}", "--sparsities", "Letters of Table 1", f"[default: {default}]")
    for word in words:
        assert word in shown.stdout, word


def test_techniques():
    assert parse_techniques("a-o") == list("abcdefghijklmno")
    assert parse_techniques("b, d,b") == ["b", "d"]
    with pytest.raises(InputError, match="got 'b,,d'"):
        parse_techniques("b,,d")


def test_what_does_not_prune_runs_once():
    grid = [(g, s) for g in ("element", "filter") for s in (0.5, 0.9)]
    entries = entries_of(TrainConfig(steps=1), ["a", "b", "c", "m"], grid, [0, 1])
    counts = {key: sum(e.config.recipe == key for e in entries) for key in "abcm"}
    assert counts == {"a": 2, "b": 8, "c": 4, "m": 2}
    assert len({entry.name for entry in entries}) == len(entries)
    assert [e.config.sparsity for e in entries if e.config.recipe == "c"] == [0.5, 0.9, 0.5, 0.9]


def test_technique_m_runs_with_each_number_of_bits():
    base = TrainConfig(steps=1).with_settings(["bits=3"])
    entries = entries_of(base, ["b", "m"], [("element", 0.5), ("filter", 0.5)], [0], [1, 2, 4])
    assert [e.name for e in entries] == [
        "b-element-0.5-seed0",
        "b-filter-0.5-seed0",
        "m-element-0.5-seed0-1bits",
        "m-element-0.5-seed0-2bits",
        "m-element-0.5-seed0",
    ]
    assert [e.config.bits for e in entries] == [3, 3, 1, 2, 4]
    assert [e.identity()["label"] for e in entries[1:3]] == ["ours", "1 bit"]
    (own,) = entries_of(base, ["m"], [("element", 0.5)], [0])
    assert own.config.bits == 3


def test_a_dry_run_lists_all_runs_and_writes_nothing(workplace, tmp_path):
    out = tmp_path / "run"
    more = ("--techniques", "b,c,m", "--granularities", "element,filter")
    assert invoke(workplace, "compare", out, "--techniques", "b").exit_code == 0
    before = sorted(out.rglob("*"))
    done = invoke(workplace, "compare", out, *more, "--dry-run", "--seeds", "0,1")
    assert done.exit_code == 0, done.output
    assert sorted(out.rglob("*")) == before
    lines = [line for line in done.stdout.splitlines() if "seed" in line]
    assert len(lines) == 2 * 4
    assert sum("done" in line for line in lines) == 1
    (dense,) = {line.split("│")[2].split(" -> ")[0].strip() for line in lines if "->" in line}
    assert dense == f"{sum(p.numel() for p in DCGANGenerator(8, 4, 1, 32).parameters()):,}"
    assert "fails" not in done.stdout
    filters = next(line for line in lines if "b-filter" in line)
    assert "(51.3%)" in filters, "half, but for norms and the layer that makes the picture"
    assert "100.0%" in next(line for line in lines if "m-element" in line)
    last = done.stdout.split("together")[1]
    assert "peak memory" in last
    assert "GiB" in last
    absent = invoke(workplace, "sweep", tmp_path / "none", "--dry-run")
    assert absent.exit_code == 0, absent.output
    assert not (tmp_path / "none").exists()


def test_each_gpu_gets_a_process(monkeypatch, workplace):
    """On a machine with three GPUs; nothing is computed."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    asked = {}

    class Asked:
        device = torch.device("cuda")

        def run(self, entries, **options):
            asked.update(options)

    entries = entries_of(TrainConfig(steps=1), ["b", "d", "g", "k"], [("element", 0.5)], [0])
    with ProgressBars() as bars:
        run_entries(Asked(), entries, bars)
        assert [device.index for device in asked["devices"]] == [0, 1, 2]
        assert asked["threads"] == 4
        assert len(asked["watchers"]) == 3
        run_entries(Asked(), entries[:2], bars)
        assert [device.index for device in asked["devices"]] == [0, 1], "no more than runs"
        run_entries(Asked(), entries[:1], bars)
        assert asked["devices"] == (), "one run needs no further process"


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    cuda = torch.device("cuda")
    assert [d.index for d in devices_for(cuda, 0)] == [0, 1, 2]
    assert [d.index for d in devices_for(cuda, 5)] == [0, 1, 2, 0, 1]
    assert devices_for(torch.device("cuda:1"), 0) == [torch.device("cuda:1")]
    assert devices_for(torch.device("cpu"), 0) == [torch.device("cpu")]
    assert devices_for(torch.device("cpu"), 2) == [torch.device("cpu")] * 2
