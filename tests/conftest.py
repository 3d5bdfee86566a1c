# SPDX-License-Identifier: Apache-2.0
"""For all tests: one thread, and loud skips.

A run ends with how many tests this machine could not run, and why.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator

# Also of the processes that tests start, and before torch looks.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell's job in the background ignores Ctrl-C, and so would every program that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
import torch

# What a machine may lack → how to run those tests.
LACKS = {
    "cuda": "CUDA tests not run (no CUDA device): run `pytest -m cuda` on a machine with one",
    "simd": "instruction-set tests not run: this processor lacks the set",
    "emulator": "tests of the CUDA kernels in the emulator not run: it needs g++ on x86-64",
    "nvcc": "register and spill tests not run: they need the nvcc release of registers.json",
    "data": "data tests not run: set GANSPARSE_DATA to the folder of data sets",
}
_not_run: Counter[str] = Counter()


def pytest_sessionstart() -> None:
    # Small samples gain nothing from threads, and on a busy machine waiting for the second one
    # takes a hundred times the work. Tests of threads set their own number.
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Whatever number of threads a test sets ends with it."""
    yield
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    needing = [item for item in items if item.get_closest_marker("cuda")]
    if needing and not torch.cuda.is_available():
        for item in needing:
            item.add_marker(pytest.mark.skip(reason=LACKS["cuda"]))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    outcome = yield
    report = outcome.get_result()
    if report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        found = (x for x in LACKS if item.get_closest_marker(x) or f"lacks {x}" in reason)
        report.lacks = next(found, None)  # pytest-xdist carries it to the process that reports


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and report.lacks:
        _not_run[report.lacks] += 1


def pytest_terminal_summary(terminalreporter) -> None:
    for lack, count in _not_run.items():
        terminalreporter.write_line(f"{count} {LACKS[lack]}", yellow=True, bold=True)
