# SPDX-License-Identifier: Apache-2.0
"""How much faster compiled generators are on more threads, beside what the machine itself gains.

    python benchmarks/end_to_end/scaling.py --save
    python benchmarks/end_to_end/scaling.py --families cyclegan --rounds 21
    python benchmarks/end_to_end/scaling.py --families pix2pix --layers

One and --threads threads take turns in one process, so that a change of the machine's clock meets
both; so does a matrix product of torch's, which shows what the machine gave in these minutes. Who
disturbs one core of two delays the whole of a run on both, so the ratio of the fastest rounds
stands beside the median of the rounds' ratios.
Networks, sizes and pruning as in generators.py. --save replaces the families' rows of
results/scaling-<machine>.csv.
--layers tells what a second thread brings where numbers lie in the caches and where they do not, of
element 90 %: the sum of all layers, each in a loop of its own; the same, each after other numbers
have gone through the caches; and the whole generator, which lies between the two.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

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

#: Floats that go through the caches before a cold layer.
EVICTING = 24 << 20
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
    add("--layers", action="store_true", help="layers warm, cold and in the whole, instead")
    chosen = parser.parse_args()
    machine = harness.machine()
    print("  ".join(f"{name}: {value}" for name, value in machine.items()))
    try:
        for family in chosen.families if chosen.layers else ():
            for batch in FAMILIES[family][1]:
                layers(family, batch, chosen.threads, chosen.rounds)
        for family in () if chosen.layers else chosen.families:
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


class Calls(fx.Interpreter):
    """Runs a plan, and keeps what each of its steps was called with."""

    def __init__(self, plan: fx.GraphModule) -> None:
        super().__init__(plan)
        self.kept: list[Candidate] = []

    def run_node(self, n: fx.Node) -> Any:
        """The node's value."""
        if n.op.startswith("call"):
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            args = tuple(x.clone() if isinstance(x, torch.Tensor) else x for x in args)
            call = getattr(self, n.op)
            self.kept.append(lambda: call(n.target, args, kwargs))
        return super().run_node(n)


def layers(family: str, batch: int, count: int, rounds: int) -> None:
    """Print what a second thread brings to the layers, warm and cold, and to the whole."""
    torch.manual_seed(0)
    network = FAMILIES[family][0]()
    network, inputs = still(network, example_inputs(network, None, batch))
    network = runtimes.pruned(network, inputs, "element", 0.9)
    others, read = torch.ones(EVICTING), torch.ones(EVICTING)
    steps: dict[int, list[Candidate]] = {}
    whole: dict[int, nn.Module] = {}
    with torch.no_grad():
        for number in (1, count):
            whole[number] = compiled(network, inputs, number)
            plans: dict[Any, list[fx.GraphModule]] = whole[number]._plans  # type: ignore[assignment]
            (plan,) = next(iter(plans.values()))
            calls = Calls(plan)
            calls.run(*inputs)
            steps[number] = calls.kept
        found: dict[str, dict[int, list[float]]] = {}
        for _ in range(rounds):
            for number in (1, count):
                with timing.threads(number):
                    warm = [least(step, 4) for step in steps[number]]
                    cold = [least(step, 2, others.sum) for step in steps[number]]
                    run = partial(whole[number], *inputs)
                    took = {
                        "layers, warm": sum(warm), "layers, cold": sum(cold),
                        "whole": least(run, 5), "reading memory": least(read.sum, 3),
                    }  # fmt: skip
                    for name, seconds in took.items():
                        found.setdefault(name, {1: [], count: []})[number].append(seconds)
    print(f"\n{family}  batch {batch}  element 90 %  {len(steps[1])} steps", flush=True)
    for name, times in found.items():
        ratios = sorted(one / more for one, more in zip(times[1], times[count], strict=True))
        low, _, high = statistics.quantiles(ratios, n=4)
        one, more = (statistics.median(times[number]) * 1e3 for number in (1, count))
        print(
            f"{name:<16} {one:9.2f} ms, with {count} threads {more:9.2f} ms: "
            f"{statistics.median(ratios):.2f}x ±{high - low:.2f}",
            flush=True,
        )


def least(run: Candidate, tries: int, before: Candidate = lambda: None) -> float:
    """Seconds: the least of some tries, after one that does not count.

    By the clock, however many threads there are; `gansparse.deploy.measure` takes a single thread's
    own time, with which that of two can't be compared.
    """
    run()
    took = []
    for _ in range(tries):
        before()
        begin = time.perf_counter()
        run()
        took.append(time.perf_counter() - begin)
    return min(took)


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
