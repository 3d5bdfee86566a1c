# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

from made_up import make_run
from rich.console import Console

from gansparse.report import (
    fid_table,
    headline,
    load_report,
    markdown_page,
    to_csv,
    to_markdown,
)
from gansparse.report.panels import Image, Section
from gansparse.report.table import columns, table_rows


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


def test_what_prunes_nothing_is_no_rival_of_what_does(tmp_path):
    """Technique m, say, may be far the best: its place is at 0 %, and no one's of 50 %."""
    report = load_report(make_run(tmp_path, sparsities=(0.5,)))
    runs = list(report.runs)
    other = next(i for i, run in enumerate(runs) if run.key != "b")
    runs[other] = replace(runs[other], fid=0.1, achieved_sparsity=0.0)
    changed = replace(report, runs=tuple(runs))
    group = next(group for group in changed.groups if group.first.key == runs[other].key)
    assert group.place == ("dense", 0.0)
    assert "50 %" not in group.title
    best = [row.cells[0] for row in table_rows(changed) if row.best]
    assert not any(name.startswith(f"{runs[other].key} ") for name in best)
    assert group.name not in headline(changed)


def test_a_small_dense_network_is_a_rival_of_as_many_weights(tmp_path):
    report = load_report(make_run(tmp_path, sparsities=(0.5,)))
    runs = list(report.runs)
    other = next(i for i, run in enumerate(runs) if run.key != "b")
    runs[other] = replace(runs[other], key="c", fid=0.1, achieved_sparsity=0.0)
    changed = replace(report, runs=tuple(runs))
    assert "At 50 % element" in plain(headline(changed))
    assert f"Better here is {runs[other].technique}" in plain(headline(changed))


def test_the_headline_is_of_what_was_pruned(tmp_path):
    """Without b, too: not of the field of those that prune nothing, however many they are."""
    report = load_report(make_run(tmp_path, sparsities=(0.5,)))
    pruned = next(run for run in report.runs if run.key != "b")
    whole = [replace(pruned, key=k, technique=k, achieved_sparsity=0.0, fid=0.1) for k in "am"]
    changed = replace(report, runs=(pruned, *whole))
    assert plain(headline(changed)).startswith("At 50 % element")


def test_a_row_without_rivals_is_not_marked(tmp_path):
    report = load_report(make_run(tmp_path, sparsities=(0.5, 0.9)))
    alone = replace(report, runs=tuple(run for run in report.runs if run.key == "b"))
    assert not any(row.best for row in table_rows(alone))


def test_figures_in_markdown_are_named_by_words(run):
    image = Image(b"", "a row: <b>*of*\n[pictures]", "by_the_way", chart=False)
    page = markdown_page(
        load_report(run), [Section("rows", "Rows", "As they are.", "", [image])], "a folder"
    )
    assert page.endswith(
        "\n\n## Rows\n\nAs they are.\n\nby\\_the\\_way:\n\n"
        "![a row: \\<b\\>\\*of\\* \\[pictures\\]](a%20folder/rows-1.webp)\n"
    )


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


def add_scores_and_a_failure(document):
    document["dense"] |= {"views": {"a to b": 9.0}, "measures": {"Set5 PSNR": 30.0625}}
    for run in document["runs"]:
        if run["key"] == "b":
            run["views"] = {"a to b": 10.0 + run["seed"]}
            run["measures"] = {"Set5 PSNR": 30.5, "Set5 SSIM": 0.8625}
    reason = "step 2, G phase: the loss is nan | inf"
    place = {"granularity": "filter", "sparsity": 0.9, "seed": 1, "label": ""}
    document["failed"] = [{"key": "k", "technique": "[b]distilled", "reason": reason, **place}]


def test_further_scores_are_columns_and_failures_rows(tmp_path):
    folder = make_run(tmp_path, seeds=(0, 1))
    document = json.loads((folder / "report.json").read_text())
    add_scores_and_a_failure(document)
    (folder / "report.json").write_text(json.dumps(document))
    report = load_report(folder)
    names = ("FID a to b", "Set5 PSNR", "Set5 SSIM")
    assert columns(report)[5:8] == names
    rows = table_rows(report)
    assert rows[0].cells[5:8] == ("9", "30.06", "–")
    assert rows[1].cells[5:8] == ("10.5 (10–11)", "30.5 (30.5–30.5)", "0.8625 (0.8625–0.8625)")
    assert rows[2].cells[5:8] == ("–",) * 3
    assert [len(row.cells) for row in rows] == [len(columns(report))] * len(rows)
    assert plain(" ".join(rows[-1].cells[:4])) == "k  [b]distilled, seed 1 filter 90 % failed"

    by_run = list(csv.DictReader(io.StringIO(to_csv(report))))
    assert [row["FID a to b"] for row in by_run] == ["9.0", "10.0", "11.0", *[""] * 5]
    assert float(by_run[0]["Set5 PSNR"]) == 30.0625
    assert by_run[-1]["failed"] == "step 2, G phase: the loss is nan | inf"
    assert (by_run[-1]["fid"], by_run[-1]["sparsity"], by_run[-1]["seed"]) == ("", "0.9", "1")
    assert all(row["failed"] == "" for row in by_run[:-1])

    text = io.StringIO()
    Console(file=text, width=240).print(fid_table(report))
    assert "Set5 SSIM" in text.getvalue()
    narrow = io.StringIO()
    Console(file=narrow, width=80).print(fid_table(report))
    assert "…" not in narrow.getvalue(), "folded, not cut"
    assert "failed: k  [b]distilled, seed 1, filter 90 %: step 2" in plain(text.getvalue())


def test_markdown_page(edit):
    page = markdown_page(load_report(edit(add_scores_and_a_failure)))
    parts = page.split("\n\n")
    assert parts[0] == "# DCGAN on digits at 75 % sparsity"
    assert parts[1].startswith("At 75")
    assert len({line.replace("\\|", "").count("|") for line in parts[2].splitlines()}) == 1
    assert "lenet-mnist" in parts[3]
    assert plain(parts[4]) == (
        "- failed: k  [b]distilled, seed 1, filter 90 %: step 2, G phase: the loss is nan \\| inf"
    )
    assert "`gansparse demo --out runs/demo`" in parts[5]
