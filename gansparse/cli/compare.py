# SPDX-License-Identifier: Apache-2.0
"""`gansparse compare` and `gansparse sweep`: many runs of one task, one table, every figure."""

from __future__ import annotations

import functools
import inspect
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gansparse.cli.options import (
    MOST_THREADS,
    AttributesOption,
    ConfigOption,
    CropSizeOption,
    DamagedOption,
    DeviceOption,
    DirectionOption,
    DiscriminatorOption,
    DryRunOption,
    ExtractorOption,
    ExtractorWeightsOption,
    GanModeOption,
    GeneratorOption,
    IdentityOption,
    ImageSizeOption,
    LoadSizeOption,
    ModeOption,
    PicturesOption,
    Precision,
    SamplesOption,
    ScaleOption,
    TaskName,
    TestSetOption,
    VGGOption,
    WeightsOption,
    WorkersOption,
    check_place,
    choose_device,
    pictures,
    stoppable,
    term_weights,
    wide_console,
)
from gansparse.errors import InputError
from gansparse.progress import ProgressBars

if TYPE_CHECKING:
    import torch

    from gansparse.compress.compare import Comparison, Entry, MakeExtractor
    from gansparse.compress.config import TrainConfig


def compare(
    task: Annotated[TaskName, typer.Option(help="Which GAN.")] = TaskName.dcgan,
    techniques: Annotated[
        str, typer.Option(help="Letters of Table 1: a-o, or b,d,g,k, or a-c,k.")
    ] = "a-o",
    sparsities: Annotated[
        str, typer.Option("--sparsity", "--sparsities", help="Shares of zeros: 0.5, or 0.5,0.75.")
    ] = "0.5",
    granularities: Annotated[
        str,
        typer.Option(
            "--granularity",
            "--granularities",
            help="Of element, vector, block, kernel, filter, 2:4: element, or element,filter.",
        ),
    ] = "element",
    seeds: Annotated[
        str, typer.Option("--seeds", "--seed", help="Each run with each of these: 0, or 0,1,2.")
    ] = "0",
    bits: Annotated[
        str | None, typer.Option(help="Of a weight, in technique m: 1,2,4; default: 4.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Of each run; default: as of compress.")
    ] = None,
    include: Annotated[list[str] | None, typer.Option(help="Only these layers (globs).")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="All but these layers.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=VALUE: any field of TrainConfig or Reading, of all runs."),
    ] = None,
    data: PicturesOption = None,
    generator: GeneratorOption = None,
    discriminator: DiscriminatorOption = None,
    yardstick: Annotated[
        list[Path] | None,
        typer.Option(
            help="Weights of a second dense generator, of another seed: what differs between the "
            "two is noise of training. Twice for CycleGAN."
        ),
    ] = None,
    direction: DirectionOption = None,
    load_size: LoadSizeOption = None,
    crop_size: CropSizeOption = None,
    image_size: ImageSizeOption = None,
    attributes: AttributesOption = None,
    scale: ScaleOption = None,
    vgg: VGGOption = None,
    test_sets: TestSetOption = None,
    weight: WeightsOption = None,
    gan_mode: GanModeOption = None,
    identity: IdentityOption = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Default: the original's."),
    ] = None,
    num_workers: WorkersOption = None,
    on_damaged: DamagedOption = None,
    extractor: ExtractorOption = None,
    mode: ModeOption = None,
    extractor_weights: ExtractorWeightsOption = None,
    num_samples: SamplesOption = 10_000,
    precision: Precision = Precision.fp32,
    save_every: Annotated[int, typer.Option(min=0, help="Steps between checkpoints.")] = 200,
    out: Annotated[Path, typer.Option(help="Folder for the runs and the report.")] = Path(
        "runs/compare"
    ),
    device: DeviceOption = "auto",
    processes: Annotated[
        int,
        typer.Option(min=0, help="Runs at a time; 0: one on CPUs, or one for each GPU there is."),
    ] = 0,
    threads: Annotated[
        int,
        typer.Option(
            min=0, max=MOST_THREADS, help="CPU threads of each process; 0: the cores, shared out."
        ),
    ] = 0,
    dry_run: DryRunOption = False,
    config: ConfigOption = None,
) -> None:
    """Compress one generator with several techniques, score all, write the report of all figures.

    Examples:
      gansparse compare --task dcgan --techniques a-o --sparsity 0.5 --out runs/table1
      gansparse compare --techniques b,d,g,k --sparsity 0.75 --seeds 0,1,2 --processes 2
      gansparse compare --task pix2pix --dataroot ~/maps --generator latest_net_G.pth
        --discriminator latest_net_D.pth --yardstick other_seed/latest_net_G.pth

    The same command goes on where it was stopped; finished runs are kept. A run that fails is in
    the table with its reason, and the exit status is 2.
    """
    from gansparse.compress import TrainConfig, default_steps, load_task
    from gansparse.compress.api import default_extractor
    from gansparse.compress.compare import Comparison
    from gansparse.compress.plan import plan_runs

    letters, seed_list = parse_techniques(techniques), _numbers("--seeds", seeds, int)
    bit_list = [] if bits is None else _numbers("--bits", bits, int)
    grid = [
        (granularity.strip(), sparsity)
        for granularity in granularities.split(",")
        for sparsity in _numbers("--sparsities", sparsities, float)
    ]
    where = choose_device(device, threads)
    if not dry_run:
        check_place(out)
    source = functools.partial(
        load_task,
        task.value,
        pictures(task, data),
        direction=direction,
        load_size=load_size,
        crop_size=crop_size,
        image_size=image_size,
        attributes=attributes,
        scale=scale,
        vgg=vgg,
        test_sets=test_sets,
        weights=term_weights(weight),
        gan_mode=gan_mode,
        identity=identity,
        batch_size=batch_size,
        num_workers=num_workers,
        on_damaged=on_damaged,
    )
    second = source(generator=yardstick, scoring=True, seed=0).generator if yardstick else None
    source = functools.partial(source, generator=generator, discriminator=discriminator)
    with stoppable("the same command goes on where it was"), ProgressBars() as bars:
        comparison = Comparison(
            source,
            "lenet-mnist"  # comes with the package, and nothing is scored
            if dry_run
            else _make_extractor(
                extractor or default_extractor(task.value), mode, extractor_weights
            ),
            out,
            title=_title(task.value, letters, grid),
            num_samples=num_samples,
            yardstick=second,
            device=where,
            watcher=bars.lane(0),
        )
        base = TrainConfig(
            steps=steps or default_steps(comparison.task(seed_list[0])),
            include=tuple(include or ()),
            exclude=tuple(exclude or ()),
            precision=precision.value,
            save_every=save_every,
        ).with_settings(settings or ())
        entries = entries_of(base, letters, grid, seed_list, bit_list)
        if dry_run:
            devices = devices_for(where, processes)[: len(entries)]
            wide_console().print(plan_runs(comparison, entries, len(devices)))
            return
        run_entries(comparison, entries, bars, processes=processes, threads=threads)
    raise typer.Exit(finish(out))


