# SPDX-License-Identifier: Apache-2.0
"""Run the benchmarks of the ops: `python benchmarks/run.py [op …] [--rounds N] [--save | --check]`.

Without a flag the table is printed and nothing is kept. --save writes
benchmarks/results/<machine>.csv: the rows of the cases that were measured, beside the others that
are there. --check compares ratios with that file and exits with status 1 if one fell by more than
5 %.
"""

from __future__ import annotations

import argparse
import importlib
import math
import re
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import harness

OPS = sorted(file.stem.removeprefix("bench_") for file in Path(__file__).parent.glob("ops/*.py"))
TOLERANCE = 0.05


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("ops", nargs="*", metavar="op", help=f"of {', '.join(OPS)} (all)")
    parser.add_argument("--rounds", type=int, default=21, help="turns of every candidate (21)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="CPU threads (1 2)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--cases", default=".*", help="regular expression on the whole name (all)")
    parser.add_argument(
        "--warm",
        action="store_true",
        help="each turn of a candidate lasts 20 ms, the first call left out: the caches hold its\n"
        'own numbers, not those of the others; rows called "… warm" (CPU)',
    )
    parser.add_argument("--seconds", type=float, default=math.inf, help="for a case's rounds")
    parser.add_argument("--file", type=Path, help="instead of benchmarks/results/<machine>.csv")
    todo = parser.add_mutually_exclusive_group()
    todo.add_argument("--save", action="store_true", help="write the file, after every case")
    todo.add_argument("--check", action="store_true", help="fail if a ratio fell by more than 5 %%")
    chosen = parser.parse_args()
    unknown = sorted(set(chosen.ops) - set(OPS))
    if unknown or chosen.rounds < 4:
        parser.error(
            f"no benchmark for {', '.join(unknown)}" if unknown else "--rounds must be at least 4"
        )

    if chosen.warm and chosen.device != "cpu":
        parser.error("--warm is for the CPU: on a GPU the second cache is emptied before each call")

    # float32 means float32, also where the device could round it to TF32.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    path = chosen.file or harness.results_file()
    machine = harness.machine()
    print("  ".join(f"{name}: {value}" for name, value in machine.items()))
    rows = []
    for op in chosen.ops or OPS:
        bench = importlib.import_module(f"benchmarks.ops.bench_{op}")
        for case in bench.cases(chosen.threads, chosen.device):
            if not re.fullmatch(chosen.cases, case.name):
                continue
            measured = harness.run_case(case, chosen.rounds, chosen.seconds, chosen.warm)
            rows += [{**row, **machine} for row in measured]
            print(*(harness.format_row(row) for row in measured), sep="\n", flush=True)
            if chosen.save:
                harness.save_results(rows, path)

    if not rows:
        parser.error(f"no case is called {chosen.cases}")
    if chosen.save:
        print(f"saved {path}")
    if chosen.check:
        fallen = harness.regressions(rows, harness.read_results(path), TOLERANCE)
        print("\n".join(fallen) or "no ratio fell")
        return 1 if fallen else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
