# SPDX-License-Identifier: Apache-2.0
"""The page's figures: from a comparison to images with captions and descriptions."""

from __future__ import annotations

import base64
import functools
import io
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gansparse.report import figures, pictures
from gansparse.report.document import Group, Report, load_history, percent
from gansparse.report.samples import Picture, Samples, first_of, load_samples

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Pictures with this many pixels of width in all stand side by side in a row, 3 to 8 of them.
_ROW_PIXELS = 768
#: Pictures of the super resolution set that get a figure with details.
_DETAILED = 2
#: Of Table 1: the curve that others are held against, and those that look like it (section 5).
_HONEST, _DECEPTIVE = ("a", "b"), ("h", "m")

_SAME_INPUTS = "The same inputs for every generator. Not selected."
_SAME_PLACES = "Every generator has the same inputs, place by place. Not selected."
_WARNING = (
    "What Yu & Pool 2020 warn of: curves of techniques h and m may fall as smoothly as that of an "
    "ordinary training, whatever the pictures below them are like."
)
_RESIDUALS = (
    "Original output, compressed output, and their absolute difference ten times amplified: black "
    "where the two agree, white from a tenth of the range on."
)
_DETAILS = (
    "The whole picture, and the box in it enlarged; the box is where the ground truth has most "
    "edges. PSNR is of that picture's luma, without its border."
)
_BY_SPARSITY = "A row for each sparsity, from the same inputs."
_CURVES = (
    "Each technique minimises something else, so heights don't compare. A curve that falls "
    "smoothly may still belong to bad pictures: read it together with the scores and samples above."
)


@dataclass(frozen=True)
class Image:
    """An image of the page.

    Args:
        content: of its file.
        alt: what it shows, for those who can't see it.
        caption: stands over it; "" for none.
        chart: a drawing as SVG, which a dark page may invert; else a photograph as WebP.
    """

    content: bytes
    alt: str
    caption: str
    chart: bool

    @property
    def suffix(self) -> str:
        """Of its file."""
        return "svg" if self.chart else "webp"

    @property
    def data(self) -> str:
        """A ``data:`` address with the whole image in it."""
        kind = "image/svg+xml" if self.chart else "image/webp"
        return f"data:{kind};base64,{base64.b64encode(self.content).decode('ascii')}"


@dataclass(frozen=True)
class Section:
    """Images that belong together.

    Args:
        name: a word, of which the images' files have their names.
        heading: stands over them.
        note: how to read them; "" where there is nothing to say.
        width: of an image on the page: "", "medium" or "wide".
        images: one at least.
    """

    name: str
    heading: str
    note: str
    width: str
    images: Sequence[Image]

    @property
    def files(self) -> list[tuple[str, Image]]:
        """Each image with the name of its file."""
        return [(f"{self.name}-{i}.{x.suffix}", x) for i, x in enumerate(self.images, start=1)]


