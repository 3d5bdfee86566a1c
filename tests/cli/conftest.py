# SPDX-License-Identifier: Apache-2.0
"""The command line in this process: starting another one takes seconds, most of them torch's."""

from __future__ import annotations

import sys
import warnings
from typing import NamedTuple

import pytest

from gansparse.cli import main


class Done(NamedTuple):
    """Exit status, standard output and standard error."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def gansparse(capsys, monkeypatch):
    """Runs a command."""
    monkeypatch.setenv("COLUMNS", "220")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # main() has its own

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["gansparse", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        printed = capsys.readouterr()
        return Done(left.value.code, printed.out, printed.err)

    return run
