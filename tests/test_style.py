# SPDX-License-Identifier: Apache-2.0
"""The checks of the pre-commit hooks, so that CI runs them with the same versions."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


def files(*suffixes: str) -> list[Path]:
    roots = ("csrc", "gansparse", "tests", "benchmarks")
    return [p for r in roots for s in suffixes for p in sorted((ROOT / r).rglob(f"*{s}"))]


def run(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def test_ruff_check():
    assert not run(str(BIN / "ruff"), "check", "--no-cache", ".")


def test_ruff_format():
    assert not run(str(BIN / "ruff"), "format", "--check", "--no-cache", ".")


def test_mypy_strict():
    assert not run(str(BIN / "mypy"))


def test_clang_format():
    sources = [str(p) for p in files(".h", ".cpp", ".cu", ".cuh")]
    assert sources
    assert not run(str(BIN / "clang-format"), "--dry-run", "--Werror", *sources)


def test_the_pre_commit_hooks_are_these_checks():
    config = ROOT / ".pre-commit-config.yaml"
    assert not run(str(BIN / "pre-commit"), "validate-config", str(config))
    hooks = re.findall(r"entry: \.venv/bin/(.+?)(?: -|$)", config.read_text(), re.M)
    assert hooks == ["ruff check", "ruff format", "mypy", "clang-format"]


@pytest.mark.parametrize("suffix", [".py", ".h", ".cpp", ".cu", ".cuh"])
def test_no_file_is_longer_than_500_lines(suffix):
    long = {p.name: n for p in files(suffix) if (n := len(p.read_text().splitlines())) > 500}
    assert not long


def test_every_source_names_its_licence():
    bare = [
        str(p.relative_to(ROOT))
        for p in files(".py", ".h", ".cpp", ".cu", ".cuh")
        if p.read_text() and "SPDX-License-Identifier: Apache-2.0" not in p.read_text()[:200]
    ]
    assert not bare


def test_the_version_stands_once():
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)[1]
    assert not [str(p) for p in files(".py", ".cpp", ".h") if f'"{version}"' in p.read_text()]
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
