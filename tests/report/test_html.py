# SPDX-License-Identifier: Apache-2.0
"""The page: what is in it, that it needs nothing else, and that it is whole or not there."""

from __future__ import annotations

import base64
import io
import json
import os
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from made_up import blobs, make_run
from PIL import Image

from gansparse.compress.samples import save_samples
from gansparse.errors import InputError, OutputError
from gansparse.report import load_report, to_csv, to_markdown, write_markdown, write_report
from gansparse.report.html import render
from gansparse.report.panels import Panels

VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """Elements with their attributes, the text, and a check that tags close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def test_page_holds_everything(run):
    path = write_report(run)
    assert path == run / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    headings = [tag for tag, _ in page.elements if tag in ("h1", "h2")]
    assert headings == ["h1", *["h2"] * 6]
    text = page.text.replace("\N{NO-BREAK SPACE}", " ")
    for told in (
        "self-supervised (ours)", "knowledge distillation", "27.9", "893,500", "3 min 20 s",
        "4.21 %", "gansparse demo --out runs/demo", "torch 2.13.0", "lenet-mnist", "Some processor",
        "10,000 generated against 60,000 real", "batch size", "2026-01-02",
    ):  # fmt: skip
        assert told in text, told
    # 1 chart of scores, 1 of all techniques, 4 grids, 3 rows of residuals, 3 loss curves
    assert len(page.all("img")) == 1 + 1 + 4 + 3 + 3
    assert len(page.all("tr")) == 1 + 1 + 3
    # For phones, which show cells without their columns' heads, and for paper.
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all(
        "meta"
    )
    assert all(cell["data-label"] for cell in page.all("td"))
    source = path.read_text(encoding="utf-8")
    assert re.search(r"@media screen and \(max-width: \d+rem\) \{\s*table\.scores", source)
    assert "@media print" in source


def test_every_image_is_whole_and_described(run):
    page = Page(write_report(run).read_text(encoding="utf-8"))
    for image in page.all("img"):
        assert len(image["alt"]) > 20
        kind, data = re.fullmatch(r"data:image/(svg\+xml|webp);base64,(.+)", image["src"]).groups()
        raw = base64.b64decode(data, validate=True)
        if kind == "webp":
            assert min(Image.open(io.BytesIO(raw)).size) > 300
        else:
            assert ElementTree.fromstring(raw).tag.endswith("svg")


def test_nothing_is_loaded_from_elsewhere(run):
    source = write_report(run).read_text(encoding="utf-8")
    page = Page(source)
    assert not page.all("script") + page.all("link") + page.all("iframe") + page.all("object")
    for _, attributes in page.elements:
        for name in ("src", "href", "srcset", "data"):
            assert (attributes.get(name) or "data:").startswith("data:")
        assert not any(name.startswith("on") for name in attributes)
    assert "@import" not in source
    assert "url(" not in source
    assert "default-src 'none'" in source


def test_everything_is_escaped(edit):
    evil = "<script>alert('x')</script>\" onload=\"x & {{ 7 * 7 }} $\\frac{$"

    def poison(document):
        document.update(title=evil, command=evil, data=evil, machine={evil: evil})
        document["metric"].update(extractor=evil, mode=evil)
        for entry in document["runs"]:
            entry.update(technique=evil, label=evil)
            entry["config"][evil] = evil

    folder = edit(poison)
    history = folder / "b-element-0.75-0" / "history.jsonl"
    history.write_text(history.read_text().replace('"gen"', '"_$x_{$<b>"'))
    page = Page(write_report(folder).read_text(encoding="utf-8"))
    assert not page.all("script")
    assert not any("onload" in attributes for _, attributes in page.elements)
    assert page.text.count("<script>alert('x')</script>") > 8
    assert "49" not in page.text


def test_the_same_document_gives_the_same_page(run):
    assert write_report(run).read_bytes() == write_report(run).read_bytes()


def test_size_of_a_full_sweep(tmp_path):
    """Six runs with pictures of DCGAN's size stay under 1.5 MB."""
    run = make_run(tmp_path, sparsities=(0.5, 0.9), size=64, samples=64, steps=500)
    assert write_report(run).stat().st_size < 1_500_000