class Panels:
    """All figures of a report, section by section; each file of pictures is read once."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self._load: Callable[[Path], Samples] = functools.cache(load_samples)

    def sections(self, only: Collection[str] = ()) -> list[Section]:
        """Those that have something to show, in the order of the page; all, or the named ones."""
        rows = (
            ("scores", "", "", "", self.scores),
            ("techniques", "Techniques side by side", _SAME_INPUTS, "wide", self.domains),
            ("warning", "Curves and pictures", _WARNING, "wide", self.warning),
            ("samples", "Samples", _SAME_PLACES, "", self.grids),
            ("residuals", "What compression changed", _RESIDUALS, "wide", self.residuals),
            ("details", "Details", _DETAILS, "wide", self.details),
            ("sparsities", "Pictures by sparsity", _BY_SPARSITY, "wide", self.sweeps),
            ("curves", "Loss curves", _CURVES, "medium", self.curves),
        )
        made = [
            Section(name, heading, note, width, draw())
            for name, heading, note, width, draw in rows
            if not only or name in only
        ]
        return [section for section in made if section.images]

    def scores(self) -> list[Image]:
        """FID over sparsity for techniques with several sparsities, else a bar for each group."""
        report = self.report
        curves = self._lines()
        if any(len(line) > 1 for line in curves.values()):
            points = {
                name: [(group.place[1], group.fid, group.fid_range) for group in line]
                for name, line in curves.items()
            }
            told = "; ".join(
                f"{name}: " + ", ".join(f"{mean:.4g} at {percent(at)}" for at, mean, _ in line)
                for name, line in points.items()
            )
            alt = f"Chart of FID over sparsity. Dense: {report.dense_fid:.4g}. {told}."
            return [_chart(figures.fid_sweep(points, report.dense_fid), alt)]
        bars = [(group.title, group.fid, group.fid_range) for group in report.groups]
        told = "; ".join(f"{name}: {mean:.4g}" for name, mean, _ in bars)
        alt = f"Bar chart of FID. Dense: {report.dense_fid:.4g}. {told}."
        return [_chart(figures.fid_bars(bars, report.dense_fid), alt)]

    def grids(self) -> list[Image]:
        """Figure 3, one picture a generator, so that a phone can stack them."""
        report = self.report
        shown = []
        if report.dense_samples is not None:
            shown.append(("dense (original)", report.dense_fid, report.dense_samples))
        for group in report.groups:
            run = group.first
            if run.samples is not None:
                seed = f", seed {run.seed}" if len(group.runs) > 1 else ""
                shown.append((f"{group.title}{seed}", run.fid, run.samples))
        images = []
        for name, fid, path in shown:
            samples = self._load(path)
            across = 8 if _width(samples) <= 64 else 4
            each = max(1, across // len(samples)) * across  # whole lines of each view
            grid = [picture for _, picture in first_of(samples, each * len(samples))]
            across = min(across, len(grid) // len(samples))
            if len(samples) == 1:
                across = min(across, math.ceil(math.sqrt(len(grid))))
            figure = pictures.sample_grids({"": grid}, count=len(grid), across=across)
            alt = (
                f"Grid of pictures by {name}; FID {fid:.4g}. Every grid is made of the same inputs."
            )
            images.append(_photo(figure, alt, f"{name}: FID\N{NO-BREAK SPACE}{fid:.4g}"))
        return images

    def domains(self) -> list[Image]:
        """Figure 2: a row a technique, a column a domain where there are several."""
        images = []
        for setting, groups in self._settings().items():
            if len(groups) > 1 and self._dense():
                names = {
                    f"{group.first.key}  {group.name}, FID {group.first.fid:.4g}": group
                    for group in groups
                }
                figure = self._rows({name: self._first(group) for name, group in names.items()})
                alt = (
                    f"Pictures by the dense generator and by {len(groups)} techniques at {setting},"
                    f" a row each, from the same inputs: {', '.join(names)}."
                )
                images.append(_photo(figure, alt, f"{setting}, a row a technique"))
        return images

    def warning(self) -> list[Image]:
        """The paper's finding: curves like an ordinary training's over other pictures."""
        images = []
        for setting, groups in self._settings().items():
            known = [group for group in groups if group.first.history is not None]
            honest = [g for key in _HONEST for g in known if g.first.key == key][:1]
            shown = honest + [group for group in known if group.first.key in _DECEPTIVE]
            if honest and len(shown) > 1:
                columns = {
                    f"{group.first.key}  {group.name}\nFID {group.first.fid:.4g}": (
                        self._history(group),
                        [one for _, one in first_of(self._first(group), 16)],
                    )
                    for group in shown
                }
                alt = (
                    f"Side by side at {setting}: loss curves, and pictures below them, of "
                    + "; ".join(f"{g.name}, FID {g.first.fid:.4g}" for g in shown)
                )
                images.append(_photo(pictures.curves_over_pictures(columns), f"{alt}.", setting))
        return images

    def sweeps(self) -> list[Image]:
        """Figure 7, for each technique and granularity with several sparsities."""
        images = []
        for name, groups in self._lines().items():
            shown = sorted(
                (group for group in groups if group.first.samples is not None),
                key=lambda group: group.first.sparsity,
            )
            if len(shown) > 1 and self._dense():
                rows = {
                    f"{percent(group.first.sparsity)}, FID {group.first.fid:.4g}": self._first(
                        group
                    )
                    for group in shown
                }
                alt = (
                    f"Pictures by {name}, a row for each sparsity: dense, "
                    f"{', '.join(percent(group.first.sparsity) for group in shown)}."
                )
                images.append(_photo(self._rows(rows), alt, name))
        return images

    def residuals(self) -> list[Image]:
        """Figure 4 for each group; figure 5, two dense generators, to measure them by."""
        report, dense = self.report, self._dense()
        images = []
        if dense:
            for group in report.groups:
                if group.first.samples is not None:
                    figure = self._residuals(dense, self._first(group))
                    alt = (
                        f"Rows of pictures for {group.title}: {self._input_told()}original output, "
                        "compressed output, and their difference amplified ten times."
                    )
                    images.append(_photo(figure, alt, group.title))
        if report.yardstick is not None:
            first, second = (self._load(path) for path in report.yardstick)
            names = ("dense, one seed", "dense, another")
            fid = report.yardstick_fid
            score = "" if fid is None else f"; FID {report.dense_fid:.4g} and {fid:.4g}"
            alt = (
                f"Rows of pictures by two dense generators of different seeds: {self._input_told()}"
                "one's output, the other's, and their difference amplified ten times."
            )
            caption = (
                f"Yardstick: two dense generators that differ in nothing but their seed{score}"
            )
            images.append(_photo(self._residuals(first, second, names), alt, caption))
        return images

    def details(self) -> list[Image]:
        """Figure 6, where pictures become larger and the right answer is known."""
        report, dense = self.report, self._dense()
        if not dense or report.truth is None or report.inputs is None:
            return []
        truth, inputs = (next(iter(self._load(p).values())) for p in (report.truth, report.inputs))
        scale = truth[0].shape[-1] // inputs[0].shape[-1]
        if scale < 2:
            return []
        by_sparsity: dict[float, list[Group]] = {}
        for group in report.groups:
            if group.first.samples is not None:
                by_sparsity.setdefault(group.first.sparsity, []).append(group)
        images = []
        for sparsity, groups in by_sparsity.items():
            made = {"dense (original)": dense}
            made |= {
                _told_apart(group, groups): self._load(group.first.samples)
                for group in groups
                if group.first.samples is not None
            }
            firsts = {name: next(iter(samples.values())) for name, samples in made.items()}
            for number in range(min(_DETAILED, *map(len, (truth, *firsts.values())))):
                shown = {name: one[number] for name, one in firsts.items()}
                figure = pictures.boxed_details(truth[number], shown, border=scale)
                alt = (
                    f"Picture {number + 1} at {percent(sparsity)} sparsity, and a detail of it: "
                    f"ground truth, {', '.join(made)}."
                )
                caption = f"{percent(sparsity)} sparsity, picture {number + 1}"
                images.append(_photo(figure, alt, caption))
        return images

    def curves(self) -> list[Image]:
        """Figure 1, one panel a group of runs."""
        images = []
        for group in self.report.groups:
            if group.first.history is not None:
                history = self._history(group)
                ends = (
                    f"from {history[0]['loss']:.3g} to {history[-1]['loss']:.3g}" if history else ""
                )
                alt = f"Loss curve of {group.title}, {ends} over {len(history)} logged steps."
                images.append(_chart(figures.loss_curves({"": history}), alt, group.title))
        return images

    def _lines(self) -> dict[str, list[Group]]:
        """Groups that differ in their sparsity only."""
        lines: dict[str, list[Group]] = {}
        for group in self.report.groups:
            lines.setdefault(f"{group.name}, {group.first.granularity}", []).append(group)
        return lines

    def _settings(self) -> dict[str, list[Group]]:
        """Groups with pictures, by granularity and sparsity.

        What prunes nothing stands at each granularity, and what knows no sparsity everywhere.
        """
        groups = [group for group in self.report.groups if group.first.samples is not None]
        pruned = [group for group in groups if not _unpruned(group)]
        found: dict[str, list[Group]] = {}
        for run in (group.first for group in pruned or groups):
            found[f"{run.granularity} {percent(run.sparsity)}"] = [
                group
                for group in groups
                if group.first.sparsity == 0
                or (
                    group.first.sparsity == run.sparsity
                    and (group.first.granularity == run.granularity or _unpruned(group))
                )
            ]
        return found

    @staticmethod
    def _history(group: Group) -> list[dict[str, Any]]:
        return [] if group.first.history is None else load_history(group.first.history)

    def _dense(self) -> Samples:
        path = self.report.dense_samples
        return {} if path is None else self._load(path)

    def _first(self, group: Group) -> Samples:
        path = group.first.samples
        return {} if path is None else self._load(path)

    def _inputs(self) -> Samples:
        """What the generators were given; nothing unless it is known for all views."""
        path = self.report.inputs
        found = {} if path is None else self._load(path)
        return found if found.keys() == self._dense().keys() else {}

    def _input_told(self) -> str:
        return "input, " if self._inputs() else ""

    def _chosen(self, samples: Samples) -> list[Picture]:
        """A row's pictures: as many of each view."""
        return [picture for _, picture in first_of(samples, self._row_length())]

    def _row_length(self) -> int:
        return min(8, max(3, _ROW_PIXELS // _width(self._dense())))

    def _columns(self) -> list[str]:
        """The view of each picture in a row, where there are several."""
        dense = self._dense()
        return [view for view, _ in first_of(dense, self._row_length())] if len(dense) > 1 else []

    def _rows(self, made: Mapping[str, Samples]) -> Figure:
        """Inputs if there are any, the dense generator's pictures, then those that were made."""
        rows = {"input": self._inputs()} if self._inputs() else {}
        rows[f"dense (original), FID {self.report.dense_fid:.4g}"] = self._dense()
        shown = {name: self._chosen(samples) for name, samples in {**rows, **made}.items()}
        return pictures.picture_rows(shown, columns=self._columns())

    def _residuals(
        self, first: Samples, second: Samples, names: tuple[str, str] = ("original", "compressed")
    ) -> Figure:
        inputs = self._inputs()
        return pictures.residual_rows(
            self._chosen(first),
            self._chosen(second),
            inputs=self._chosen(inputs) if inputs else None,
            names=names,
            columns=self._columns(),
        )


def _unpruned(group: Group) -> bool:
    return group.first.achieved_sparsity == 0


def _told_apart(group: Group, groups: Sequence[Group]) -> str:
    """What tells a group from the others: its technique, its granularity, or both."""
    parts = []
    if len({one.name for one in groups}) > 1:
        parts.append(group.name)
    if len({one.first.granularity for one in groups}) > 1 or not parts:
        parts.append(group.first.granularity)
    return ", ".join(parts)


def _width(samples: Samples) -> int:
    return max(int(one.shape[-1]) for pictures in samples.values() for one in pictures[:8])


def _chart(figure: Figure, alt: str, caption: str = "") -> Image:
    """A drawing, as SVG: sharp on any screen and on paper."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "gansparse"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return Image(buffer.getvalue(), alt, caption, chart=True)


def _photo(figure: Figure, alt: str, caption: str) -> Image:
    """Pictures, as WebP at twice the size they are shown at."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="webp", dpi=200, pil_kwargs={"quality": 85, "method": 4})
    return Image(buffer.getvalue(), alt, caption, chart=False)
