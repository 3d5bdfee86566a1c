# SPDX-License-Identifier: Apache-2.0
"""How we measure: candidates take turns in one run, and what counts is the ratio between them.

Every round times each candidate once, in an order that rotates, so that whatever slows the machine
down slows all of them. Reported: median and spread of the times, and the median of the rounds'
ratios to ours. Beside them stands the machine's own limit, measured the same way.
"""

from __future__ import annotations

import csv
import datetime
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from gansparse.info import collect

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
OURS = "gansparse"
L2_FLUSH_BYTES = 256 << 20

Candidate = Callable[[], object]
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


@dataclass(frozen=True)
class Measurement:
    """Seconds a round, in the order of the rounds, by candidate."""

    seconds: dict[str, list[float]]

    def median(self, candidate: str) -> float:
        return statistics.median(self.seconds[candidate])

    def spread(self, candidate: str) -> float:
        """Interquartile range over the median."""
        low, _, high = statistics.quantiles(self.seconds[candidate], n=4)
        return (high - low) / self.median(candidate)

    def ratio(self, candidate: str) -> tuple[float, float]:
        """How many times our time the candidate took: median of the rounds, interquartile range."""
        ours = self.seconds[OURS]
        ratios = [theirs / our for theirs, our in zip(self.seconds[candidate], ours, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        return middle, high - low


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def interleave(
    candidates: dict[str, Candidate], rounds: int, device: str = "cpu", warm_up: int = 2
) -> Measurement:
    """Time the candidates in turns; fast ones are repeated within a turn to last 1 ms."""
    timer = _cuda_seconds if device == "cuda" else _cpu_seconds
    repeats = {}
    for name, run in candidates.items():
        for _ in range(warm_up):
            run()
        repeats[name] = max(1, round(1e-3 / max(timer(run, 1), 1e-7)))
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    names = list(candidates)
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(timer(candidates[name], repeats[name]))
    return Measurement(seconds)


def _cpu_seconds(run: Candidate, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats


def _cuda_seconds(run: Candidate, repeats: int) -> float:
    """Each call with a cold L2: the flush lies outside the events."""
    flush = torch.empty(L2_FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    total = 0.0
    for _ in range(repeats):
        flush.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        total += start.elapsed_time(end) * 1e-3
    return total / repeats


# ---- What the machine can do ---------------------------------------------------------------------
# Each gives candidates with the work that they do, in bytes read and written or in flops.


def memory_limits(device: str = "cpu", items: int = 64 << 20) -> dict[str, tuple[Candidate, int]]:
    """A copy, and an addition in place, far larger than the caches.

    On a CPU the copy also reads what it overwrites, which is not counted; the addition writes what
    it has read, as an optimizer does, and is the nearer limit for one.
    """
    x, y = (torch.ones(items, device=device) for _ in range(2))
    return {"copy": (lambda: x.copy_(y), 2 * x.nbytes), "add": (lambda: x.add_(y), 3 * x.nbytes)}


def arithmetic_limits(
    device: str = "cpu", dtype: torch.dtype = torch.float32, size: int = 1536
) -> dict[str, tuple[Candidate, int]]:
    """What comes nearest to the multiply-add peak in torch itself: a square matrix product and, in
    float32, a convolution 3x3 of 256 channels; on a CPU two libraries compute them."""
    a, b = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
    out = torch.empty_like(a)
    limits: dict[str, tuple[Candidate, int]] = {
        "matmul": (lambda: torch.mm(a, b, out=out), 2 * size**3)
    }
    if dtype == torch.float32:
        x = torch.ones(8, 256, 32, 32, device=device).to(memory_format=torch.channels_last)
        w = torch.ones(256, 256, 3, 3, device=device).to(memory_format=torch.channels_last)
        flops = 2 * 9 * 256 * x.numel()
        limits["conv"] = (lambda: F.conv2d(x, w, padding=1), flops)
    return limits


# ---- Running and reporting -----------------------------------------------------------------------


def run_case(case: Case, rounds: int) -> list[Row]:
    """Measure one case; one row a candidate."""
    with threads(case.threads):
        candidates = case.make()
        limits = (
            arithmetic_limits(case.device, case.dtype) if case.flops else memory_limits(case.device)
        )
        runs = {f"limit {name}": run for name, (run, _) in limits.items()}
        measured = interleave({**candidates, **runs}, rounds, case.device)
        errors = case.errors() if case.errors else {}
    rates = {name: work / measured.median(f"limit {name}") for name, (_, work) in limits.items()}
    limit_rate = max(rates.values())
    unit = "GFLOP/s" if case.flops else "GB/s"
    work = case.flops or case.moved_bytes
    rows = []
    for name in candidates:
        rate = work / measured.median(name)
        ratio, ratio_spread = measured.ratio(name)
        rows.append(
            {
                "op": case.op,
                "case": case.name,
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
                "rounds": str(rounds),
            }
        )
    return rows


def machine() -> dict[str, str]:
    """Where and with what: goes into every row."""
    facts = collect()
    cpu = f"{facts['cpu']['machine']} x{os.cpu_count()}"
    devices = facts["cuda"]["devices"]
    head = _git("rev-parse", "--short=10", "HEAD")
    changed = bool(_git("status", "--porcelain", "--untracked-files=no", "--", "csrc", "gansparse"))
    return {
        "machine": f"{cpu}, {devices[0]['name']}" if devices else cpu,
        "simd": facts["cpu"]["simd"],
        "torch": facts["versions"]["torch"],
        "python": platform.python_version(),
        "commit": f"{head}+changes" if changed else head,
        "date": datetime.date.today().isoformat(),
        "load": f"{os.getloadavg()[0]:.1f}",
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
    """Replace the rows of the ops that were measured; leave the other ops' alone."""
    measured = {row["op"] for row in rows}
    kept = [row for row in read_results(path) if row["op"] not in measured]
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(kept, key=lambda row: row["op"]) + rows)


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


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ("git", *arguments), cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()
