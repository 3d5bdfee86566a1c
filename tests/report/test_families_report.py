# SPDX-License-Identifier: Apache-2.0
"""The driver of the real trainings: one command makes pages of all comparisons that are done."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest
from made_up import make_run

from gansparse.report import load_report, to_markdown

ROOT = Path(__file__).parents[2]


@pytest.fixture
def driver(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    module = import_module("benchmarks.end_to_end.families")

    def call(*words):
        monkeypatch.setattr("sys.argv", ["families.py", *map(str, words)])
        module.main()

    return call


def test_every_comparison_has_a_page_and_all_tables_stand_on_one(driver, tmp_path):
    runs = [make_run(tmp_path / "runs" / name) for name in ("dcgan/techniques", "srgan/compress")]
    docs = tmp_path / "docs"
    driver("report", "--out", tmp_path / "runs", "--to", docs, "--sections", "scores", "curves")
    pages = ("dcgan-techniques.md", "srgan-compress.md")
    assert sorted(path.name for path in docs.glob("*.md")) == ["README.md", *pages]
    index = (docs / "README.md").read_text(encoding="utf-8")
    for run, page in zip(runs, pages, strict=True):
        assert to_markdown(load_report(run)) in index
        assert f"]({page})" in index
        shown = re.findall(r"\]\((.+)\)$", (docs / page).read_text(encoding="utf-8"), re.M)
        assert len(shown) == 1 + 3
        assert all((docs / file).stat().st_size > 500 for file in shown)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("report",), "holds no comparison yet"),
        (("baseline", "--data", "nowhere"), "baseline needs a family and --data"),
        (("baseline", "pix2pix", "--data", "nowhere"), "is not there: --help tells what --data"),
    ],
)
def test_what_is_missing_is_told(driver, tmp_path, words, message, capsys):
    with pytest.raises(SystemExit) as left:
        driver(*words, "--out", tmp_path / "runs")
    assert left.value.code == 2
    assert message in capsys.readouterr().err