def _with_options_of(
    command: Callable[..., None], **defaults: Any
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a function of any keywords the options of a command, some with other defaults."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        parameters = [
            parameter.replace(default=defaults.get(name, parameter.default))
            for name, parameter in signature.parameters.items()
        ]
        function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        function.__annotations__ = {p.name: p.annotation for p in parameters}
        return function

    return decorate


@_with_options_of(
    compare,
    techniques="b",
    sparsities="0.25,0.5,0.75,0.9",
    granularities="element,filter",
    out=Path("runs/sweep"),
)
def sweep(**options: Any) -> None:
    """Compress one generator to several sparsities in several granularities; as `compare` else.

    Examples:
      gansparse sweep --task dcgan --granularities element,filter --sparsities 0.25,0.5,0.75,0.9
      gansparse sweep --task srgan --data ~/DIV2K --generator netG.pth --discriminator netD.pth
        --sparsity 0.5 --test-set Set5 --test-set Set14
    """
    compare(**options)


def parse_techniques(text: str) -> list[str]:
    """Letters of Table 1 from "a-o", "b,d,g,k" or "a-c,k", each once.

    Raises:
        InputError: anything else.

    Example:
        >>> parse_techniques("k,a-c")
        ['k', 'a', 'b', 'c']
    """
    letters: list[str] = []
    for part in text.replace(" ", "").split(","):
        found = re.fullmatch("([a-o])(?:-([a-o]))?", part)
        if found is None or (found[2] or found[1]) < found[1]:
            raise InputError(
                f"--techniques: letters of Table 1, as in a-o or b,d,g,k; got {text!r}"
            )
        letters += map(chr, range(ord(found[1]), ord(found[2] or found[1]) + 1))
    return list(dict.fromkeys(letters))


