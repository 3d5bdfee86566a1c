# SPDX-License-Identifier: Apache-2.0
"""A comparison as a page: one self-contained HTML file, no script, nothing loaded from anywhere.

Beside it the same in Markdown, with the figures as files, and the table alone as CSV.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from gansparse.errors import InputError
from gansparse.files import atomic_file, atomic_folder
from gansparse.progress import duration
from gansparse.report.document import Group, Report, load_report
from gansparse.report.panels import Panels, Section
from gansparse.report.table import (
    columns,
    failure_lines,
    headline,
    markdown_page,
    metric_text,
    table_rows,
    to_csv,
)


def write_report(run: str | Path, out: str | Path | None = None) -> Path:
    """Write ``report.html``, ``report.md`` with the folder ``report``, and ``report.csv``.

    They stand beside ``report.json``. Each is written whole or not at all; an older one stays until
    the new one is complete.

    Args:
        run: folder of a comparison.
        out: the HTML page alone goes there instead; it needs none of the others.

    Returns:
        The path of the HTML page.

    Raises:
        InputError: ``report.json`` or a file that it names is missing or broken.
        OutputError: one of them can't be written.
    """
    report = load_report(run)
    sections = Panels(report).sections()
    page = report.folder / "report.html" if out is None else Path(out)
    _write(page, render(report, sections))
    if out is None:
        _write_markdown(report, sections, report.folder / "report.md")
        _write(report.folder / "report.csv", to_csv(report))
    return page


def write_markdown(run: str | Path, page: Path, only: Collection[str] = ()) -> Report:
    """Write a comparison's page in Markdown, and its figures into a folder of the same name.

    Args:
        run: folder of the comparison.
        page: file to write: ``docs/stargan.md`` has its figures in ``docs/stargan``.
        only: names of the sections that it is to have (`Panels.sections`); none: all.

    Returns:
        The comparison.

    Raises:
        InputError: ``report.json`` or a file that it names is missing or broken, or another suffix.
        OutputError: one of them can't be written.
    """
    if page.suffix != ".md":
        raise InputError(
            f"{page}: a page in Markdown must end in .md; its folder is named after it"
        )
    report = load_report(run)
    _write_markdown(report, Panels(report).sections(only), page)
    return report


def _write_markdown(report: Report, sections: Sequence[Section], page: Path) -> None:
    figures = page.with_suffix("")
    with atomic_folder(figures) as folder:
        for section in sections:
            for name, image in section.files:
                (folder / name).write_bytes(image.content)
    _write(page, markdown_page(report, sections, figures.name))


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def render(report: Report, sections: Sequence[Section]) -> str:
    """The page as text."""
    from jinja2 import Environment, StrictUndefined

    source = resources.files("gansparse.report").joinpath("template.html.j2")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(source.read_text(encoding="utf-8"))
    return template.render(
        title=report.title,
        headline=headline(report),
        metric=metric_text(report),
        columns=columns(report),
        rows=table_rows(report),
        failures=failure_lines(report),
        sections=sections,
        facts=_facts(report),
        settings=_settings(report.groups),
        differences=_differences(report.groups),
    )


def _facts(report: Report) -> list[tuple[str, str]]:
    """Where, when and how the numbers came about."""
    seconds = [group.seconds for group in report.groups if group.seconds is not None]
    facts = {**report.facts, "metric": metric_text(report)}
    if seconds:
        facts["training time of all runs"] = duration(
            sum(run.seconds for run in report.runs if run.seconds is not None)
        )
    return [(name, _plain(value)) for name, value in facts.items()]


def _settings(groups: Iterable[Group]) -> list[tuple[str, str]]:
    """Settings that are the same in all runs."""
    configs = [run.config for group in groups for run in group.runs]
    first = configs[0]
    same = [name for name in first if all(c.get(name) == first[name] for c in configs)]
    return [(name, _plain(first[name])) for name in same]


def _differences(groups: Iterable[Group]) -> list[tuple[str, list[tuple[str, str]]]]:
    """For each group the settings in which runs differ; a seed stands with its group."""
    groups = list(groups)
    same = {name for name, _ in _settings(groups)}
    listed = []
    for group in groups:
        config: Mapping[str, Any] = group.first.config
        own = {name: value for name, value in config.items() if name not in same}
        seeds = [run.seed for run in group.runs if run.seed is not None]
        if len(seeds) > 1:
            own["seed"] = ", ".join(map(str, seeds))
        listed.append((group.title, [(name, _plain(value)) for name, value in own.items()]))
    return [pair for pair in listed if pair[1]]


def _plain(value: object) -> str:
    """A JSON value as a person writes it."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(each)}" for name, each in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_plain, value)) or "none"
    if value is None or value == "":
        return "none"
    return value if isinstance(value, str) else json.dumps(value)
