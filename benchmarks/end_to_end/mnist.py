# SPDX-License-Identifier: Apache-2.0
"""The MNIST tables of docs/results.md: readings of the method, and techniques by sparsity.

    python benchmarks/end_to_end/mnist.py readings --data MNIST --out runs/readings
    python benchmarks/end_to_end/mnist.py matrix --data MNIST --out runs/matrix --seeds 0 1 2

Finished runs are kept and not run again, so a stopped table goes on where it was. 10,000 samples,
LeNet features, real pictures: all of MNIST's training digits. bf16 autocast unless --precision.
On two cores two processes of one thread each (`--processes 2`) are 1.7 times as fast as one of two
threads. A seed decides the batches and the new networks' weights.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Iterator
from dataclasses import replace

import torch

from gansparse.cli.compare import finish, run_entries
from gansparse.compress import Reading, TrainConfig, default_steps, load_task
from gansparse.compress.compare import Comparison, Entry
from gansparse.progress import ProgressBars

# One thing changed at a time, from the default reading.
READINGS: dict[str, dict[str, object]] = {
    "default": {},
    "reduction batch": {"reduction": "batch"},
    "D at a quarter of G's rate": {"d_lr_factor": 0.25},
    "guard 0.05": {"normaliser_floor": 0.05},
    "D fixed": {"d_update": "fixed"},
    "D on G_O": {"d_update": "adversarial-original"},
    "D minimises L_DC": {"d_update": "consistency"},
    "no adversarial term": {"adversarial_weight": 0.0},
    "no output term": {"output_term": "none"},
    "output MSE 30": {"output_weight": 30.0},
    "output L1": {"output_term": "l1", "output_weight": 30.0},
    "with features": {"feature_weight": 1.0},
    "D running norm": {"d_norm": "running"},
    "G running norm": {"g_norm": "running"},
}
OURS = [("element", s) for s in (0.25, 0.5, 0.75, 0.9)] + [("filter", s) for s in (0.5, 0.75)]
RIVALS = [(g, s) for g in ("element", "filter") for s in (0.5, 0.75)]


def readings(base: TrainConfig, seeds: list[int], only: list[str]) -> Iterator[Entry]:
    for name, changes in READINGS.items():
        if only and name not in only:
            continue
        reading = replace(Reading(), **changes)
        for seed in seeds:
            yield Entry(replace(base, reading=reading, seed=seed), label=name)


def matrix(base: TrainConfig, seeds: list[int]) -> Iterator[Entry]:
    for seed in seeds:
        for granularity, sparsity in OURS:
            yield Entry(replace(base, granularity=granularity, sparsity=sparsity, seed=seed))
        for recipe in ("d", "g", "k"):
            for granularity, sparsity in RIVALS:
                changes = {"granularity": granularity, "sparsity": sparsity}
                yield Entry(replace(base, recipe=recipe, seed=seed, **changes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("table", choices=("readings", "matrix"))
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, help="default: a tenth of the original training")
    parser.add_argument("--sparsity", type=float, default=0.75, help="of the readings")
    parser.add_argument("--granularity", default="element", help="of the readings")
    parser.add_argument("--only", nargs="*", default=[], choices=list(READINGS))
    parser.add_argument("--precision", default="bf16", choices=("bf16", "fp32"))
    parser.add_argument("--num-samples", type=int, default=10_000)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="of each process; 0: all, shared")
    parser.add_argument("--processes", type=int, default=0, help="runs at a time")
    arguments = parser.parse_args()

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    with ProgressBars() as bars:
        comparison = Comparison(
            functools.partial(load_task, "dcgan", arguments.data),
            "lenet-mnist",
            arguments.out,
            title=f"DCGAN on MNIST: {arguments.table}",
            num_samples=arguments.num_samples,
            device=arguments.device,
            watcher=bars.lane(0),
        )
        base = TrainConfig(
            steps=arguments.steps or default_steps(comparison.task(arguments.seeds[0])),
            sparsity=arguments.sparsity,
            granularity=arguments.granularity,
            precision=arguments.precision,
        )
        if arguments.table == "readings":
            entries = list(readings(base, arguments.seeds, arguments.only))
        else:
            entries = list(matrix(base, arguments.seeds))
        run_entries(
            comparison, entries, bars, processes=arguments.processes, threads=arguments.threads
        )
    sys.exit(finish(comparison.out))


if __name__ == "__main__":
    main()
