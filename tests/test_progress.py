# SPDX-License-Identifier: Apache-2.0
"""Progress bars: lines where there is no terminal, time left, one bar a process."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from gansparse.progress import ProgressBars, duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"), (0.0, "0 s"), (4.26, "4.3 s"), (9.7, "10 s"), (59.4, "59 s"),
        (59.6, "1 min 00 s"), (3599.7, "1 h 00 min"), (7500, "2 h 05 min"),
    ],
)  # fmt: skip
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_lines_tell_what_is_done_and_left(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    text = io.StringIO()
    with ProgressBars(Console(file=text, width=100)) as bars:
        bars.runs(2, 6)
        lane = bars.lane(1)
        assert bars.lane(1) is lane
        lane.start("b element 0.5", 100)
        for second, done in ((5, 10), (20, 25), (25, 30), (40, 100)):
            now[0] = second
            lane.advance(done)
            bars.runs(2 + done / 100, 6)
    assert text.getvalue().splitlines() == [
        "all runs: 2/6",
        "b element 0.5: 0/100",
        "b element 0.5: 25/100, 1 min 00 s left",
        "all runs: 2/6, 5 min 00 s left",
        "b element 0.5: 100/100, took 40 s",
        "all runs: 3/6, 2 min 00 s left",
    ]


def test_live_bars_on_a_terminal():
    text = io.StringIO()
    console = Console(file=text, width=120, force_terminal=True)
    with ProgressBars(console) as bars:
        bars.runs(0, 2)
        for label in ("b element 0.5", "d element 0.5"):
            bars.lane(0).start(label, 10)
            bars.lane(0).advance(10)
        bars.runs(2, 2)
    last = text.getvalue().rsplit("all runs", 1)[1]
    assert "2/2" in last
    assert "d element 0.5" in last
    assert "b element 0.5" not in last, "one bar a process, not one a run"


def test_pieces_one_after_another_and_what_was_found_done(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    text = io.StringIO()
    with ProgressBars(Console(file=text, width=100)) as bars:
        bars.start("resumed", 100, found=50)
        now[0] = 20
        bars.advance(60)  # ten steps in twenty seconds, forty to go
        bars.start("scoring", 4)
        now[0] = 23
        bars.advance(4)
    assert text.getvalue().splitlines() == [
        "resumed: 50/100",
        "resumed: 60/100, 1 min 20 s left",
        "scoring: 0/4",
        "scoring: 4/4, took 3 s",
    ]
