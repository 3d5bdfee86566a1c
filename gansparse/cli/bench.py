# SPDX-License-Identifier: Apache-2.0
"""`gansparse bench`: a generator, pruned and compiled, beside the runtimes that are installed."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from gansparse.cli.networks import InputOption, NetworkOption, network_and_inputs
from gansparse.cli.options import MOST_THREADS, BatchOption, EvalOption, SizeOption, check_file, say

if TYPE_CHECKING:
    from gansparse.runtimes import Row


_WIDTH = 110  # of the table


def bench(
    generator: Annotated[
        Path | None,
        typer.Option(help="Weights (.safetensors, .pth), dense or pruned; default: the DCGAN."),
    ] = None,
    network: NetworkOption = None,
    shape: InputOption = None,
    size: SizeOption = None,
    batch: BatchOption = 1,
    eval_mode: EvalOption = False,
    threads: Annotated[
        list[int] | None,
        typer.Option(min=1, max=MOST_THREADS, help="CPU threads, once for each number; default 1."),
    ] = None,
    sparsity: Annotated[
        list[float] | None,
        typer.Option(
            help="Share of zeros, once for each, without training: for times only. Default: a "
            "pruned generator as it is, a dense one at 0, 0.5, 0.75, 0.9."
        ),
    ] = None,
    pattern: Annotated[
        list[str] | None,
        typer.Option(
            "--pattern",
            "--granularity",
            help="element (default), vector or filter; once for each.",
        ),
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            help="Only these runtimes, beside torch: 'torch.compile', 'ONNX Runtime', OpenVINO, "
            "ncnn, 'ONNX Runtime int8'."
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=2, help="Turns of each candidate.")] = 11,
    out: Annotated[Path | None, typer.Option(help="Also write the table as CSV.")] = None,
) -> None:
    r"""How fast a generator runs here: pruned and compiled, and dense in every installed runtime.

    Examples:
      gansparse bench --generator latest_net_G.pth
      gansparse bench --generator latest_net_G.pth --size 512 --threads 1 --threads 2
      gansparse bench --generator G.pth --sparsity 0.75 --pattern element --pattern vector
      gansparse bench --network my_models:Generator --generator G.pth --input 1x3x256x256
      gansparse bench --generator runs/ninety/generator.safetensors --peer "ONNX Runtime"

    Runtimes are installed by pip install 'gansparse\[bench]'; what is missing is left out.
    """
    from gansparse import runtimes
    from gansparse.files import atomic_file
    from gansparse.sparsity import sparsity_report
    from gansparse.testing import timing

    if out is not None:
        check_file(out)
    net, inputs = network_and_inputs(generator, network, shape, size, batch, eval_mode)
    pruned_already = sparsity_report(net).total.sparsity > 0.01
    shares = sparsity or ([0.0] if pruned_already else [0.0, 0.5, 0.75, 0.9])
    patterns = pattern or ["element"]  # without zeros all are the same: once is enough
    variants = [(each, share) for each in patterns for share in shares]
    rows: list[tuple[int, Row]] = []
    for count in threads or [1]:
        with timing.threads(count):
            found = runtimes.line_up(
                net, inputs, variants=variants, peers=peer or runtimes.PEERS, rounds=rounds, say=say
            )
        shapes = ", ".join("×".join(map(str, x.shape)) for x in inputs)
        title = f"{type(net).__name__}  {shapes}  {count} thread{'s' * (count > 1)}"
        console = Console()
        console.width = max(console.width, _WIDTH)  # a figure that is cut is none
        console.print(_table(found, title))
        for each in dict.fromkeys(row.pattern for row in found if row.candidate == runtimes.OURS):
            say(f"break-even  {each}: {runtimes.break_even(found, each)} zeros")
        for slower in runtimes.slower_than_torch(found):
            say(f"slower than torch  {slower}")
        rows += [(count, row) for row in found]
    if out is not None:
        text = io.StringIO()
        writer = csv.DictWriter(text, ["threads", *rows[0][1].texts()], lineterminator="\n")
        writer.writeheader()
        writer.writerows({"threads": str(n)} | row.texts() for n, row in rows)
        with atomic_file(out) as temporary:
            temporary.write_text(text.getvalue())
        say(f"table  {out}")


def _table(rows: list[Row], title: str) -> Table:
    table = Table(
        title=title,
        caption="more than 1 × is faster; * is the best, the fastest float32 runtime",
        box=box.SIMPLE,
    )
    for name in ("runtime", "pattern", "zeros", "ms", "±", "× best", "× torch", "peak", "error"):
        table.add_column(name, no_wrap=True)
    for row in rows:
        table.add_row(
            row.candidate,
            row.pattern,
            f"{row.sparsity:.0%}",
            f"{row.median_ms:.2f}",
            f"{row.spread:.0%}",
            f"{row.times_best:.2f}{' *' if row.candidate == row.best else ''}",
            f"{row.times_torch:.2f}",
            f"{row.share_of_peak:.0%}" if row.share_of_peak else "",
            f"{row.error:.1e}",
        )
    return table
