# SPDX-License-Identifier: Apache-2.0
"""``report.json``, which a comparison leaves behind: read and checked once, for all readers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gansparse.errors import GansparseError, InputError
from gansparse.files import read_json
from gansparse.report.entry import REMEDY, Entry

#: Techniques of small dense networks, of as many weights as the others leave.
_SMALLER = ("c", "o")


@dataclass(frozen=True)
class Run:
    """One compressed generator: how it was made and how it scored.

    Args:
        key: letter of the technique in Yu & Pool 2020, Table 1.
        technique: its name.
        granularity: element, vector, block, kernel, filter or 2:4.
        sparsity: the target, 0 to 1.
        fid: Fréchet distance to the real pictures; the mean over the task's views.
        scores: further ones by name: "FID a to b" of each view, where there are several, and what
            the task measures beside it, "Set5 PSNR" for one.
        label: what sets this run apart from others of its technique, "ours" for one.
        achieved_sparsity: share of zeros in the prunable weights; None: not recorded, as below.
        parameters: non-zero parameters.
        seconds: training time.
        steps: training steps.
        share_of_training: steps over the dense generator's own.
        seed: of everything random.
        history: JSON lines of loss curves.
        samples: pictures, from the same inputs everywhere (`load_samples`).
        config: every setting.
    """

    key: str
    technique: str
    granularity: str
    sparsity: float
    fid: float
    scores: Mapping[str, float] = field(default_factory=dict)
    label: str = ""
    achieved_sparsity: float | None = None
    parameters: int | None = None
    seconds: float | None = None
    steps: int | None = None
    share_of_training: float | None = None
    seed: int | None = None
    history: Path | None = None
    samples: Path | None = None
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """A run that gave no generator, and why."""

    key: str
    technique: str
    granularity: str
    sparsity: float
    reason: str
    label: str = ""
    seed: int | None = None

    @property
    def name(self) -> str:
        """Technique, label and seed: "self-supervised (ours), seed 1"."""
        return named(self.technique, self.label) + (
            "" if self.seed is None else f", seed {self.seed}"
        )


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed; ``first`` stands for them in pictures."""

    runs: tuple[Run, ...]

    @property
    def first(self) -> Run:
        """The run with the first seed."""
        return self.runs[0]

    @property
    def fid(self) -> float:
        """Mean over seeds."""
        return sum(run.fid for run in self.runs) / len(self.runs)

    @property
    def fid_range(self) -> tuple[float, float]:
        """Lowest and highest over seeds."""
        return min(run.fid for run in self.runs), max(run.fid for run in self.runs)

    def scores(self, name: str) -> list[float]:
        """A further score of each run that has it."""
        return [run.scores[name] for run in self.runs if name in run.scores]

    @property
    def seconds(self) -> float | None:
        """Mean over seeds; None if one was not recorded."""
        known = [run.seconds for run in self.runs if run.seconds is not None]
        return sum(known) / len(known) if len(known) == len(self.runs) else None

    @property
    def name(self) -> str:
        """Technique and label: "self-supervised (ours)"."""
        return named(self.first.technique, self.first.label)

    @property
    def place(self) -> tuple[str, float]:
        """Granularity and sparsity, ("dense", 0) of a technique that leaves all weights (a, m)."""
        run = self.first
        whole = run.achieved_sparsity == 0 and run.key not in _SMALLER
        return ("dense", 0.0) if whole else (run.granularity, run.sparsity)

    @property
    def title(self) -> str:
        """Name, granularity and sparsity: "self-supervised (ours), element 75 %"."""
        granularity, sparsity = self.place
        return self.name + (f", {granularity} {percent(sparsity)}" if sparsity else "")


@dataclass(frozen=True)
class Report:
    """A comparison: one dense generator and the runs that compress it.

    Args:
        folder: where ``report.json`` lies.
        title: of the page.
        metric: name, extractor, num_real, num_fake, … as recorded.
        dense_fid: the dense generator's score.
        runs: in the order they were made.
        dense: everything else recorded about the dense generator.
        dense_samples: its pictures, from the same inputs as every run's.
        dense_scores: its further scores, as `Run.scores`.
        failures: runs that gave no generator.
        inputs: the pictures that generators were given, if they were given pictures.
        truth: the right answers, where there is one for each input.
        yardstick: pictures of two dense generators trained from different seeds.
        yardstick_fid: the second one's.
        facts: created, command, seed, task, data, machine, versions.
    """

    folder: Path
    title: str
    metric: Mapping[str, Any]
    dense_fid: float
    runs: tuple[Run, ...]
    dense: Mapping[str, Any] = field(default_factory=dict)
    dense_samples: Path | None = None
    dense_scores: Mapping[str, float] = field(default_factory=dict)
    failures: tuple[Failure, ...] = ()
    inputs: Path | None = None
    truth: Path | None = None
    yardstick: tuple[Path, Path] | None = None
    yardstick_fid: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def groups(self) -> tuple[Group, ...]:
        """Runs with seeds put together, in order of first appearance."""
        found: dict[tuple[Any, ...], list[Run]] = {}
        for run in self.runs:
            identity = (run.key, run.technique, run.label, run.granularity, run.sparsity)
            found.setdefault(identity, []).append(run)
        return tuple(Group(tuple(runs)) for runs in found.values())

    @property
    def scores(self) -> tuple[str, ...]:
        """Names of all further scores."""
        rows = [self.dense_scores, *(run.scores for run in self.runs)]
        return tuple(dict.fromkeys(name for row in rows for name in row))

    def ratio(self, fid: float) -> float:
        """A distance over the dense generator's."""
        return fid / self.dense_fid if self.dense_fid else math.inf


