# SPDX-License-Identifier: Apache-2.0
"""How much faster compiled generators are on more threads, beside what the machine itself gains.

    python benchmarks/end_to_end/scaling.py --save
    python benchmarks/end_to_end/scaling.py --families cyclegan --rounds 21

One and --threads threads take turns in one process, so that a change of the machine's clock meets
both; so does a matrix product of torch's, which shows what the machine gave in these minutes. Who
disturbs one core of two delays the whole of a run on both, so the ratio of the fastest rounds
stands beside the median of the rounds' ratios.
Networks, sizes and pruning as in generators.py. --save replaces the families' rows of
results/scaling-<machine>.csv.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import harness
from benchmarks.end_to_end.generators import FAMILIES
from gansparse import deploy, runtimes
from gansparse.errors import GansparseError
from gansparse.export import still
from gansparse.models import example_inputs
from gansparse.runtimes import OURS
from gansparse.testing import timing
from gansparse.testing.timing import Candidate

VARIANTS = (
    ("element", 0.0),
    ("element", 0.75),
    ("element", 0.9),
    ("vector", 0.75),
    ("vector", 0.9),
    ("filter", 0.5),
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    add("--threads", type=int, default=2)
    add("--rounds", type=int, default=11)
    add("--save", action="store_true", help="write the CSV")
    chosen = parser.parse_args()
    machine = harness.machine()
    print("  ".join(f"{name}: {value}" for name, value in machine.items()))
    try:
        for family in chosen.families:
            rows = [
                row
                for batch in FAMILIES[family][1]
                for row in generator(family, batch, chosen.threads, chosen.rounds)
            ]
            if chosen.save:
                save([{**row, **machine} for row in rows])
    except GansparseError as error:
        parser.exit(2, f"{error}\n")
    return 0


def save(rows: list[harness.Row]) -> None:
    """Replace a family's rows."""
    path = harness.results_file().with_name(f"scaling-{harness.results_file().name}")
    kept = [r for r in harness.read_results(path) if r["family"] != rows[0]["family"]]
    harness.write_rows(sorted(kept + rows, key=lambda row: row["family"]), path)


def generator(family: str, batch: int, count: int, rounds: int) -> list[harness.Row]:
    """Torch's own, and ours in each pattern, compiled for one thread and for `count`."""
    torch.manual_seed(0)
    network = FAMILIES[family][0]()
    network, inputs = still(network, example_inputs(network, None, batch))

    def ready(net: nn.Module) -> tuple[Candidate, Candidate]:
        one, more = (compiled(net, inputs, number) for number in (1, count))
        return lambda: one(*inputs), lambda: more(*inputs)

    (product, _) = timing.arithmetic_limits()["matmul"]
    runs: dict[str, tuple[Candidate, Candidate]] = {
        "matrix product": (product, product),
        "torch": (lambda: network(*inputs), lambda: network(*inputs)),
    }
    for pattern, sparsity in VARIANTS:
        net = runtimes.pruned(network, inputs, pattern, sparsity) if sparsity else network
        runs[f"{OURS} {pattern} {sparsity:g}"] = ready(net)
    return compare(family, batch, runs, count, rounds)


def compiled(network: nn.Module, inputs: tuple[torch.Tensor, ...], count: int) -> nn.Module:
    with timing.threads(count):
        return deploy.compile(network, inputs)


def compare(
    name: str, batch: int, runs: dict[str, tuple[Candidate, Candidate]], count: int, rounds: int
) -> list[harness.Row]:
    """Time the same work on one thread and on `count`, in turns.

    Args:
        name: of the network.
        batch: of the network.
        runs: by candidate, what to run on one thread, and what on `count`.
        count: threads.
        rounds: turns of each.
    """

    def on(number: int, run: Candidate) -> Candidate:
        def call() -> None:
            if torch.get_num_threads() != number:
                torch.set_num_threads(number)
            run()

        return call

    turns = {
        f"{key} {number}": on(number, run)
        for key, pair in runs.items()
        for number, run in zip((1, count), pair, strict=True)
    }
    with torch.no_grad(), timing.threads(count):
        measured = timing.interleave(turns, rounds, pause=0.01)
    rows = []
    print(f"\n{name}  batch {batch}", flush=True)
    for key in runs:
        one, more = f"{key} 1", f"{key} {count}"
        times, iqr = measured.ratio(one, more)
        fastest = min(measured.seconds[one]) / min(measured.seconds[more])
        rows.append(
            {
                "family": name,
                "batch": str(batch),
                "candidate": key,
                "ms_1_thread": f"{measured.median(one) * 1e3:.4g}",
                "threads": str(count),
                "ms": f"{measured.median(more) * 1e3:.4g}",
                "times": f"{times:.3f}",
                "times_iqr": f"{iqr:.3f}",
                "times_fastest": f"{fastest:.3f}",
                "rounds": str(rounds),
            }
        )
        print(
            f"{key:<24} {measured.median(one) * 1e3:9.2f} ms, with {count} threads "
            f"{measured.median(more) * 1e3:9.2f} ms: {times:.2f}x ±{iqr:.2f}, "
            f"fastest rounds {fastest:.2f}x",
            flush=True,
        )
    return rows


if __name__ == "__main__":
    sys.exit(main())