def entries_of(
    base: TrainConfig,
    techniques: Sequence[str],
    grid: Sequence[tuple[str, float]],  # (granularity, sparsity)
    seeds: Sequence[int],
    bits: Sequence[int] = (),
) -> list[Entry]:
    """Each technique at each place of the grid with each seed.

    A technique that doesn't prune runs once and not for each granularity; once for all sparsities,
    too, where it builds no smaller network. One that quantizes runs with each of ``bits``, if there
    are any.

    Raises:
        InputError: a value out of its range.
    """
    from dataclasses import replace

    from gansparse.compress.compare import Entry
    from gansparse.compress.recipes import RECIPES
    from gansparse.sparsity.granularity import GRANULARITIES

    found: dict[tuple[Any, ...], Entry] = {}
    for seed in seeds:
        for key in techniques:
            for granularity, sparsity in grid:
                if granularity not in GRANULARITIES:
                    raise InputError(
                        f"--granularities: of {', '.join(GRANULARITIES)}; got {granularity!r}"
                    )
                own: dict[str, Any] = {"granularity": granularity, "sparsity": sparsity}
                config = replace(base, recipe=key, seed=seed, **own)
                matters: tuple[Any, ...] = ()
                if RECIPES[key].prunes:
                    matters = (granularity, sparsity)
                elif RECIPES[key].smaller:
                    matters = (sparsity,)
                for each in (bits if RECIPES[key].quantizes else ()) or (config.bits,):
                    entry = Entry(replace(config, bits=each))
                    found.setdefault((seed, key, *matters, each), entry)
    return list(found.values())


def run_entries(
    comparison: Comparison,
    entries: Sequence[Entry],
    bars: ProgressBars,
    *,
    processes: int = 0,
    threads: int = 0,
) -> None:
    """Runs a comparison, in several processes where asked for, and shows how far it is.

    Args:
        comparison: whose device says where: "cuda" without a number is all GPUs.
        entries: the runs.
        bars: show the progress.
        processes: runs at a time; 0: one, or one for each GPU.
        threads: CPU threads of each process; 0: the cores, shared out.
    """
    devices = devices_for(comparison.device, processes)[: len(entries)]
    if len(devices) > 1 and not threads:
        threads = max(1, len(os.sched_getaffinity(0)) // len(devices))
    several = len(devices) > 1
    comparison.run(
        entries,
        devices=devices if several else (),
        threads=threads if several else 0,
        watchers=[bars.lane(number) for number in range(len(devices))],
        on_runs=bars.runs,
    )


def devices_for(device: torch.device, processes: int) -> list[torch.device]:
    """A device for each process: one GPU after another where none is named.

    Example:
        >>> import torch
        >>> devices_for(torch.device("cpu"), 2)
        [device(type='cpu'), device(type='cpu')]
    """
    import torch

    if device.type == "cuda" and device.index is None:
        count = torch.cuda.device_count()
        return [torch.device("cuda", number % count) for number in range(processes or count)]
    return [device] * (processes or 1)


def finish(out: Path) -> int:
    """Writes the report of a comparison and prints its table; the exit status."""
    from gansparse.report import fid_table, load_report, write_report

    path = write_report(out)
    report = load_report(out)
    wide_console().print(fid_table(report))
    typer.echo(f"report  {path.resolve()}")
    typer.echo(f"tables  {path.with_suffix('.csv').resolve()}, {path.with_suffix('.md').name}")
    return 2 if report.failures else 0


def _make_extractor(name: str, mode: str | None, weights: Path | None) -> MakeExtractor:
    """What makes the feature network on a device."""
    from gansparse.metrics.features import get_extractor

    given = {"mode": mode, "weights": weights}
    chosen: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    return functools.partial(get_extractor, name, **chosen)


def _numbers(option: str, text: str, kind: Callable[[str], Any]) -> list[Any]:
    try:
        return list(dict.fromkeys(kind(part) for part in text.split(",")))
    except ValueError:
        raise InputError(f"{option}: numbers with commas between, got {text!r}") from None


def _title(task: str, techniques: Sequence[str], grid: Sequence[tuple[str, float]]) -> str:
    """What is compared, in a line."""
    what = f"technique {techniques[0]}" if len(techniques) == 1 else f"{len(techniques)} techniques"
    by_granularity: dict[str, list[str]] = {}
    for granularity, sparsity in grid:
        by_granularity.setdefault(granularity, []).append(f"{100 * sparsity:.4g}")
    at = "; ".join(f"{name} {', '.join(at)} %" for name, at in by_granularity.items())
    return f"{task}: {what}, {at}"