def load_report(run: str | Path) -> Report:
    """Read and check a comparison.

    Args:
        run: its folder, or the ``report.json`` in it.

    Raises:
        InputError: the file is missing, is not JSON or lacks something; the message names file,
            entry and remedy.
    """
    path = Path(run)
    path = path if path.suffix == ".json" else path / "report.json"
    if not path.is_file():
        raise InputError(
            f"{path}: no such file; gansparse demo, compare and sweep write it into their --out"
        )
    try:
        document = read_json(path)
    except GansparseError as error:
        raise InputError(f"{error}; {REMEDY}") from None
    entry = Entry(path, "", document)
    dense = entry.part("dense")
    pair, metric = entry.part("yardstick"), entry.part("metric")
    metric.text("name")
    for name in ("num_real", "num_fake"):
        metric.maybe_whole(name)
    return Report(
        folder=path.parent,
        title=entry.text("title"),
        metric=metric.value,
        dense_fid=dense.number("fid"),
        runs=tuple(_run(one) for one in entry.parts("runs")),
        dense=dense.value,
        dense_samples=dense.maybe_file("samples"),
        dense_scores=_scores(dense),
        failures=tuple(_failure(one) for one in entry.parts("failed", at_least=0)),
        inputs=dense.maybe_file("input"),
        truth=dense.maybe_file("truth"),
        yardstick=_yardstick(pair) if pair.value else None,
        yardstick_fid=pair.maybe_number("fid"),
        facts={
            name: document[name]
            for name in ("created", "command", "seed", "task", "data", "machine", "versions")
            if document.get(name) is not None
        },
    )


def load_history(path: Path) -> list[dict[str, Any]]:
    """Loss curves: one ``{"step", "sparsity", "loss", "terms": {name: value}}`` a logged step."""
    rows: list[dict[str, Any]] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise InputError(f"{path}: {reason}; {REMEDY}") from None
    for number, line in enumerate(lines, start=1):
        try:
            entry = Entry(path, f"line {number}: ", json.loads(line))
        except ValueError:
            raise InputError(f"{path}: line {number} is not JSON; {REMEDY}") from None
        terms = entry.part("terms")
        rows.append(
            {
                "step": entry.number("step"),
                "sparsity": entry.maybe_number("sparsity"),
                "loss": entry.number("loss"),
                "terms": {name: terms.number(name) for name in terms.value},
            }
        )
    return rows


def named(technique: str, label: str) -> str:
    """A technique and what sets it apart: "self-supervised (ours)"."""
    return f"{technique} ({label})" if label else technique


def percent(share: float) -> str:
    """A share for reading, with a space that no line breaks at: 0.125 → "12.5 %"."""
    return f"{100 * share:.4g}\N{NO-BREAK SPACE}%"


def _run(entry: Entry) -> Run:
    return Run(
        key=entry.text("key"),
        technique=entry.text("technique"),
        granularity=entry.text("granularity"),
        sparsity=entry.number("sparsity"),
        fid=entry.number("fid"),
        scores=_scores(entry),
        label=entry.text("label", default=""),
        achieved_sparsity=entry.maybe_number("achieved_sparsity"),
        parameters=entry.maybe_whole("parameters"),
        seconds=entry.maybe_number("seconds"),
        steps=entry.maybe_whole("steps"),
        share_of_training=entry.maybe_number("share_of_training"),
        seed=entry.maybe_whole("seed"),
        history=entry.maybe_file("history"),
        samples=entry.maybe_file("samples"),
        config=entry.part("config").value,
    )


def _scores(entry: Entry) -> dict[str, float]:
    views, measures = entry.part("views"), entry.part("measures")
    return {f"FID {name}": views.number(name) for name in views.value} | {
        name: measures.number(name) for name in measures.value
    }


def _failure(entry: Entry) -> Failure:
    return Failure(
        key=entry.text("key"),
        technique=entry.text("technique"),
        granularity=entry.text("granularity"),
        sparsity=entry.number("sparsity"),
        reason=entry.text("reason"),
        label=entry.text("label", default=""),
        seed=entry.maybe_whole("seed"),
    )


def _yardstick(entry: Entry) -> tuple[Path, Path]:
    first, second = entry.maybe_file("samples_a"), entry.maybe_file("samples_b")
    if first is None or second is None:
        raise entry.error("must name samples_a and samples_b", entry.value)
    return first, second
