# SPDX-License-Identifier: Apache-2.0
"""No test measures: a fake timer says what is fast. The cache is in a folder of the test's own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gansparse.deploy import measure

sys.path.insert(0, str(Path(__file__).parents[1] / "sparsity"))


class Timer:
    """Stands for `measure.interleaved`: runs each candidate once, and invents the times.

    Args:
        fast: 1 ms for candidates whose name begins so, 2 ms for the others.
        before: of the generator; the plan takes 1 ms.
    """

    def __init__(self, fast: str = "sparse", before: float = 2.0) -> None:
        self.fast, self.before = fast, before
        self.asked: list[set[str]] = []
        self.cold: list[bool] = []  # for each of them

    def __call__(
        self,
        runs: dict[str, Callable[[], object]],
        rounds: int = 3,
        seconds: float = 0.0,
        *,
        cold: bool = False,
        **_: object,
    ) -> dict[str, float]:
        self.asked.append(set(runs))
        self.cold.append(cold)
        for run in runs.values():
            run()
        if "before" in runs:
            return {"before": self.before, "after": 1.0}
        if "copy" in runs:  # from one layout to the other
            return {"copy": 0.01}
        return {name: 1.0 if name.startswith(self.fast) else 2.0 for name in runs}

    @property
    def layers(self) -> int:
        """How many convolutions were measured."""
        return sum("torch channels_last" in names for names in self.asked)


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GANSPARSE_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture(autouse=True)
def timer(monkeypatch: pytest.MonkeyPatch) -> Timer:
    fake = Timer()
    monkeypatch.setattr(measure, "interleaved", fake)
    return fake
