# SPDX-License-Identifier: Apache-2.0
"""Figures by what stands in them: panels, data of lines and images, texts."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from gansparse.errors import InputError
from gansparse.report import fid_bars, fid_sweep, loss_curves, residual_rows, sample_grids
from gansparse.report.figures import mosaic


def pictures(count, channels=1, size=4):
    return np.random.default_rng(0).uniform(-1, 1, (count, channels, size, size)).astype("float32")


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def sheet(axes):
    return np.asarray(axes.get_images()[0].get_array())


@pytest.mark.parametrize("channels", [1, 3])
def test_mosaic_puts_every_picture_in_its_place(channels):
    shown = (pictures(7, channels, 5) + 1) / 2
    result = mosaic(shown, 3, gap=2)
    assert result.shape == (3 * 5 + 4, 3 * 5 + 4, channels)
    for index in range(7):
        row, column = divmod(index, 3)
        tile = result[7 * row : 7 * row + 5, 7 * column : 7 * column + 5]
        assert np.array_equal(tile, shown[index].transpose(1, 2, 0))
    assert (result[14:, 7:] == 1).all(), "places without a picture are white"


def test_residuals_are_ten_times_the_difference():
    original = pictures(3) / 2
    compressed = original + np.array([0, 0.02, -0.1], "float32").reshape(3, 1, 1, 1)
    figure = residual_rows(original, compressed)
    assert [axes.get_title("left") for axes in figure.axes][:2] == ["original", "compressed"]
    residual = sheet(figure.axes[2])
    rounding = 10 * 3 * 2**-24  # three roundings of numbers below 1, amplified
    for column, expected in enumerate([0, 0.1, 0.5]):  # 10 · |difference| / 2: [-1, 1] → [0, 1]
        assert residual[:, 6 * column : 6 * column + 4] == pytest.approx(expected, abs=rounding)
    far = residual_rows(np.full((1, 1, 2, 2), -1.0), np.full((1, 1, 2, 2), 1.0))
    assert (sheet(far.axes[2]) == 1).all(), "clipped at white"
    assert "mean 1.000" in far.axes[2].get_title("left")


def test_residual_rows_with_inputs_and_names():
    figure = residual_rows(pictures(9), pictures(9), inputs=pictures(9), names=("A", "B"), count=4)
    titles = [axes.get_title("left") for axes in figure.axes]
    assert titles[:3] == ["input", "A", "B"]
    assert sheet(figure.axes[0]).shape == (4, 4 * 4 + 3 * 2)
    with pytest.raises(InputError, match="must match, got"):
        residual_rows(pictures(2), pictures(3))


def test_sample_grids():
    grids = {"dense\nFID 1.5": pictures(30), "ours\nFID 2": pictures(3), "rgb": pictures(4, 3)}
    figure = sample_grids(grids, columns=2, count=16)
    assert [axes.get_title("left") for axes in figure.axes] == list(grids)
    assert sheet(figure.axes[0]).shape == (4 * 4 + 6, 4 * 4 + 6)
    assert sheet(figure.axes[1]).shape == (4, 4), "three pictures make no square but one"
    assert sheet(figure.axes[2]).shape == (10, 10, 3)
    with pytest.raises(InputError, match="at least one"):
        sample_grids({})


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
