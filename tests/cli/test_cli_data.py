# SPDX-License-Identifier: Apache-2.0
"""`gansparse data`: tables, drawn sets, help that teaches, mistakes in a line."""

from __future__ import annotations

import pytest
from PIL import Image


def rows(table: str) -> dict[tuple[str, str], list[str]]:
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in table.splitlines()]
    return {(row[0], row[1]): row[2:] for row in cells if len(row) == 6 and row[0]}


@pytest.mark.parametrize("command", ["check", "synth"])
def test_help_shows_an_example(gansparse, command):
    status, out, _ = gansparse("data", command, "--help")
    assert status == 0
    assert f"gansparse data {command} " in out


def test_drawn_then_checked(gansparse, tmp_path):
    status, out, errors = gansparse(
        *("data", "synth", "unaligned", tmp_path / "x", "--count", 5, "--size", 96)
    )
    assert status == 0, errors
    assert "drawing unaligned: 12/12" in errors
    next_command = out.split("next: gansparse ")[1].split()
    status, out, errors = gansparse(*next_command)
    assert status == 0, errors
    found = rows(out)
    assert found["cyclegan", "trainA and trainB"] == ["yes", "train 10, test 2", "96x96", ""]
    fits, counts, _, remark = found["pix2pix", "A and B side by side"]
    assert (fits, counts) == ("no", "")
    assert remark.startswith("needs a folder train with pictures of A and B side by side; it has")


def test_damaged_pictures_are_named(gansparse, tmp_path):
    for i in range(30):
        Image.new("RGB", (90 + i, 100)).save(tmp_path / f"{i:02}.png")
    for i in range(4, 27):
        (tmp_path / f"{i:02}.png").write_text("no picture")
    status, out, _ = gansparse("data", "check", tmp_path, "--decode")
    assert status == 0
    row = rows(out)["dcgan", "pictures"]
    assert row == ["yes", "train 30", "90x100, 93x100, 119x100", "23 can't be used"]
    named = [line for line in out.splitlines() if line.startswith("can't be used: ")]
    assert len(named) == 20
    assert "04.png: not a picture" in named[0]
    assert out.endswith("and 3 more\n")


def refused(done, words):
    status, _, errors = done
    assert status == 2
    assert errors.strip().splitlines()[-1].startswith("gansparse: error: ")
    assert words in errors
    assert "Traceback" not in errors


def test_mistakes(gansparse, tmp_path):
    refused(gansparse("data", "check", tmp_path / "nowhere"), "nowhere: no such folder")
    refused(gansparse("data", "check", tmp_path), "fits no task; the table says what each")
    refused(
        gansparse("data", "synth", "cats", tmp_path / "x"), "no synthetic set 'cats'; there are"
    )
