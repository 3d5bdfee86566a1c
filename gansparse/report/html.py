# SPDX-License-Identifier: Apache-2.0
"""One self-contained HTML file that shows a comparison: no script, nothing loaded from anywhere."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gansparse.files import atomic_file
from gansparse.report import figures
from gansparse.report.document import (
    Group,
    Report,
    load_history,
    load_report,
    load_samples,
    percent,
)
from gansparse.report.table import (
    COLUMNS,
    duration,
    headline,
    metric_text,
    table_rows,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Picture:
    """An image of the page.

    Args:
        data: ``data:`` address with the whole image in it.
        alt: what it shows, for those who can't see it.
        caption: stands over it; "" for none.
        chart: a drawing, which a dark page may invert; a photograph it must not.
    """

    data: str
    alt: str
    caption: str
    chart: bool


def write_report(run: str | Path) -> Path:
    """Write ``report.html`` beside ``report.json``.

    The file is written whole or not at all; an older one stays until the new one is complete.

    Args:
        run: folder of a comparison.

    Returns:
        The path of the page.

    Raises:
        InputError: ``report.json`` or a file that it names is missing or broken.
        OutputError: the page can't be written.
    """
    report = load_report(run)
    page = render(report)
    path = report.folder / "report.html"
    with atomic_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def render(report: Report) -> str:
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
        columns=COLUMNS,
        rows=table_rows(report),
        scores=_scores(report),
        grids=_grids(report),
        residuals=_residuals(report),
        curves=_curves(report),
        facts=_facts(report),
        settings=_settings(report.groups),
        differences=_differences(report.groups),
    )


def _scores(report: Report) -> list[Picture]:
    """FID over sparsity for techniques with several sparsities, bars for the others."""
    by_technique: dict[str, list[Group]] = {}
    for group in report.groups:
        by_technique.setdefault(f"{group.name}, {group.first.granularity}", []).append(group)
    curves = {name: groups for name, groups in by_technique.items() if len(groups) > 1}
    pictures = []
    if curves:
        points = {
            name: [(group.first.sparsity, group.fid, group.fid_range) for group in groups]
            for name, groups in curves.items()
        }
        told = "; ".join(
            f"{name}: " + ", ".join(f"{mean:.4g} at {percent(share)}" for share, mean, _ in line)
            for name, line in points.items()
        )
        alt = f"Chart of FID over sparsity. Dense: {report.dense_fid:.4g}. {told}."
        pictures.append(_chart(figures.fid_sweep(points, report.dense_fid), alt))
    if not curves:
        bars = [(group.title, group.fid, group.fid_range) for group in report.groups]
        told = "; ".join(f"{name}: {mean:.4g}" for name, mean, _ in bars)
        alt = f"Bar chart of FID. Dense: {report.dense_fid:.4g}. {told}."
        pictures.append(_chart(figures.fid_bars(bars, report.dense_fid), alt))
    return pictures


def _grids(report: Report) -> list[Picture]:
    """Figure 3, one picture a generator, so that a phone can stack them."""
    shown = []
    if report.dense_samples is not None:
        shown.append(("dense (original)", report.dense_fid, report.dense_samples))
    for group in report.groups:
        run = group.first
        if run.samples is not None:
            seed = f", seed {run.seed}" if len(group.runs) > 1 else ""
            shown.append((f"{group.title}{seed}", run.fid, run.samples))
    pictures = []
    for name, fid, path in shown:
        images = load_samples(path)
        count = 64 if images.shape[-1] <= 64 else 16
        alt = f"Grid of pictures by {name}; FID {fid:.4g}. Every grid is made of the same latents."
        figure = figures.sample_grids({"": images}, count=count)
        pictures.append(_photo(figure, alt, f"{name}: FID\N{NO-BREAK SPACE}{fid:.4g}"))
    return pictures


def _residuals(report: Report) -> list[Picture]:
    """Figure 4 for each group; figure 5, two dense generators, to measure them by."""
    pictures = []
    if report.dense_samples is not None:
        pictures = _residuals_to(load_samples(report.dense_samples), report.groups)
    if report.yardstick is not None:
        first, second = (load_samples(path) for path in report.yardstick)
        figure = figures.residual_rows(first, second, names=("dense, one seed", "dense, another"))
        alt = "Rows of pictures by two dense generators of different seeds, and their difference."
        caption = "Yardstick: two dense generators that differ in nothing but their seed"
        pictures.append(_photo(figure, alt, caption))
    return pictures


def _residuals_to(original: figures.Pictures, groups: Iterable[Group]) -> list[Picture]:
    pictures = []
    for group in groups:
        if group.first.samples is not None:
            figure = figures.residual_rows(original, load_samples(group.first.samples))
            alt = (
                f"Rows of pictures for {group.title}: original output, compressed output, and "
                "their difference amplified ten times."
            )
            pictures.append(_photo(figure, alt, group.title))
    return pictures


def _curves(report: Report) -> list[Picture]:
    """Figure 1, one panel a group of runs."""
    pictures = []
    for group in report.groups:
        if group.first.history is not None:
            history = load_history(group.first.history)
            ends = f"from {history[0]['loss']:.3g} to {history[-1]['loss']:.3g}" if history else ""
            alt = f"Loss curve of {group.title}, {ends} over {len(history)} logged steps."
            pictures.append(_chart(figures.loss_curves({"": history}), alt, group.title))
    return pictures


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


def _chart(figure: Figure, alt: str, caption: str = "") -> Picture:
    """A drawing, as SVG: sharp on any screen and on paper."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "gansparse"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return Picture(_data("image/svg+xml", buffer), alt, caption, chart=True)


def _photo(figure: Figure, alt: str, caption: str) -> Picture:
    """Pictures, as WebP at twice the size they are shown at."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="webp", dpi=200, pil_kwargs={"quality": 85, "method": 4})
    return Picture(_data("image/webp", buffer), alt, caption, chart=False)


def _data(kind: str, buffer: io.BytesIO) -> str:
    return f"data:{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
