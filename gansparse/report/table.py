# SPDX-License-Identifier: Apache-2.0
"""The table of a comparison: for the terminal, for Markdown, for spreadsheets."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gansparse.report.document import Group, Report, percent

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = (
    "technique",
    "granularity",
    "sparsity",
    "FID",
    "× dense",
    "parameters",
    "time",
    "training",
)


@dataclass(frozen=True)
class Row:
    """One line of the table, as text.

    Args:
        cells: in the order of ``COLUMNS``.
        best: this is the lowest FID of its granularity and sparsity.
        dense: this is the generator that all others are made of.
    """

    cells: tuple[str, ...]
    best: bool = False
    dense: bool = False


def table_rows(report: Report) -> list[Row]:
    """The dense generator, then one row for each group of runs."""
    whole = report.dense.get("parameters")
    rows = [
        Row(
            cells=(
                "dense (original)", "–", "0 %", f"{report.dense_fid:.4g}", "1.00",
                _count(whole), "–", "100 %",
            ),
            dense=True,
        )
    ]  # fmt: skip
    best: dict[tuple[str, float], float] = {}
    for group in report.groups:
        rivals = (group.first.granularity, group.first.sparsity)
        best[rivals] = min(best.get(rivals, group.fid), group.fid)
    for group in report.groups:
        run = group.first
        achieved = run.sparsity if run.achieved_sparsity is None else run.achieved_sparsity
        cells = (
            f"{run.key}  {group.name}",
            run.granularity if achieved else "dense",
            percent(round(achieved, 4)),
            fid_text(group),
            f"{report.ratio(group.fid):.2f}",
            _count(run.parameters),
            duration(group.seconds),
            "–" if run.share_of_training is None else percent(round(run.share_of_training, 4)),
        )
        rows.append(Row(cells, best=group.fid == best[(run.granularity, run.sparsity)]))
    return rows


def fid_table(report: Report) -> Table:
    """The table for the terminal; the best of each granularity and sparsity is bold."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(report.title), caption=escape(metric_text(report)))
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in COLUMNS[:2] else "right")
    for row in table_rows(report):
        table.add_row(*map(escape, row.cells), style="bold" if row.best else "")
    return table


def to_markdown(report: Report) -> str:
    """The table in GitHub's form, the best of each granularity and sparsity in bold."""
    ruler = ["---" if name in COLUMNS[:2] else "---:" for name in COLUMNS]
    lines = [" | ".join(COLUMNS), " | ".join(ruler)]
    for row in table_rows(report):
        cells = [cell.replace("|", "\\|") for cell in row.cells]
        lines.append(" | ".join(f"**{cell}**" if row.best else cell for cell in cells))
    return "\n".join(f"| {line} |" for line in lines)


def to_csv(report: Report) -> str:
    """One line a run, seeds apart, numbers unrounded."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [
            "key", "technique", "label", "granularity", "sparsity", "achieved_sparsity", "seed",
            "fid", "fid_ratio", "parameters", "seconds", "steps", "share_of_training",
        ]
    )  # fmt: skip
    dense = ["", "dense", "", "", 0.0, 0.0, "", report.dense_fid, 1.0]
    writer.writerow([*dense, report.dense.get("parameters", ""), "", "", ""])
    for run in report.runs:
        values = (
            run.key, run.technique, run.label, run.granularity, run.sparsity,
            run.achieved_sparsity, run.seed, run.fid, report.ratio(run.fid), run.parameters,
            run.seconds, run.steps, run.share_of_training,
        )  # fmt: skip
        writer.writerow(["" if value is None else value for value in values])
    return text.getvalue()


def headline(report: Report) -> str:
    """What came out, in one or two sentences.

    It speaks of recipe b (or of the best run, if b was not run) at the sparsity where most
    techniques can be compared, the higher one if several can, and names the best rival, whoever
    wins.
    """
    fields: dict[tuple[str, float], list[Group]] = {}
    for group in report.groups:
        fields.setdefault((group.first.granularity, group.first.sparsity), []).append(group)

    def weight(field: tuple[str, float]) -> tuple[bool, int, float]:
        groups = fields[field]
        return any(group.first.key == "b" for group in groups), len(groups), field[1]

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


def fid_text(group: Group) -> str:
    """The mean, and the range where there are several seeds."""
    lowest, highest = group.fid_range
    return f"{group.fid:.4g}" + (f" ({lowest:.4g}–{highest:.4g})" if len(group.runs) > 1 else "")


def duration(seconds: float | None) -> str:
    """Seconds for reading: "42 s", "3 min 20 s", "2 h 05 min".

    >>> duration(200.0)
    '3 min 20 s'
    """
    if seconds is None:
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.2g} s" if whole < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _count(number: object) -> str:
    return f"{number:,}" if isinstance(number, int) else "–"
