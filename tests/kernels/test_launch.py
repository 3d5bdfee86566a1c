# SPDX-License-Identifier: Apache-2.0
"""The host side of a launch, against a CUDA runtime that fails on request."""

from __future__ import annotations

import subprocess
from pathlib import Path

import building


def test_errors_guards_and_memory(programs: Path) -> None:
    program = building.build_for_host("launch_driver", building.HERE / "fake_cuda", programs)
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
