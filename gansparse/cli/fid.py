# SPDX-License-Identifier: Apache-2.0
"""`gansparse fid`: Fréchet distance between sets of pictures, with pytorch-fid's arguments."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gansparse.cli.options import (
    SEEDS,
    DeviceOption,
    ExtractorWeightsOption,
    ModeOption,
    ThreadsOption,
    check_file,
    check_place,
    choose_device,
    stoppable,
)
from gansparse.errors import InputError

if TYPE_CHECKING:
    from gansparse.data.folder import PictureFolder
    from gansparse.metrics.statistics import PictureSet, Statistics
    from gansparse.progress import ProgressBars


def fid(
    a: Annotated[
        Path, typer.Argument(metavar="A", help="Folder of pictures, or .npz of statistics.")
    ],
    b: Annotated[
        Path | None,
        typer.Argument(metavar="B", help="Likewise; with --save-stats the .npz to write."),
    ] = None,
    generator: Annotated[
        Path | None, typer.Option(help="Weights of a DCGAN generator, in place of B.")
    ] = None,
    num: Annotated[
        int | None,
        typer.Option(
            "--num",
            "--num-samples",
            min=2,
            help="Pictures that the generator draws; default: 50,000.",
        ),
    ] = None,
    extractor: Annotated[
        str, typer.Option(help="inception, lenet-mnist or efficientnet-lite0.")
    ] = "inception",
    mode: ModeOption = None,
    dims: Annotated[
        int | None, typer.Option(help="Inception's features: 64, 192, 768 or 2048 (default).")
    ] = None,
    weights: ExtractorWeightsOption = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at a time.")] = 50,
    num_workers: Annotated[
        int | None,
        typer.Option(
            "--num-workers",
            "--workers",
            min=0,
            help="Processes that read pictures; default: cores, at most 8.",
        ),
    ] = None,
    recursive: Annotated[
        bool, typer.Option("--recursive", help="Also the pictures in subfolders.")
    ] = False,
    save_stats: Annotated[
        bool, typer.Option("--save-stats", help="Write the statistics of one side as an .npz.")
    ] = False,
    seed: Annotated[int, typer.Option(**SEEDS, help="Of the generator's latents.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder for fid.json and what --resume needs.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on with the run in --out.")] = False,
    save_every: Annotated[int, typer.Option(min=1, help="Pictures between savings.")] = 5000,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
) -> None:
    """Fréchet distance (FID) between folders of pictures, statistics files, a generator's pictures.

    Examples:
      gansparse fid real/ fake/
      gansparse fid cifar10.npz --generator G.pth --num 50000 --out runs/fid
      gansparse fid real/ real.npz --save-stats --mode clean
      gansparse fid digits/ fake/ --extractor lenet-mnist
    """
    from gansparse.data.folder import PictureFolder
    from gansparse.metrics.features import get_extractor
    from gansparse.metrics.generated import GeneratedPictures
    from gansparse.metrics.statistics import Statistics, check_enough, statistics_of
    from gansparse.progress import ProgressBars

    where = choose_device(device, threads)
    paths = [path for path in (a, b) if path is not None]
    target = _free(paths.pop()) if save_stats else None
    workers = min(8, len(os.sched_getaffinity(0))) if num_workers is None else num_workers
    partials = _partials(out, resume)
    sides: list[Any] = [_side(path, recursive, workers) for path in paths]
    if len(sides) + (generator is not None) != (1 if save_stats else 2):
        raise InputError(
            "fid compares two sides, A and B or A and --generator; --save-stats takes one, "
            "and the .npz to write"
        )
    if num is not None and generator is None:
        raise InputError("--num is of what --generator draws: of a folder all pictures are taken")
    settings = {"mode": mode, "dims": dims, "weights": weights}
    chosen = {name: value for name, value in settings.items() if value is not None}
    if generator is not None:
        sides.append(GeneratedPictures(generator, num or 50_000, seed=seed, device=where))
    if not all(isinstance(side, Statistics) for side in sides):
        for side in sides:  # before weights are fetched and pictures read
            if not isinstance(side, Statistics):
                check_enough(side)
        network = get_extractor(extractor, where, **chosen)
        for side in sides:
            if isinstance(side, Statistics):
                side.check_against("this run", network.num_features, network.describe())
            elif isinstance(side, PictureFolder):
                side.channels = network.channels
    elif chosen:
        raise InputError(f"--{next(iter(chosen))} has no effect: the .npz are statistics already")

    def measured(side: Statistics | PictureSet, partial: Path | None) -> Statistics:
        if isinstance(side, Statistics):
            return side
        return statistics_of(
            side,
            network,
            batch_size=batch_size,
            partial=partial,
            save_every=save_every,
            device=where,
            on_batch=_bar(bars, side),
        )

    how = "a run with --out can be resumed" if out is None else "--resume goes on"
    with ProgressBars() as bars, stoppable(how):
        found = [measured(side, partial) for side, partial in zip(sides, partials, strict=False)]
    if target is None:
        _finish(found, out, as_json)
    else:
        found[0].save(target)
        typer.echo(f"{_facts(found)}\nstatistics  {target}")


def _free(path: Path) -> Path:
    """The path of a file that is not there yet."""
    if path.exists():
        raise InputError(f"{path} is there already: choose another name for the statistics")
    if path.suffix != ".npz":
        raise InputError(f"--save-stats: the last path is written and must end in .npz, got {path}")
    check_file(path, "place")
    return path


def _side(path: Path, recursive: bool, workers: int) -> Statistics | PictureFolder:
    """What a path holds: statistics, or pictures to be measured."""
    from gansparse.data.folder import PictureFolder
    from gansparse.metrics.statistics import load_statistics

    if path.suffix == ".npz":
        return load_statistics(path)
    if not path.is_dir():
        raise InputError(f"{path} is neither a folder of pictures nor an .npz of statistics")
    return PictureFolder(path, recursive=recursive, num_workers=workers)


def _partials(out: Path | None, resume: bool) -> list[Path | None]:
    """Where each side's partial statistics are kept."""
    if out is None:
        if resume:
            raise InputError("--resume needs --out, the folder of the run to go on with")
        return [None, None]
    check_place(out)
    partials = [out / f"{side}.safetensors" for side in ("a", "b")]
    if not resume and any(path.exists() for path in partials):
        raise InputError(f"{out} holds a run already: add --resume, or choose another --out")
    return list(partials)


