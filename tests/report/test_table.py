# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import io

import pytest
from made_up import make_run
from rich.console import Console

from gansparse.report import fid_table, headline, load_report, to_csv, to_markdown
from gansparse.report.table import duration, table_rows


def plain(text):
    return text.replace("\N{NO-BREAK SPACE}", " ")


def test_terminal_table(run):
    text = io.StringIO()
    Console(file=text, width=160).print(fid_table(load_report(run)))
    shown = plain(text.getvalue())
    for told in ("dense (original)", "self-supervised (ours)", "75 %", "893,500", "lenet-mnist"):
        assert told in shown


def test_brackets_in_names_are_no_markup(edit):
    def change(document):
        document["title"] = "[red]a[/red]"
        document["runs"][0]["label"] = "[/x]"

    text = io.StringIO()
    Console(file=text, width=200).print(fid_table(load_report(edit(change))))
    assert "[red]a[/red]" in text.getvalue()
    assert "[/x]" in text.getvalue()


def test_the_lowest_of_each_field_is_marked(tmp_path):
    report = load_report(make_run(tmp_path, sparsities=(0.5, 0.9), seeds=(0, 1)))
    rows = table_rows(report)
    assert [row.best for row in rows] == [False, True, False, False, True, False, False]
    assert rows[0].dense
    mean = sum(run.fid for run in report.runs[:2]) / 2
    low, high = report.runs[0].fid, report.runs[1].fid
    assert rows[1].cells[3] == f"{mean:.4g} ({low:.4g}–{high:.4g})"
    assert rows[1].cells[4] == f"{mean / 27.9:.2f}"


def test_markdown(edit):
    def change(document):
        document["runs"][0]["technique"] = "a | b"

    lines = to_markdown(load_report(edit(change))).splitlines()
    assert len(lines) == 2 + 1 + 3
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert lines[3].count("**") == 16, "the best row is bold in all eight cells"


def test_csv_keeps_every_digit(tmp_path):
    report = load_report(make_run(tmp_path, seeds=(0, 1)))
    rows = list(csv.DictReader(io.StringIO(to_csv(report))))
    assert [float(row["fid"]) for row in rows] == [27.9, *(run.fid for run in report.runs)]
    assert rows[0]["technique"] == "dense"
    assert float(rows[3]["fid_ratio"]) == report.runs[2].fid / 27.9


def test_headline_when_ours_wins(run):
    report = load_report(run)
    ours, rival = report.runs[0].fid, report.runs[2].fid
    assert plain(headline(report)) == (
        f"At 75 % element sparsity, self-supervised (ours) reaches FID {ours:.4g}, "
        f"{ours / 27.9:.2f} times the dense generator's 27.9, after 4.2 % of its training steps. "
        f"The next best is knowledge distillation with {rival:.4g}."
    )


def test_headline_is_honest_when_ours_loses(edit):
    def lose(document):
        document["runs"][2]["fid"] = 1.5

    text = headline(load_report(edit(lose)))
    assert "self-supervised (ours) reaches" in text
    assert text.endswith("Better here is knowledge distillation with 1.5.")


def test_headline_without_ours_or_rivals(edit):
    def only(document):
        document["runs"] = document["runs"][1:2]
        del document["runs"][0]["share_of_training"]

    text = headline(load_report(edit(only)))
    assert "one-shot pruning, fine-tuning reaches FID" in text
    assert "after" not in text
    assert "best" not in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"), (0.0, "0 s"), (4.26, "4.3 s"), (9.7, "10 s"), (59.4, "59 s"),
        (59.6, "1 min 00 s"), (3599.7, "1 h 00 min"), (7500, "2 h 05 min"),
    ],
)  # fmt: skip
def test_duration(seconds, text):
    assert duration(seconds) == text
