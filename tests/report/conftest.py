# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_up import make_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


@pytest.fixture
def edit(run: Path):
    """Changes ``report.json`` by a function of the document."""

    def change(how) -> Path:
        path = run / "report.json"
        document = json.loads(path.read_text())
        how(document)
        path.write_text(json.dumps(document))
        return run

    return change
