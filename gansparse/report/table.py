# SPDX-License-Identifier: Apache-2.0
"""The table of a comparison: for the terminal, for Markdown, for spreadsheets."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

from gansparse.progress import duration
from gansparse.report.document import Group, Report, percent

if TYPE_CHECKING:
    from rich.table import Table

    from gansparse.report.panels import Section

_LEFT = 2  # columns of words, which stand on the left


def columns(report: Report) -> tuple[str, ...]:
    """Names of the table's columns: after FID what else the comparison scored."""
    return (
        "technique", "granularity", "sparsity", "FID", "× dense", *report.scores,
        "parameters", "time", "training",
    )  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One line of the table, as text.

    Args:
        cells: in the order of `columns`.
        best: this is the lowest FID of its granularity and sparsity, and not the only one.
        dense: this is the generator that all others are made of.
    """

    cells: tuple[str, ...]
    best: bool = False
    dense: bool = False


def table_rows(report: Report) -> list[Row]:
    """The dense generator, one row for each group of runs, one for each run that failed."""
    whole = report.dense.get("parameters")
    rows = [
        Row(
            cells=(
                "dense (original)", "–", percent(0), f"{report.dense_fid:.4g}", "1.00",
                *(_mean(_known(report.dense_scores.get(name))) for name in report.scores),
                _count(whole), "–", percent(1),
            ),
            dense=True,
        )
    ]  # fmt: skip
    rivals: dict[tuple[str, float], list[float]] = {}
    for group in report.groups:
        rivals.setdefault(group.place, []).append(group.fid)
    for group in report.groups:
        run = group.first
        achieved = run.sparsity if run.achieved_sparsity is None else run.achieved_sparsity
        cells = (
            f"{run.key}  {group.name}",
            run.granularity if achieved else "dense",
            percent(round(achieved, 4)),
            _mean([one.fid for one in group.runs]),
            f"{report.ratio(group.fid):.2f}",
            *(_mean(group.scores(name)) for name in report.scores),
            _count(run.parameters),
            duration(group.seconds),
            "–" if run.share_of_training is None else percent(round(run.share_of_training, 4)),
        )
        those = rivals[group.place]
        rows.append(Row(cells, best=len(those) > 1 and group.fid == min(those)))
    for failure in report.failures:
        told = (f"{failure.key}  {failure.name}", failure.granularity, percent(failure.sparsity))
        rest = len(columns(report)) - len(told) - 1
        rows.append(Row((*told, "failed", *["–"] * rest)))
    return rows


def fid_table(report: Report) -> Table:
    """The table for the terminal; the best of each granularity and sparsity is bold."""
    from rich.markup import escape
    from rich.table import Table

    caption = "\n".join([metric_text(report), *failure_lines(report)])
    table = Table(title=escape(report.title), caption=escape(caption))
    for number, name in enumerate(columns(report)):
        justify: Literal["left", "right"] = "left" if number < _LEFT else "right"
        table.add_column(escape(name), justify=justify, overflow="fold")
    for row in table_rows(report):
        table.add_row(*map(escape, row.cells), style="bold" if row.best else "")
    return table


def failure_lines(report: Report) -> list[str]:
    """Why runs failed, a line each."""
    return [
        f"failed: {one.key}  {one.name}, {one.granularity} {percent(one.sparsity)}: {one.reason}"
        for one in report.failures
    ]


def to_markdown(report: Report) -> str:
    """The table in GitHub's form, the best of each granularity and sparsity in bold."""
    names = columns(report)
    ruler = ["---" if number < _LEFT else "---:" for number in range(len(names))]
    lines = [" | ".join(map(_escaped, names)), " | ".join(ruler)]
    for row in table_rows(report):
        cells = map(_escaped, row.cells)
        lines.append(" | ".join(f"**{cell}**" if row.best else cell for cell in cells))
    return "\n".join(f"| {line} |" for line in lines)


def markdown_page(report: Report, sections: Sequence[Section] = (), folder: str = "") -> str:
    """Title, headline, table, what the numbers depend on, and figures, as a Markdown file.

    Args:
        report: a comparison.
        sections: its figures.
        folder: where their files are, as seen from the page.
    """
    parts = [f"# {_escaped(report.title)}", headline(report), to_markdown(report)]
    parts += [f"{metric_text(report)}. A lower FID is better."]
    parts += [f"- {_escaped(line)}" for line in failure_lines(report)]
    command = report.facts.get("command")
    parts += [f"Made by `{command}`."] if command else []
    for section in sections:
        parts += [f"## {section.heading}", section.note] if section.heading else []
        for name, image in section.files:
            parts += [f"{_plain(image.caption)}:"] if image.caption else []
            parts += [f"![{_plain(image.alt)}]({quote(f'{folder}/{name}')})"]
    return "\n\n".join(parts) + "\n"