def test_several_seeds_and_sparsities(tmp_path):
    run = make_run(tmp_path, sparsities=(0.5, 0.75), seeds=(0, 1, 2), steps=5)
    report = load_report(run)
    page = Page(render(report, Panels(report).sections()))
    assert len(page.all("tr")) == 1 + 1 + 6, "one row a group, not a run"
    assert "mean (lowest–highest) of 3 seeds" in page.text
    assert "seed 0" in page.text
    assert any("over sparsity" in image["alt"] for image in page.all("img"))


def test_the_least_there_can_be(edit):
    def strip(document):
        for name in list(document):
            if name not in ("title", "metric", "dense", "runs"):
                del document[name]
        document["metric"] = {"name": "FID"}
        document["dense"] = {"fid": 0}
        keep = ("key", "technique", "sparsity", "granularity", "fid")
        document["runs"] = [{name: document["runs"][0][name] for name in keep}]

    page = Page(write_report(edit(strip)).read_text(encoding="utf-8"))
    assert len(page.all("img")) == 1
    assert "nan" not in page.text


def test_yardstick(edit):
    def add(document):
        samples = document["dense"]["samples"]
        document["yardstick"] = {"samples_a": samples, "samples_b": samples}

    assert "Yardstick" in Page(write_report(edit(add)).read_text(encoding="utf-8")).text


def headings(page):
    return [text for text in re.findall("<h2>(.*?)</h2>", page)]


def views(names, channels, size, noise, count=12):
    return {
        name: list(blobs(count, channels, size, noise * (1 + i))) for i, name in enumerate(names)
    }


def test_several_domains_with_inputs_stand_side_by_side(edit):
    domains = ("Black_Hair", "Male", "<i>Young")

    def add(document):
        rows = [document["dense"], *document["runs"]]
        for row, noise in zip(rows, (0, 0.1, 0.2, 0.3), strict=True):
            row["views"] = {name: row["fid"] + i for i, name in enumerate(domains)}
            save_samples(folder / row["samples"], views(domains, 3, 16, noise))
        save_samples(folder / "in.safetensors", views(domains, 1, 8, 0))
        save_samples(folder / "two.safetensors", views(domains, 3, 16, 0.05))
        document["dense"]["input"] = "in.safetensors"
        dense = document["dense"]["samples"]
        document["yardstick"] = {"samples_a": dense, "samples_b": "two.safetensors", "fid": 28.25}
        reason = "step 2: <script>the loss is nan"
        failed = {**document["runs"][2], "sparsity": 0.9, "reason": reason}
        document["failed"] = [failed]

    folder = edit(lambda document: None)
    source = write_report(edit(add)).read_text(encoding="utf-8")
    page = Page(source)
    assert headings(source)[1] == "Techniques side by side"
    (side_by_side,) = [i["alt"] for i in page.all("img") if "a row each" in (i["alt"] or "")]
    assert "k  knowledge distillation" in side_by_side
    rows = [image["alt"] for image in page.all("img") if "amplified" in (image["alt"] or "")]
    assert len(rows) == 3 + 1
    assert all(": input, " in alt for alt in rows)
    assert "FID 27.9 and 28.25" in page.text
    assert "FID <i>Young" in page.text
    assert "90 %: step 2: <script>the loss is nan" in page.text.replace("\N{NO-BREAK SPACE}", " ")
    assert not page.all("script")


def test_super_resolution_has_details_and_a_sweep_pictures_by_sparsity(tmp_path):
    run = make_run(tmp_path, sparsities=(0.5, 0.75), channels=3, size=32, samples=3, steps=5)
    document = json.loads((run / "report.json").read_text())
    document["runs"] = [row for row in document["runs"] if row["key"] == "b"]
    for name, size in (("input", 8), ("truth", 32)):
        document["dense"][name] = f"{name}.safetensors"
        save_samples(run / f"{name}.safetensors", {"": list(blobs(3, 3, size, 0))})
    (run / "report.json").write_text(json.dumps(document))
    source = write_report(run).read_text(encoding="utf-8")
    assert headings(source)[3:5] == ["Details", "Pictures by sparsity"]
    alts = [image["alt"] for image in Page(source).all("img")]
    details = [alt for alt in alts if "ground truth" in alt]
    assert len(details) == 2 * 2, "two pictures at each of two sparsities"
    assert details[0].endswith("ground truth, dense (original), element.")
    assert len([alt for alt in alts if "a row for each sparsity: dense, 50" in alt]) == 1