def _bar(bars: ProgressBars, pictures: PictureSet) -> Callable[[int], None]:
    """Shows how many pictures are done; what a resumed run finds done takes no part in the rate."""
    found: list[int] = []

    def show(done: int) -> None:
        if found:
            bars.advance(done - found[0])
        else:
            found.append(done)
            bars.start(Path(pictures.name).name, len(pictures) - done)

    return show


def _finish(sides: list[Statistics], out: Path | None, as_json: bool) -> None:
    """Distance, printed and written."""
    from gansparse.files import write_json

    distance = sides[0].distance(sides[1])
    result = {
        "fid": distance,
        "extractor": sides[0].extractor or sides[1].extractor,
        "sides": [{"source": side.source, "count": side.count} for side in sides],
    }
    if out is not None:
        write_json(out / "fid.json", result)
    text = f"FID:  {distance:.10g}\n{_facts(sides)}"
    typer.echo(json.dumps(result, indent=2) if as_json else text)
    for note in _notes(sides):
        typer.echo(f"note: {note}", err=True)


def _facts(sides: list[Statistics]) -> str:
    """What the number depends on, in a line."""
    from gansparse.metrics.features import in_a_line

    made = sides[0].extractor or sides[-1].extractor
    width = sides[0].mean.shape[0]
    words = [in_a_line(made) if made else f"extractor unknown, {width} features"]
    words += [f"{'?' if side.count is None else side.count} x {side.source}" for side in sides]
    return ", ".join(words)


def _notes(sides: list[Statistics]) -> list[str]:
    """What a reader of the number should know."""
    notes = [
        f"{side.source} does not say which extractor made it; only its size was checked"
        for side in sides
        if side.extractor is None
    ]
    few = [side.count for side in sides if side.count is not None]
    width = sides[0].mean.shape[0]
    if few and min(few) <= width:
        notes.append(
            f"{min(few)} pictures for {width} features: FID is biased upwards by so few; compare "
            "it at equal counts only"
        )
    return notes
