# SPDX-License-Identifier: Apache-2.0
"""Whole generators on a GPU: ours, 2:4 in a CUDA graph, beside what torch makes of the dense one.

    python benchmarks/end_to_end/generators_cuda.py --save
    python benchmarks/end_to_end/generators_cuda.py --families stargan --peers "cudnn.*"

Standard sizes, weights as torch draws them; ours lost two of each four by size, without training:
for times only. Medians of interleaved calls with a cold L2; peers in channels_last where they are
faster so. torch.compile takes a minute or more to search: --limit starts no case after so many
seconds. --save writes each case to results/<machine>.csv as it is measured, as op "generators".
"""

from __future__ import annotations

import argparse
import copy
import re
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import harness
from benchmarks.end_to_end.generators import FAMILIES
from gansparse.deploy import compile
from gansparse.models import example_inputs
from gansparse.runtimes import work
from gansparse.sparsity import Pruner
from gansparse.testing.timing import Candidate

Inputs = tuple[Tensor, ...]
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
DEVICE = "cuda"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    add("--batches", nargs="+", type=int, default=[1, 16])
    add("--dtypes", nargs="+", choices=DTYPES, default=["bfloat16"])
    add("--peers", default=".*", help="regular expression on the whole name (all)")
    add("--size", type=int, help="of the pictures (the standard one)")
    add("--rounds", type=int, default=21)
    add("--limit", type=float, default=float("inf"), help="seconds after which no case starts")
    add("--explain", action="store_true", help="print which layer runs how")
    add("--save", action="store_true", help="write the CSV")
    add("--file", type=Path, help="instead of benchmarks/results/<machine>.csv")
    chosen = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(2, "generators_cuda: torch finds no CUDA device\n")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    machine, end = harness.machine(), time.monotonic() + chosen.limit
    path = chosen.file or harness.results_file()
    print("  ".join(f"{name}: {value}" for name, value in machine.items()))
    for batch in chosen.batches:
        for family in chosen.families:
            for dtype in chosen.dtypes:
                if time.monotonic() > end:
                    print(f"generator {family} b{batch} {dtype}: not measured, --limit is over")
                    continue
                rows = harness.run_case(case(family, batch, dtype, chosen), chosen.rounds)
                print(*(harness.format_row(row) for row in rows), sep="\n", flush=True)
                if chosen.save:
                    before = harness.read_results(path)
                    names = {(row["op"], row["case"]) for row in rows}
                    kept = [row for row in before if (row["op"], row["case"]) not in names]
                    harness.write_rows([*kept, *({**row, **machine} for row in rows)], path)
    return 0


def case(family: str, batch: int, dtype: str, chosen: argparse.Namespace) -> harness.Case:
    """One family's line-up."""
    torch.manual_seed(0)
    dense = FAMILIES[family][0]().eval()
    size = None if family == "dcgan" else chosen.size
    inputs = tuple(x.to(DEVICE, DTYPES[dtype]) for x in example_inputs(dense, size, batch))
    pruned = copy.deepcopy(dense)
    Pruner(pruned, 0.5, "2:4").prune_to(0.5)
    flops = batch * work(pruned, example_inputs(dense, size, 1))[0]
    networks = [net.to(DEVICE, DTYPES[dtype]) for net in (pruned, dense)]
    made: dict[str, Candidate] = {}

    def make() -> dict[str, Candidate]:
        made.update(candidates(networks[0], networks[1], inputs, chosen))
        return made

    @torch.no_grad()
    def errors() -> dict[str, float]:
        """Ours, and torch's own in this dtype, from float32."""
        exact = copy.deepcopy(pruned).float()(*(x.float() for x in inputs))
        found: dict[str, Any] = {harness.OURS: made[harness.OURS](), "cudnn": pruned(*inputs)}
        scale = float(exact.abs().max())
        return {name: float((y.float() - exact).abs().max()) / scale for name, y in found.items()}

    return harness.Case(
        "generators",
        f"{family} b{batch} {dtype} 2:4",
        make,
        threads=torch.get_num_threads(),
        sparsity=0.5,
        flops=flops,
        device=DEVICE,
        dtype=DTYPES[dtype],
        errors=errors,
    )


def candidates(
    pruned: nn.Module, dense: nn.Module, inputs: Inputs, chosen: argparse.Namespace
) -> dict[str, Candidate]:
    """Ours, and those peers that were asked for; what can't be made is said."""
    ours = compile(pruned, inputs)
    print(ours.explain() if chosen.explain else ours.explain().verdict)
    runs: dict[str, Candidate] = {harness.OURS: partial(ours, *inputs)}
    last = [x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x for x in inputs]
    to: Any = copy.deepcopy(dense).to  # torch's annotation lacks memory_format
    network: nn.Module = to(memory_format=torch.channels_last)
    peers: dict[str, Callable[[], Candidate]] = {
        "cudnn": lambda: partial(dense, *inputs),
        "cudnn channels_last": lambda: partial(network, *last),
        "torch.compile max-autotune": lambda: partial(
            torch.compile(network, mode="max-autotune"), *last
        ),
    }
    torch.backends.cudnn.benchmark = True
    torch._dynamo.reset()
    for name, make in peers.items():
        if not re.fullmatch(chosen.peers, name):
            continue
        try:
            run = torch.inference_mode()(make())
            run()
            runs[name] = run
        except Exception as error:  # whatever a compiler raises
            print(f"{name}: left out: {type(error).__name__} {error}".splitlines()[0][:200])
    return runs


if __name__ == "__main__":
    sys.exit(main())
