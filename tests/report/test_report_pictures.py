# SPDX-License-Identifier: Apache-2.0
"""Figures of pictures by what stands in them: which pixels are where, under which names."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gansparse.errors import InputError
from gansparse.report import boxed_details, picture_rows, residual_rows, sample_grids
from gansparse.report.pictures import mosaic, richest


def pictures(count, channels=1, size=4):
    return np.random.default_rng(0).uniform(-1, 1, (count, channels, size, size)).astype("float32")


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
    figure = sample_grids({"": pictures(5)}, count=5, across=4)
    shown = sheet(figure.axes[0])
    assert shown.shape == (2 * 4 + 2, 4 * 4 + 6)
    assert (shown[6:, 6:] == 1).all(), "the second line holds one picture"


def test_mosaic_of_pictures_of_other_sizes_and_channels():
    grey = np.full((1, 2, 4), 0.25, "float32")
    colour = np.stack([np.full((4, 4), value, "float32") for value in (0.1, 0.5, 0.9)])
    dot = np.zeros((3, 1, 1), "float32")
    shown = mosaic([grey, colour, dot], 3, gap=2)
    assert shown.shape == (4, 3 * 4 + 4, 3)
    assert (shown[1:3, :4] == 0.25).all(), "wide: in the middle of its place"
    assert (shown[[0, 3], :4] == 1).all(), "white above and below"
    assert (shown[:, 6:10] == np.float32([0.1, 0.5, 0.9])).all()
    assert (shown[:, 12:] == 0).all(), "small: its pixels are repeated"
    assert mosaic(np.zeros((2, 1, 400, 400)), 2).shape[1] == 2 * 400 + 10


def test_rows_of_pictures_under_names_and_columns():
    rows = {"input": pictures(4, size=2), "dense": pictures(4, 3), "b  $ours$": pictures(4)}
    figure = picture_rows(rows, columns=["Black_Hair", "Male", "Male", "Young"])
    titles = [axes.get_title("left") for axes in figure.axes]
    assert titles == ["input", "dense", r"b  \$ours\$"]
    assert sheet(figure.axes[0]).shape == (2, 4 * 2 + 3 * 2)
    assert sheet(figure.axes[1]).shape == (4, 4 * 4 + 3 * 2, 3)
    top = figure.axes[0]
    assert [text.get_text() for text in top.get_xticklabels()] == ["Black Hair", "Male", "Young"]
    width = 4 * 2 + 3 * 2
    assert list(top.get_xticks()) == [width / 8 - 0.5, width / 2 - 0.5, 7 * width / 8 - 0.5]
    assert not figure.axes[1].get_xticklabels() or not figure.axes[1].axison
    with pytest.raises(InputError, match="a picture in each"):
        picture_rows({"a": pictures(1), "b": []})


def test_residuals_of_pictures_of_several_sizes():
    original = [np.zeros((1, 4, 4)), np.zeros((3, 2, 6))]
    compressed = [original[0] + 0.04, original[1]]
    figure = residual_rows(original, compressed)
    # 16 pixels differ by 0.02 of the range, 36 values by nothing.
    assert f"(mean {16 * 0.02 / (16 + 36):.3f})" in figure.axes[2].get_title("left")
    with pytest.raises(InputError, match="must match, got"):
        residual_rows(original, compressed[::-1])


def test_the_richest_square_is_where_the_edges_are():
    picture = np.zeros((3, 24, 16), "float32")
    picture[:, 12:20:2, 8:12] = 1
    assert richest(picture, 8) == (12, 8)
    assert richest(np.zeros((1, 4, 4)), 4) == (0, 0)


def test_details_show_the_box_and_what_is_in_it():
    truth = np.zeros((1, 16, 24), "float32")
    truth[0, 8:12:2, 16:20] = 1
    made = {"dense": truth + 0.5, "element": truth.copy()}
    figure = boxed_details(truth, made, border=2, columns=2)
    wholes, details = figure.axes[::2], figure.axes[1::2]
    # Within the border 240 pixels; 8 of them are 1 in both, the others bytes 128 and 191.
    expected = 10 * math.log10(255**2 / (63**2 * 232 / 240))
    assert wholes[1].get_title("left") == f"dense\n{expected:.2f} dB"
    assert wholes[0].get_title("left") == "ground truth"
    assert wholes[2].get_title("left") == "element\ninf dB"
    for whole, detail, picture in zip(wholes, details, (truth, *made.values()), strict=True):
        (box,) = whole.patches
        assert (box.get_x(), box.get_y(), box.get_width()) == (15.5, 7.5, 4)
        assert sheet(whole).shape == (16, 24)
        wanted = np.clip((picture[0, 8:12, 16:20] + 1) / 2, 0, 1)
        assert np.array_equal(sheet(detail), wanted)
    with pytest.raises(InputError, match=r"of one shape, got \[1, 8, 8\] and \[1, 16, 24\]"):
        boxed_details(truth, {"small": truth[:, :8, :8]})