def to_csv(report: Report) -> str:
    """One line a run, seeds apart, numbers unrounded."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = (
        "key", "technique", "label", "granularity", "sparsity", "achieved_sparsity", "seed",
        "fid", "fid_ratio", "parameters", "seconds", "steps", "share_of_training",
    )  # fmt: skip
    writer.writerow([*names, *report.scores, "failed"])
    dense = ["", "dense", "", "", 0.0, 0.0, "", report.dense_fid, 1.0]
    further = [report.dense_scores.get(name, "") for name in report.scores]
    writer.writerow([*dense, report.dense.get("parameters", ""), "", "", "", *further, ""])
    for run in report.runs:
        values = (
            run.key, run.technique, run.label, run.granularity, run.sparsity,
            run.achieved_sparsity, run.seed, run.fid, report.ratio(run.fid), run.parameters,
            run.seconds, run.steps, run.share_of_training,
            *(run.scores.get(name) for name in report.scores), None,
        )  # fmt: skip
        writer.writerow(["" if value is None else value for value in values])
    for one in report.failures:
        told = (one.key, one.technique, one.label, one.granularity, one.sparsity, "", one.seed)
        empty = [""] * (len(names) - len(told) + len(report.scores))
        writer.writerow(["" if value is None else value for value in told] + [*empty, one.reason])
    return text.getvalue()


def headline(report: Report) -> str:
    """What came out, in one or two sentences.

    It speaks of recipe b (or of the best run, if b was not run) at the sparsity where most
    techniques can be compared, the higher one if several can, and names the best rival, whoever
    wins.
    """
    fields: dict[tuple[str, float], list[Group]] = {}
    for group in report.groups:
        fields.setdefault(group.place, []).append(group)

    def weight(field: tuple[str, float]) -> tuple[bool, bool, int, float]:
        groups = fields[field]
        has_b = any(group.first.key == "b" for group in groups)
        return has_b, field[1] > 0, len(groups), field[1]

    granularity, sparsity = max(fields, key=weight)
    ranked = sorted(fields[granularity, sparsity], key=lambda group: group.fid)
    ours = next((group for group in ranked if group.first.key == "b"), ranked[0])
    share = ours.first.share_of_training
    after = (
        "" if share is None else f", after {percent(float(f'{share:.2g}'))} of its training steps"
    )
    text = (
        f"At {percent(sparsity)} {granularity} sparsity, {ours.name} reaches FID "
        f"{ours.fid:.4g}, {report.ratio(ours.fid):.2f} times the dense generator's "
        f"{report.dense_fid:.4g}{after}."
    )
    rivals = [group for group in ranked if group is not ours]
    if rivals:
        rival = rivals[0]
        verdict = "The next best is" if rival.fid >= ours.fid else "Better here is"
        text += f" {verdict} {rival.name} with {rival.fid:.4g}."
    return text


def metric_text(report: Report) -> str:
    """What the FID depends on, in one line."""
    metric = report.metric
    parts = [f"{metric['name']} of {metric.get('extractor', 'unnamed')} features"]
    if metric.get("num_fake") is not None:
        real = metric.get("num_real")
        against = "" if real is None else f" against {real:,} real"
        parts.append(f"{metric['num_fake']:,} generated{against}")
    parts += [str(metric[name]) for name in ("mode", "dtype") if metric.get(name)]
    seeds = max(len(group.runs) for group in report.groups)
    parts += [f"mean (lowest–highest) of {seeds} seeds"] if seeds > 1 else []
    return "; ".join(parts)


def _mean(values: Sequence[float]) -> str:
    """The mean, and the range where there are several seeds."""
    if not values:
        return "–"
    text = f"{sum(values) / len(values):.4g}"
    return text + (f" ({min(values):.4g}–{max(values):.4g})" if len(values) > 1 else "")


def _known(value: float | None) -> list[float]:
    return [] if value is None else [value]


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def _plain(text: str) -> str:
    """Words that Markdown takes for words, in one line."""
    return re.sub(r"([\\`*_\[\]<>])", r"\\\1", " ".join(text.split()))


def _count(number: object) -> str:
    return f"{number:,}" if isinstance(number, int) else "–"
