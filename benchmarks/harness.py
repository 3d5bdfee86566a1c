# SPDX-License-Identifier: Apache-2.0
"""How we measure: candidates take turns in one run, and what counts is the ratio between them.

Reported: median and spread of the times (`gansparse.testing.timing`), and the median of the rounds'
ratios to ours. Beside them stands the machine's own limit, measured the same way.
"""

from __future__ import annotations

import csv
import datetime
import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gansparse.info import collect
from gansparse.testing.timing import (
    Candidate,
    arithmetic_limits,
    interleave,
    memory_limits,
    threads,
)

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
OURS = "gansparse"
WARM = " warm"
Row = dict[str, str]


@dataclass(frozen=True)
class Case:
    """One line-up of candidates that do the same work.

    Args:
        op: the op's name.
        name: what is worked on.
        make: builds the candidates by name; ours is called OURS. Called once the threads are set.
        threads: CPU threads.
        sparsity: share pruned; None where the op knows no pruning.
        moved_bytes: bytes our algorithm must read and write: one read and one write each.
        flops: multiply-adds count two; 0 where memory is the limit.
        device: cpu or cuda.
        dtype: of the arithmetic that `flops` counts; the limit is measured in it.
        errors: how far each candidate is from the truth, relative; "" where that is no question.
    """

    op: str
    name: str
    make: Callable[[], dict[str, Candidate]]
    threads: int
    sparsity: float | None = None
    moved_bytes: int = 0
    flops: int = 0
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    errors: Callable[[], dict[str, float]] | None = None


# ---- Running and reporting -----------------------------------------------------------------------


def run_case(case: Case, rounds: int, seconds: float = math.inf, warm: bool = False) -> list[Row]:
    """Measure one case for about so many seconds at most; one row a candidate.

    Where the caches are ``warm``, the case's name says so.
    """
    with threads(case.threads):
        candidates = working(case.make())
        limits = (
            arithmetic_limits(case.device, case.dtype) if case.flops else memory_limits(case.device)
        )
        runs = {f"limit {name}": run for name, (run, _) in limits.items()}
        measured = interleave(
            {**candidates, **runs}, rounds, case.device, seconds=seconds, warm=warm
        )
        try:
            errors = case.errors() if case.errors else {}
        except Exception as error:  # the times are known, and stay
            print(f"{case.op} {case.name}: errors not measured: {error}", file=sys.stderr)
            errors = {}
    rates = {name: work / measured.median(f"limit {name}") for name, (_, work) in limits.items()}
    limit_rate = max(rates.values())
    unit = "GFLOP/s" if case.flops else "GB/s"
    work = case.flops or case.moved_bytes
    rows = []
    for name in candidates:
        rate = work / measured.median(name)
        ratio, ratio_spread = measured.ratio(name, OURS)
        rows.append(
            {
                "op": case.op,
                "case": f"{case.name}{WARM if warm else ''}",
                "device": case.device,
                "threads": str(case.threads),
                "sparsity": "" if case.sparsity is None else f"{case.sparsity:g}",
                "candidate": name,
                "median_ms": f"{measured.median(name) * 1e3:.4g}",
                "spread": f"{measured.spread(name):.3f}",
                "times_ours": f"{ratio:.3f}",
                "times_ours_iqr": f"{ratio_spread:.3f}",
                "limits": " ".join(f"{n} {r / 1e9:.4g}" for n, r in rates.items()) + f" {unit}",
                "share_of_limit": f"{rate / limit_rate:.3f}" if name == OURS else "",
                "error": f"{errors[name]:.1e}" if name in errors else "",
                "rounds": str(len(measured.seconds[name])),
            }
        )
    return rows


def working(candidates: dict[str, Candidate]) -> dict[str, Candidate]:
    """Ours, and those of the others that run here; the rest is named with its reason."""
    found = {}
    for name, run in candidates.items():
        try:
            run()
        except Exception as error:  # whatever a peer raises
            if name == OURS:
                raise
            told = f"{type(error).__name__}: {error}".splitlines()[0]
            print(f"{name} does not run here: left out: {told}", file=sys.stderr)
        else:
            found[name] = run
    return found


