# SPDX-License-Identifier: Apache-2.0
"""Standard output that takes nothing, or not every letter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ENVIRONMENT = os.environ | {"COLUMNS": "200", "NO_COLOR": "1"}


def test_standard_output_that_takes_nothing():
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "gansparse", "info"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr == (
        "gansparse: error: could not write the output: No space left on device\n"
    )


def test_a_terminal_without_unicode(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "gansparse", "data", "check", tmp_path],
        capture_output=True,
        text=True,
        env=ENVIRONMENT | {"PYTHONIOENCODING": "ascii"},
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert "dcgan" in done.stdout
