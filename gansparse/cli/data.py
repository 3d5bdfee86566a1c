# SPDX-License-Identifier: Apache-2.0
"""`gansparse data`: what a folder looks like to each task, and drawn sets to try one."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from gansparse.cli.options import wide_console
from gansparse.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from gansparse.data.check import Fit
    from gansparse.progress import ProgressBars

data_app = typer.Typer(help="Look at a folder of pictures, or draw one.", no_args_is_help=True)

_SHOWN = 20  # damaged pictures named one by one


@data_app.command("check")
def check(
    path: Annotated[Path, typer.Argument(help="Folder of pictures, or an .npz of digits.")],
    decode: Annotated[
        bool, typer.Option("--decode", help="Decode every picture, to find all damage.")
    ] = False,
) -> None:
    """Tell what a folder looks like to each task: what fits, what is missing, what is damaged.

    Examples:
      gansparse data check ~/facades
      gansparse data check ~/celeba --decode

    Layouts:
      dcgan     PATH/**/*, or MNIST's files
      pix2pix   PATH/{train,test}/*, A and B side by side in each picture
      cyclegan  PATH/{trainA,trainB,testA,testB}/*
      stargan   PATH/images/* and PATH/list_attr_celeba.txt, or PATH/{train,test}/CLASS/*
      srgan     PATH/{DIV2K_train_HR,DIV2K_valid_HR}/*, or PATH/*
    """
    from gansparse.data.check import check_folder
    from gansparse.progress import ProgressBars

    with ProgressBars() as bars:
        threads = min(8, len(os.sched_getaffinity(0)))
        watch = _watch(bars, f"looking at {path.name}")
        fits = check_folder(path, decode=decode, threads=threads, on_file=watch)
    wide_console().print(_table(path, fits))
    odd = {line: None for fit in fits if not fit.problem for line in fit.odd}
    for line in list(odd)[:_SHOWN]:
        typer.echo(f"can't be used: {line}")
    if len(odd) > _SHOWN:
        typer.echo(f"and {len(odd) - _SHOWN} more")
    if all(fit.problem for fit in fits):
        raise InputError(f"{path} fits no task; the table says what each layout lacks")


def _watch(bars: ProgressBars, label: str) -> Callable[[int, int], None]:
    def show(done: int, of: int) -> None:
        if done == 1:
            bars.start(label, of)
        bars.advance(done)

    return show


def _table(path: Path, fits: list[Fit]) -> Table:
    table = Table(title=escape(str(path)))
    for name in ("task", "layout", "fits", "pictures", "smallest, median, largest", "remarks"):
        table.add_column(name, overflow="fold")
    for fit in fits:
        counts = ", ".join(f"{phase} {count}" for phase, count in fit.counts.items())
        few = [fit.sizes[i] for i in (0, len(fit.sizes) // 2, -1)] if fit.sizes else []
        sizes = ", ".join(f"{width}x{height}" for width, height in dict.fromkeys(few))
        remarks = [fit.problem.removeprefix(f"{path}: ")] if fit.problem else []
        if fit.odd and not fit.problem:
            remarks.append(f"{len(fit.odd)} can't be used")
        if fit.labels and not fit.problem:
            more = f" and {len(fit.labels) - 8} more" if len(fit.labels) > 8 else ""
            remarks.append(f"labels {', '.join(fit.labels[:8])}{more}")
        fits_it = "no" if fit.problem else "yes"
        cells = (fit.task, fit.layout, fits_it, counts, sizes, "; ".join(remarks))
        table.add_row(*map(escape, cells))
    return table


@data_app.command("synth")
def synth(
    kind: Annotated[str, typer.Argument(help="aligned, unaligned, attributes, classes or hr.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; empty or not there yet.")],
    count: Annotated[
        int, typer.Option(min=1, help="Pictures to train on, per domain or class.")
    ] = 100,
    size: Annotated[
        int | None, typer.Option(min=16, help="Pixels a side; default: 178, 128 or 256, by kind.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
) -> None:
    """Draw a data set in the folder layout of its task, to try it before you have data.

    Examples:
      gansparse data synth aligned towns --count 400
      gansparse data synth attributes faces --count 500

    aligned     towns from the air and their street maps     pix2pix
    unaligned   towns in summer and others in winter         cyclegan
    attributes  faces with CelebA's five attributes          stargan
    classes     shapes of five colours, a folder each        stargan
    hr          towns from the air, in DIV2K's folders       srgan
    """
    from gansparse.data.synthetic import write_synthetic
    from gansparse.progress import ProgressBars

    with ProgressBars() as bars:
        watch = _watch(bars, f"drawing {kind}")
        done = write_synthetic(kind, out, count=count, size=size, seed=seed, on_picture=watch)
    typer.echo(f"{done} pictures  {out}\nnext: gansparse data check {shlex.quote(str(out))}")