def machine() -> dict[str, str]:
    """Where and with what: goes into every row."""
    facts = collect()
    cpu = f"{facts['cpu']['machine']} x{os.cpu_count()}"
    devices = facts["cuda"]["devices"]
    head = _told("git", "rev-parse", "--short=10", "HEAD") or os.environ.get("COMMIT", "")
    status = ("git", "status", "--porcelain", "--untracked-files=no")
    changed = bool(_told(*status, "--", "csrc", "gansparse"))
    return {
        "machine": f"{cpu}, {devices[0]['name']}" if devices else cpu,
        "simd": facts["cpu"]["simd"],
        "torch": facts["versions"]["torch"],
        **cuda_versions(facts["cuda"]),
        "python": platform.python_version(),
        "commit": f"{head}+changes" if changed else head,
        "date": datetime.date.today().isoformat(),
        "load": f"{os.getloadavg()[0]:.1f}",
    }


def cuda_versions(facts: dict[str, Any]) -> dict[str, str]:
    """What times on a GPU depend on besides; nothing where there is none.

    The driver's own version and that of CUDA which it knows, those of CUDA and cuDNN that torch
    brought, and the nvcc that our kernels were compiled with.
    """
    if not facts["devices"] or not torch.cuda.is_available():
        return {}
    known = facts["driver"]
    smi = _told("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    driver = [*smi.splitlines()[:1], f"CUDA {known // 1000}.{known % 1000 // 10}"]
    return {
        "driver": " ".join(driver),
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
        "nvcc": facts["nvcc"],
    }


def results_file() -> Path:
    slug = re.sub(r"[^a-z0-9]+", "-", machine()["machine"].lower()).strip("-")
    return RESULTS / f"{slug}.csv"


def read_results(path: Path) -> list[Row]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def save_results(rows: list[Row], path: Path) -> None:
    """Replace the rows of the cases that were measured; leave the others alone."""
    measured = {(row["op"], row["case"]) for row in rows}
    kept = [row for row in read_results(path) if (row["op"], row["case"]) not in measured]
    write_rows(sorted(kept, key=lambda row: row["op"]) + rows, path)


def write_rows(rows: list[Row], path: Path) -> None:
    """A CSV whose columns are those of the last row, then what only others have."""
    columns = dict.fromkeys(column for row in reversed(rows) for column in row)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def key(row: Row) -> tuple[str, ...]:
    return tuple(row[k] for k in ("op", "case", "device", "threads", "sparsity", "candidate"))


def regressions(rows: Iterable[Row], before: Iterable[Row], tolerance: float) -> list[str]:
    """Where the ratio to a peer fell by more than the tolerance; one is enough to fail a run."""
    old = {key(row): float(row["times_ours"]) for row in before}
    found = []
    for row in rows:
        was, now = old.get(key(row)), float(row["times_ours"])
        if was is not None and now < was * (1 - tolerance):
            found.append(f"{' '.join(filter(None, key(row)))}: {was:.2f} times ours, now {now:.2f}")
    return found


def format_row(row: Row) -> str:
    line = (
        f"{row['case']:<18} {row['threads']:>2} threads  sparsity {row['sparsity'] or '-':>4}  "
        f"{row['candidate']:<24} {float(row['median_ms']):9.3f} ms ±{float(row['spread']):4.0%}  "
        f"{float(row['times_ours']):6.2f}x"
    )
    line += f"  error {row['error']}" if row["error"] else ""
    if not row["share_of_limit"]:
        return line
    return f"{line}  {float(row['share_of_limit']):.0%} of the limit ({row['limits']})"


def _told(*command: str) -> str:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:  # there is no such program
        return ""
    return done.stdout.strip()
