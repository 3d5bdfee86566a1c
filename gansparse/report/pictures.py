# SPDX-License-Identifier: Apache-2.0
"""Figures made of pictures; they may differ in size, and be grey or RGB.

Numbers refer to the figures of Yu & Pool 2020's supplement: techniques by domains (2), sample grids
(3), rows with residuals (4), the same of two dense generators (5), boxed details (6), sparsities by
rows (7).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from gansparse.errors import InputError
from gansparse.metrics.psnr_ssim import psnr
from gansparse.report.figures import WIDTH, literal, loss_panel, new_figure, wrap
from gansparse.report.samples import Picture, Pictures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

AMPLIFICATION = 10
_BOX = "#D55E00"
#: The boxed detail is this part of a picture's shorter side.
_DETAIL = 4


def sample_grids(
    grids: Mapping[str, Pictures],
    *,
    columns: int = 3,
    count: int = 64,
    across: int | None = None,
) -> Figure:
    """Figure 3: pictures of several generators from the same inputs, side by side.

    Args:
        grids: title, with the FID in it, or "" → pictures in [-1, 1].
        columns: grids side by side.
        count: pictures a grid at most.
        across: pictures side by side in a grid; None: as many as one below another, what is left
            over is not shown.
    """
    if not grids:
        raise InputError("sample_grids: needs at least one set of pictures, got none")
    columns = min(columns, len(grids))
    rows = math.ceil(len(grids) / columns)
    sheets = {}
    for title, pictures in grids.items():
        side = max(1, math.isqrt(min(count, len(pictures))))
        shown = pictures[:count] if across else pictures[: side * side]
        sheets[title] = mosaic(_unit(shown), across or side)
    lines = max(wrap(title, 36).count("\n") + 1 if title else 0 for title in grids)
    tall = max(sheet.shape[0] / sheet.shape[1] for sheet in sheets.values())
    figure = new_figure(3.4 * columns, (3.4 * tall + 0.18 * lines) * rows)
    for number, (title, sheet) in enumerate(sheets.items()):
        axes = figure.add_subplot(rows, columns, number + 1)
        axes.set_title(wrap(title, 36), loc="left", fontsize=11)
        _show(axes, sheet)
    return figure


def picture_rows(rows: Mapping[str, Pictures], *, columns: Sequence[str] = ()) -> Figure:
    """Figures 2 and 7: a row of pictures for each technique or sparsity, each under its name.

    Args:
        rows: name → pictures in [-1, 1], as many in each row.
        columns: what stands over each picture; equal neighbours share one text.
    """
    if not rows or not all(len(pictures) for pictures in rows.values()):
        raise InputError("picture_rows: needs at least one row, and a picture in each")
    return _rows({name: _unit(pictures) for name, pictures in rows.items()}, columns)


def residual_rows(
    original: Pictures,
    compressed: Pictures,
    *,
    inputs: Pictures | None = None,
    names: tuple[str, str] = ("original", "compressed"),
    columns: Sequence[str] = (),
    count: int = 8,
) -> Figure:
    """Figures 4 and 5: input, original output, compressed output, residual amplified 10x.

    The residual is ``10 · |compressed − original|`` with pictures in [0, 1]: black where the two
    agree, white from a difference of 0.1 on. With two dense generators in place of the pair (figure
    5) it shows which residual is nothing but the noise of training.

    Args:
        original: pictures in [-1, 1].
        compressed: as many of the same shapes, from the same inputs.
        inputs: pictures that the generators were given, if they were given pictures.
        names: of the two generators.
        columns: as `picture_rows`.
        count: pictures a row at most.
    """
    shapes = [[picture.shape for picture in side] for side in (original, compressed)]
    if shapes[0] != shapes[1]:
        got = " and ".join(f"{len(side)} of {side[0] if side else ()}" for side in shapes)
        raise InputError(f"residual_rows: the two sets of pictures must match, got {got}")
    first, second = _unit(original[:count]), _unit(compressed[:count])
    differences = [np.abs(b - a) for a, b in zip(first, second, strict=True)]
    mean = sum(d.sum() for d in differences) / sum(d.size for d in differences)
    rows = {
        names[0]: first,
        names[1]: second,
        f"difference ×{AMPLIFICATION} (mean {mean:.3f})": [
            np.clip(AMPLIFICATION * difference, 0, 1) for difference in differences
        ],
    }
    if inputs is not None:
        rows = {"input": _unit(inputs[:count]), **rows}
    return _rows(rows, columns[:count])


def boxed_details(
    truth: Picture, made: Mapping[str, Picture], *, border: int = 0, columns: int = 4
) -> Figure:
    """Figure 6: whole pictures, and under each a detail of it: the one richest in edges.

    Args:
        truth: the right answer, [C, H, W] in [-1, 1].
        made: name → what a generator made of the same input, of the same shape; PSNR stands beside
            the name.
        border: pixels that PSNR leaves out at each side; super resolution: its scale.
        columns: pictures side by side.
    """
    shown = {"ground truth": truth}
    for name, picture in made.items():
        if picture.shape != truth.shape:
            got = f"{list(picture.shape)} and {list(truth.shape)}"
            raise InputError(f"boxed_details: pictures must be of one shape, got {got}")
        pair = (torch.from_numpy(np.ascontiguousarray(one))[None] for one in (picture, truth))
        decibels = float(psnr(*pair, border=border))
        shown[f"{name}\n{decibels:.2f} dB"] = picture
    side = max(2, min(truth.shape[1:]) // _DETAIL)
    top, left = richest(truth, side)
    columns = min(columns, len(shown))
    rows = math.ceil(len(shown) / columns)
    each = 1.9  # inches
    tall = truth.shape[1] / truth.shape[2]
    figure = new_figure(each * columns, (each * (tall + 1) + 0.5) * rows)
    heights = [tall, 1.0] * rows
    grid = figure.add_gridspec(2 * rows, columns, height_ratios=heights)
    for number, (name, picture) in enumerate(zip(shown, _unit(list(shown.values())), strict=True)):
        row, column = divmod(number, columns)
        whole = figure.add_subplot(grid[2 * row, column])
        whole.set_title(wrap(name, 22), loc="left", fontsize=9)
        _show(whole, picture.transpose(1, 2, 0))
        whole.add_patch(_box((left - 0.5, top - 0.5), side))
        detail = figure.add_subplot(grid[2 * row + 1, column])
        _show(detail, picture[:, top : top + side, left : left + side].transpose(1, 2, 0))
    return figure


def curves_over_pictures(
    columns: Mapping[str, tuple[Sequence[Mapping[str, Any]], Pictures]],
) -> Figure:
    """Loss curves of several techniques side by side, and below each what it makes.

    Args:
        columns: name → its curve's rows as `loss_curves` takes them, and pictures in [-1, 1].
    """
    sheets = [mosaic(_unit(shown), math.isqrt(len(shown))) for _, shown in columns.values()]
    heights = [3.1, WIDTH * max(sheet.shape[0] / sheet.shape[1] for sheet in sheets)]  # inches
    figure = new_figure(WIDTH * len(sheets), sum(heights))
    grid = figure.add_gridspec(2, len(sheets), height_ratios=heights)
    for number, (name, (history, _)) in enumerate(columns.items()):
        loss_panel(figure.add_subplot(grid[0, number]), name, history)
        _show(figure.add_subplot(grid[1, number]), sheets[number])
    return figure


def richest(picture: Picture, side: int) -> tuple[int, int]:
    """Top and left of the square with the most edges, of those half a side apart.

    Example:
        >>> picture = np.zeros((1, 8, 8), np.float32)
        >>> picture[0, 5, 6] = 1
        >>> richest(picture, 4)
        (4, 4)
    """
    grey = picture.mean(0)
    edges = np.zeros_like(grey)
    edges[1:] += np.abs(np.diff(grey, axis=0))
    edges[:, 1:] += np.abs(np.diff(grey, axis=1))
    height, width = grey.shape
    step = max(1, side // 2)
    corners = [
        (top, left)
        for top in range(0, height - side + 1, step)
        for left in range(0, width - side + 1, step)
    ]
    return max(corners, key=lambda c: edges[c[0] : c[0] + side, c[1] : c[1] + side].sum())


def mosaic(pictures: Pictures, columns: int, gap: int | None = None) -> NDArray[np.float32]:
    """Pictures in [0, 1] as one [H, W, C], with white gaps; all are fitted to the largest's size.

    Args:
        pictures: each [C, H, W]; grey ones become RGB beside RGB ones.
        columns: side by side.
        gap: pixels between them; None: a 40th of their width, at least 2.
    """
    channels, height, width = (max(p.shape[axis] for p in pictures) for axis in range(3))
    gap = max(2, width // 40) if gap is None else gap
    rows = math.ceil(len(pictures) / columns)
    sheet = np.ones(
        (rows * (height + gap) - gap, columns * (width + gap) - gap, channels), dtype=np.float32
    )
    for index, picture in enumerate(pictures):
        fitted = _fitted(picture, height, width)
        top = index // columns * (height + gap) + (height - fitted.shape[1]) // 2
        left = index % columns * (width + gap) + (width - fitted.shape[2]) // 2
        place = sheet[top : top + fitted.shape[1], left : left + fitted.shape[2]]
        place[:] = fitted.transpose(1, 2, 0)
    return sheet


def _fitted(picture: Picture, height: int, width: int) -> Picture:
    """Scaled to fill the height or the width, by repeating pixels."""
    scale = min(height / picture.shape[1], width / picture.shape[2])
    rows, columns = (
        np.arange(max(1, round(length * scale))) * length // max(1, round(length * scale))
        for length in picture.shape[1:]
    )
    return picture[:, rows][:, :, columns]


def _rows(rows: Mapping[str, Pictures], columns: Sequence[str]) -> Figure:
    """Rows of pictures in [0, 1], each under its name."""
    sheets = {name: mosaic(pictures, len(pictures)) for name, pictures in rows.items()}
    heights = [WIDTH * sheet.shape[0] / sheet.shape[1] for sheet in sheets.values()]
    above = 0.26  # inches, for the name
    total = sum(heights) + above * len(rows) + (above if columns else 0)
    figure = new_figure(WIDTH, total)
    grid = figure.add_gridspec(len(rows), 1, height_ratios=[h + above for h in heights])
    for number, (name, sheet) in enumerate(sheets.items()):
        axes = figure.add_subplot(grid[number])
        _show(axes, sheet)
        if columns and not number:
            _label_columns(axes, columns, sheet.shape[1])
        axes.set_title(literal(name), loc="left", fontsize=10)
    return figure


def _label_columns(axes: Axes, columns: Sequence[str], width: int) -> None:
    axes.set_axis_on()
    axes.spines[:].set_visible(False)
    axes.set_yticks([])
    place, ticks, texts = 0.0, [], []
    for name, same in groupby(columns):
        share = len(list(same)) / len(columns)
        ticks.append((place + share / 2) * width - 0.5)
        texts.append(wrap(name.replace("_", " "), max(10, round(50 * share))))
        place += share
    axes.set_xticks(ticks, texts, fontsize=8)
    axes.tick_params(top=False, bottom=False, labeltop=True, labelbottom=False, pad=1)


def _box(corner: tuple[float, float], side: int) -> Rectangle:
    from matplotlib.patches import Rectangle

    return Rectangle(corner, side, side, fill=False, edgecolor=_BOX, linewidth=1.5)


def _unit(pictures: Pictures) -> list[Picture]:
    """From [-1, 1] to [0, 1]."""
    return [np.clip((picture + 1) / 2, 0, 1) for picture in pictures]


def _show(axes: Axes, sheet: NDArray[np.float32]) -> None:
    shown = sheet[:, :, 0] if sheet.shape[2] == 1 else sheet
    axes.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="antialiased")
    axes.set_axis_off()
