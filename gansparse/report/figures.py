# SPDX-License-Identifier: Apache-2.0
"""Charts of a comparison: plain data in, a matplotlib Figure out.

Figures are built without pyplot, so they share no state and need no display. Colours are Okabe &
Ito's, which colour-blind readers can tell apart; lines differ in style too.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gansparse.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT = "#1a1a1a", "#8a8a8a"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1)), (0, (3, 1)), (0, (1, 1)))
#: Inches; at 72 points an inch 10 pt text is legible on a phone, where a figure is 3.4 inches wide.
WIDTH = 4.2
#: Points of a curve that are drawn; a longer one is averaged in equal pieces.
_POINTS = 240
_LEGEND_COLUMNS = 4


def loss_curves(
    histories: Mapping[str, Sequence[Mapping[str, Any]]], *, columns: int = 3
) -> Figure:
    """One panel a technique: its loss and the terms of it, and the sparsity reached.

    Figure 1 of Yu & Pool 2020's supplement.

    Args:
        histories: title → rows ``{"step", "loss", "sparsity" or None, "terms": {name: value}}``.
        columns: panels side by side.
    """
    if not histories:
        raise InputError("loss_curves: needs at least one history, got none")
    columns = min(columns, len(histories))
    rows = math.ceil(len(histories) / columns)
    figure = new_figure(WIDTH * columns, 3.1 * rows)
    for number, (title, history) in enumerate(histories.items()):
        loss_panel(figure.add_subplot(rows, columns, number + 1), title, history)
    return figure


def loss_panel(axes: Axes, title: str, history: Sequence[Mapping[str, Any]]) -> None:
    """One panel of `loss_curves`."""
    axes.set_xlabel("step")
    lines = 0
    if history:
        lines = _draw_curves(axes, history)
    else:
        axes.text(0.5, 0.5, "nothing logged", ha="center", transform=axes.transAxes)
    axes.set_title(wrap(title, 40), loc="left", fontsize=11, pad=6 + 13 * lines)


def fid_bars(bars: Sequence[tuple[str, float, tuple[float, float]]], dense_fid: float) -> Figure:
    """FID of the dense generator and of each technique as bars; whiskers span the seeds.

    Args:
        bars: (name, mean, (lowest, highest)), drawn from top to bottom under the dense generator's.
        dense_fid: the length of the first bar, and where a line runs down from it.
    """
    everything = [("dense (original)", dense_fid, (dense_fid, dense_fid)), *bars]
    figure = new_figure(WIDTH, 0.55 * len(everything) + 0.6)
    axes = figure.add_subplot()
    axes.axvline(dense_fid, color=FAINT, linestyle="--", linewidth=1, zorder=0)
    right = max(highest for _, _, (_, highest) in everything)
    for place, (name, mean, (lowest, highest)) in enumerate(everything):
        axes.barh(place, mean, height=0.4, color=COLOURS[0] if place else FAINT)
        if highest > lowest:
            axes.plot([lowest, highest], [place, place], color=INK, linewidth=1.5, marker="|")
        axes.text(highest + 0.015 * right, place, f"{mean:.4g}", va="center")
        shown = literal(textwrap.shorten(name, 48, placeholder="…"))
        axes.text(0, place - 0.24, shown, va="bottom", bbox={"color": "white", "pad": 0.5})
    axes.set_xlim(0, 1.15 * right if right > 0 else 1)
    axes.set_ylim(len(everything) - 0.6, -0.75)
    axes.set_yticks([])
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_xlabel("FID, lower is better")
    return figure


def fid_sweep(
    curves: Mapping[str, Sequence[tuple[float, float, tuple[float, float]]]], dense_fid: float
) -> Figure:
    """FID over sparsity, one line a technique, the dense generator as a level.

    Args:
        curves: name → points (sparsity, mean, (lowest, highest) over seeds).
        dense_fid: the level.
    """
    figure = new_figure(WIDTH, 3.0 + 0.17 * len(curves))
    axes = figure.add_subplot()
    for number, (name, points) in enumerate(curves.items()):
        shares, means, ranges = zip(*sorted(points), strict=True)
        percents = [100 * share for share in shares]
        look: dict[str, Any] = {"color": _pick(COLOURS, number), "linestyle": _pick(STYLES, number)}
        axes.plot(
            percents,
            means,
            marker="osD^vPX"[number % 7],
            label=literal(textwrap.shorten(name, 44, placeholder="…")),
            **look,
        )
        axes.vlines(percents, *zip(*ranges, strict=True), color=_pick(COLOURS, number))
    axes.axhline(dense_fid, color=FAINT, linestyle="--", label=f"dense ({dense_fid:.4g})")
    values = [dense_fid, *(mean for points in curves.values() for _, mean, _ in points)]
    if min(values) > 0 and max(values) > 10 * min(values):
        axes.set_yscale("log")
    axes.set_xlabel("sparsity, %")
    axes.set_ylabel("FID, lower is better")
    figure.legend(frameon=False, fontsize=9, loc="outside upper left")
    return figure


def _draw_curves(axes: Axes, history: Sequence[Mapping[str, Any]]) -> int:
    """Draws the curves, with their names above; returns how many lines the names take."""
    steps = _thin([row["step"] for row in history])
    names = list(dict.fromkeys(name for row in history for name in row["terms"]))
    curves = {"loss": [row["loss"] for row in history]}
    curves |= {name: [row["terms"].get(name, math.nan) for row in history] for name in names}
    lowest, highest = math.inf, -math.inf
    for number, (name, values) in enumerate(curves.items()):
        thin = _thin(values)
        axes.plot(
            steps,
            thin,
            label=literal(name),
            color=_pick(COLOURS, number),
            linestyle=_pick(STYLES, number),
            linewidth=1.8 if name == "loss" else 1.1,
        )
        if not np.isnan(thin).all():
            lowest, highest = min(lowest, np.nanmin(thin)), max(highest, np.nanmax(thin))
    if lowest > 0 and highest > 30 * lowest:
        axes.set_yscale("log")
    sparsity = [row.get("sparsity") for row in history]
    if any(value is not None for value in sparsity):
        right = axes.twinx()
        shares = [math.nan if value is None else 100 * value for value in sparsity]
        right.plot(steps, _thin(shares), color=FAINT, linewidth=1, linestyle=":")
        right.set_ylim(0, 100)
        right.set_ylabel("sparsity, % (dotted)", color=FAINT, fontsize=9)
        right.tick_params(labelsize=8, colors=FAINT)
    above: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1.0), "borderaxespad": 0.1}
    axes.legend(frameon=False, fontsize=8, ncols=_LEGEND_COLUMNS, handlelength=1.6, **above)
    return math.ceil(len(curves) / _LEGEND_COLUMNS)


def _thin(values: Sequence[float]) -> NDArray[np.float64]:
    """At most ``_POINTS`` values: means over equal pieces of the curve."""
    array = np.asarray(values, dtype=np.float64)
    if len(array) <= _POINTS:
        return array
    return np.array([piece.mean() for piece in np.array_split(array, _POINTS)])


def wrap(title: str, width: int) -> str:
    """Long lines broken; the line breaks that are there stay."""
    return "\n".join(textwrap.fill(line, width) for line in literal(title).splitlines())


def literal(text: str) -> str:
    """So that matplotlib reads no dollar sign as the beginning of a formula."""
    return text.replace("$", r"\$")


def _pick(choices: Sequence[Any], number: int) -> Any:
    return choices[number % len(choices)]


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that size in inches."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return Figure((width, height), layout=ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03))
