# SPDX-License-Identifier: Apache-2.0
"""Charts by what stands in them: panels, data of lines, texts."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from gansparse.errors import InputError
from gansparse.report import fid_bars, fid_sweep, loss_curves


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def history(steps, loss=lambda step: 100 / (step + 1)):
    return [
        {"step": s, "loss": loss(s), "sparsity": s / steps, "terms": {"gen": 1.0, "rec": 2.0}}
        for s in range(steps)
    ]


def test_loss_curves():
    curves = {"ours": history(100), "other": history(5, lambda _: -1.0), "none": []}
    figure = loss_curves(curves)
    panels = [axes for axes in figure.axes if axes.get_xlabel() == "step"]
    assert [axes.get_title("left") for axes in panels] == ["ours", "other", "none"]
    assert [line.get_label() for line in panels[0].get_lines()] == ["loss", "gen", "rec"]
    assert list(panels[0].get_lines()[0].get_ydata()) == [100 / (s + 1) for s in range(100)]
    assert panels[0].get_yscale() == "log"
    assert panels[1].get_yscale() == "linear", "a loss below zero"
    assert "nothing logged" in texts(figure)
    with pytest.raises(InputError, match="at least one"):
        loss_curves({})


def test_long_curves_are_averaged_not_cut():
    figure = loss_curves({"x": history(10_000, lambda step: float(step))})
    line = figure.axes[0].get_lines()[0]
    assert len(line.get_ydata()) <= 240
    assert line.get_ydata() == pytest.approx(line.get_xdata())
    assert line.get_ydata()[-1] > 9_900


def test_loss_curves_with_terms_that_come_and_go():
    rows = history(4)
    rows[1]["terms"] = {}
    rows[2]["sparsity"] = None
    line = loss_curves({"x": rows}).axes[0].get_lines()[1]
    assert [math.isnan(value) for value in line.get_ydata()] == [False, True, False, False]


def test_fid_bars():
    figure = fid_bars([("ours", 2.0, (1.5, 2.5)), ("theirs", 8.0, (8.0, 8.0))], 1.25)
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == [1.25, 2.0, 8.0]
    assert {"dense (original)", "1.25", "ours", "2", "theirs", "8"} <= set(texts(figure))
    whisker = [line for line in axes.get_lines() if list(line.get_xdata()) == [1.5, 2.5]]
    assert len(whisker) == 1


def test_fid_sweep():
    points = [(0.9, 40.0, (39.0, 41.0)), (0.5, 2.0, (2.0, 2.0))]
    figure = fid_sweep({"ours": points}, 1.9)
    (axes,) = figure.axes
    line = axes.get_lines()[0]
    assert list(line.get_xdata()) == [50.0, 90.0]
    assert list(line.get_ydata()) == [2.0, 40.0]
    assert axes.get_yscale() == "log"
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["ours", "dense (1.9)"]


def test_plots_are_loaded_late_and_pyplot_never():
    code = (
        "import sys, gansparse.report; assert 'matplotlib' not in sys.modules;"
        "gansparse.report.fid_bars([], 1.0); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