def test_the_chart_shows_what_was_run_at_one_sparsity_beside_the_lines(tmp_path):
    run = make_run(tmp_path, sparsities=(0.5, 0.75), channels=1, size=16, samples=2, steps=5)
    document = json.loads((run / "report.json").read_text())
    b = [row for row in document["runs"] if row["key"] == "b"]
    document["runs"] = [*b, {**b[0], "granularity": "filter", "fid": 77.5}]
    (run / "report.json").write_text(json.dumps(document))
    page = Page(write_report(run).read_text(encoding="utf-8"))
    (chart,) = [i["alt"] for i in page.all("img") if i["alt"].startswith("Chart of FID")]
    assert "filter: 77.5 at 50" in chart


def test_tables_and_figures_stand_beside_the_page(run):
    (run / "report").mkdir()
    (run / "report" / "of-another-run.svg").touch()
    source = write_report(run).read_text(encoding="utf-8")
    page, report = Page(source), load_report(run)
    assert (run / "report.csv").read_text(encoding="utf-8") == to_csv(report)
    text = (run / "report.md").read_text(encoding="utf-8")
    assert to_markdown(report) in text
    shown = re.findall(r"^!\[(.+)\]\((report/[a-z]+-\d\.(?:svg|webp))\)$", text, re.M)
    files = [run / name for _, name in shown]
    assert sorted((run / "report").iterdir()) == sorted(files)
    embedded = [image["src"].split(",")[1] for image in page.all("img")]
    assert [base64.b64decode(data) for data in embedded] == [file.read_bytes() for file in files]
    for heading in headings(source)[1:-1]:
        assert f"\n## {heading}\n" in text


def test_the_page_alone_goes_where_one_likes(run, tmp_path):
    before = sorted(run.rglob("*"))
    page = write_report(run, tmp_path / "elsewhere" / "mine.html")
    assert [page] == list((tmp_path / "elsewhere").iterdir())
    assert sorted(run.rglob("*")) == before
    assert Page(page.read_text(encoding="utf-8")).all("img")


def test_a_page_needs_a_name_that_its_folder_can_not_have(run, tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "mine.txt").touch()
    with pytest.raises(InputError, match=r"docs: a page in Markdown must end in \.md"):
        write_markdown(run, tmp_path / "docs")
    assert (tmp_path / "docs" / "mine.txt").exists()


def warned(document):
    """Techniques a, which knows no sparsity, and h in place of d and k."""
    _, second, third = document["runs"]
    second |= {"key": "a", "technique": "no compression", "sparsity": 0.0}
    third |= {"key": "h", "technique": "gradual pruning with distillation", "fid": 99.5}
    second["achieved_sparsity"] = 0.0


def test_curves_that_deceive_stand_over_their_pictures(edit):
    folder = edit(warned)
    panels = Panels(load_report(folder))
    (section,) = panels.sections(only=("warning",))
    (image,) = section.images
    assert image.alt.endswith(
        "no compression, FID 103.8; gradual pruning with distillation, FID 99.5."
    ), image.alt
    assert Image.open(io.BytesIO(image.content)).width > 2 * 4 * 200, "two columns"
    (rows,) = panels.domains()
    assert all(f"{key}  " in rows.alt for key in "abh"), "what is not pruned is among them"


def test_without_an_honest_curve_there_is_nothing_to_warn_of(edit):
    def only_h(document):
        warned(document)
        document["runs"] = document["runs"][2:]

    assert not Panels(load_report(edit(only_h))).warning()


def test_a_failed_write_leaves_the_old_page(run, monkeypatch):
    path = write_report(run)
    path.write_text("the old page")

    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutputError, match=r"report.html: No space left on device; free space"):
        write_report(run)
    assert path.read_text() == "the old page"
    assert not [entry for entry in run.iterdir() if entry.name.startswith(".")]


def test_bad_input_leaves_no_page(run):
    (run / "b-element-0.75-0" / "history.jsonl").write_text("{not json\n")
    with pytest.raises(InputError, match=r"history.jsonl: line 1 is not JSON; run the comparison"):
        write_report(run)
    assert not (run / "report.html").exists()
