# SPDX-License-Identifier: Apache-2.0
"""`.ci/setup`: which torch a machine gets. Without a CUDA device not the one of gigabytes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SETUP = Path(__file__).parents[1] / ".ci" / "setup"
LOCAL = "python -m pip install --no-index --no-deps torch==2.13.0"
CPU_INDEX = "uv pip install --torch-backend=cpu torch>=2.6"
PYPI = "python -m pip install torch>=2.6"


def program(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)


def set_up(folder, *, device, local=False, uv=False):
    """Runs the script with a pip, a uv and an nvidia-smi that only note how they are called."""
    log, bin_ = folder / "log", folder / "venv" / "bin"
    program(folder / "tools" / "nvidia-smi", f"exit {int(not device)}")
    answers = (f"*'import torch'*) exit 1;; *--no-index*) exit {int(not local)};;",)
    program(bin_ / "python", f'echo "python $*" >> {log}', 'case "$*" in', *answers, "esac")
    program(bin_ / "uv", f'echo "uv $*" >> {log}', f"exit {int(not uv)}")
    return subprocess.run(
        ["bash", SETUP, folder / "venv"],
        env={"PATH": f"{folder / 'tools'}:{os.environ['PATH']}", "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )


def installs_of_torch(folder):
    """The calls that name torch, without options that choose nothing."""
    calls = [line.split() for line in (folder / "log").read_text().splitlines()]
    chosen = ("--no-index", "--no-deps", "--torch-backend=cpu", "-m")
    return [
        " ".join(w for w in call if not w.startswith(("-", "/")) or w in chosen)
        for call in calls
        if call[-1].startswith("torch") and "install" in call
    ]


@pytest.mark.parametrize(
    ("machine", "calls"),
    [
        ({"device": True, "local": True, "uv": True}, [PYPI]),
        ({"device": False, "local": True, "uv": True}, [LOCAL]),
        ({"device": False, "uv": True}, [LOCAL, CPU_INDEX]),
        ({"device": False}, [LOCAL, CPU_INDEX, PYPI]),
    ],
    ids=["device", "local-file", "cpu-index", "nothing-else"],
)
def test_the_torch_a_machine_gets(tmp_path, machine, calls):
    done = set_up(tmp_path, **machine)
    assert done.returncode == 0, done.stderr
    assert installs_of_torch(tmp_path) == calls
    assert ("which brings CUDA along" in done.stderr) == (len(calls) == 3), "gigabytes are told"
    assert (tmp_path / "venv" / ".ready").exists()


def test_an_old_python_is_one_line_and_status_2(tmp_path):
    program(tmp_path / "old", 'case "$*" in *version_info*) exit 1;; esac', "echo Python 3.9.2")
    done = subprocess.run(
        ["bash", SETUP, tmp_path / "venv"],
        env={**os.environ, "PYTHON": str(tmp_path / "old")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"gansparse needs Python 3.10 or newer; {tmp_path / 'old'} is Python 3.9.2. Set PYTHON=..."
    ]
    assert not (tmp_path / "venv").exists()
