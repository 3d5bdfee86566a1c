# SPDX-License-Identifier: Apache-2.0
"""`gansparse compress` and `gansparse eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from gansparse.cli.options import (
    SEEDS,
    AttributesOption,
    ConfigOption,
    CropSizeOption,
    DamagedOption,
    DeviceOption,
    DirectionOption,
    DiscriminatorOption,
    DryRunOption,
    EvalOption,
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
    ResumeOption,
    SamplesOption,
    ScaleOption,
    SeedOption,
    TaskName,
    TensorboardOption,
    TestSetOption,
    ThreadsOption,
    VGGOption,
    WeightsOption,
    WorkersOption,
    check_file,
    choose_device,
    fresh_or_resumed,
    pictures,
    run_with_bar,
    say,
    say_next,
    term_weights,
    wide_console,
)
from gansparse.errors import InputError


def compress(
    task: Annotated[TaskName, typer.Argument(help="Which GAN.")] = TaskName.dcgan,
    data: PicturesOption = None,
    sparsity: Annotated[float, typer.Option(help="Share of zeros, 0 <= s < 1.")] = 0.75,
    granularity: Annotated[
        str, typer.Option(help="element, vector, block, kernel, filter or 2:4.")
    ] = "element",
    recipe: Annotated[str, typer.Option(help="Letter of a technique; b is self-supervised.")] = "b",
    steps: Annotated[
        int | None,
        typer.Option(
            help="Default: a tenth of the training that G's file tells of, else one epoch."
        ),
    ] = None,
    include: Annotated[list[str] | None, typer.Option(help="Only these layers (globs).")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="All but these layers.")] = None,
    scope: Annotated[
        str,
        typer.Option(
            help="erk: small layers keep more; layer: the same ratio in each; global: the least "
            "weights of all layers go."
        ),
    ] = "erk",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=VALUE: any other field of TrainConfig or Reading."),
    ] = None,
    generator: GeneratorOption = None,
    discriminator: DiscriminatorOption = None,
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
    precision: Precision = Precision.fp32,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Default: the original's."),
    ] = None,
    num_workers: WorkersOption = None,
    on_damaged: DamagedOption = None,
    save_every: Annotated[int, typer.Option(min=0, help="Steps between checkpoints.")] = 200,
    out: Annotated[Path, typer.Option(help="Folder for results.")] = Path("runs/compress"),
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
    resume: ResumeOption = False,
    tensorboard: TensorboardOption = False,
    dry_run: DryRunOption = False,
    config: ConfigOption = None,
) -> None:
    """Compress a trained generator; its discriminator supervises.

    Examples:
      gansparse compress dcgan --sparsity 0.75
      gansparse compress dcgan --data ~/mnist --granularity filter --sparsity 0.5
      gansparse compress dcgan --set lambda_=1 --set d_update=fixed
      gansparse compress pix2pix --dataroot ~/maps --direction BtoA --sparsity 0.5
        --generator latest_net_G.pth --discriminator latest_net_D.pth --dry-run
      gansparse compress cyclegan --dataroot ~/horse2zebra --generator latest_net_G_A.pth
        --generator latest_net_G_B.pth --discriminator latest_net_D_B.pth
        --discriminator latest_net_D_A.pth --out runs/mine --resume
      torchrun --nproc-per-node 4 -m gansparse compress stargan --dataroot ~/celeba ...

    Techniques of Table 1 (--recipe):
      a  no compression                         i  gradual pruning, distillation, D fixed
      b  self-supervised                        j  adversarial learning
      c  small dense network                    k  knowledge distillation
      d  one-shot pruning, fine-tuning          l  distillation of intermediate layers
      e  gradual pruning, fine-tuning           m  E-M quantization
      f  gradual pruning in first training      n  prune both G and D
      g  one-shot pruning, distillation         o  small dense network, trained D
      h  gradual pruning with distillation

    Of CycleGAN's discriminators the first judges domain A: in the originals' files that is
    latest_net_D_B.
    """
    from gansparse.compress import TrainConfig, Trainer, default_steps, load_task
    from gansparse.compress.recipes import get_recipe
    from gansparse.sparsity import sparsity_report

    where = choose_device(device, threads)
    if not dry_run:
        fresh_or_resumed(out, resume, [*(generator or ()), *(discriminator or ())])

    def configured(steps: int) -> TrainConfig:
        return TrainConfig(
            recipe=recipe,
            steps=steps,
            sparsity=sparsity,
            granularity=granularity,
            include=tuple(include or ()),
            exclude=tuple(exclude or ()),
            scope=scope,
            precision=precision.value,
            save_every=save_every,
            seed=seed,
        ).with_settings(settings or ())

    configured(1 if steps is None else steps)  # refused before anything is loaded
    options: dict[str, Any] = {
        "direction": direction,
        "load_size": load_size,
        "crop_size": crop_size,
        "image_size": image_size,
        "attributes": attributes,
        "scale": scale,
        "vgg": vgg,
        "test_sets": test_sets,
        "weights": term_weights(weight),
        "gan_mode": gan_mode,
        "identity": identity,
        "batch_size": batch_size,
        "num_workers": num_workers,
        "on_damaged": on_damaged,
    }
    place = pictures(task, data)
    networks: dict[str, Any] = {"generator": generator, "discriminator": discriminator}
    gan = load_task(task.value, place, seed=seed, **networks, **options)
    train = configured(default_steps(gan) if steps is None else steps)
    if dry_run:
        from gansparse.compress.plan import plan

        wide_console().print(plan(gan, train, where).table())
        return
    if task is not TaskName.dcgan and not generator and get_recipe(recipe).g_init == "dense":
        raise InputError(
            f"compress {task.value} needs the trained pair: --generator and --discriminator"
        )
    trainer = Trainer(gan, train, out=out, device=where, resume=resume)
    result = run_with_bar(trainer, f"recipe {recipe}, {sparsity:.0%} {granularity}", tensorboard)
    say(str(sparsity_report(result.generator)))
    for note in result.notes:
        say(f"note: {note}")
    say(f"compressed generator  {', '.join(map(str, result.files))}")
    say_next("eval", task.value, place, options, {"--generator": result.files})


def evaluate(
    task: Annotated[TaskName, typer.Argument(help="Which GAN.")] = TaskName.dcgan,
    data: PicturesOption = None,
    generator: GeneratorOption = None,
    extractor: ExtractorOption = None,
    mode: ModeOption = None,
    weights: ExtractorWeightsOption = None,
    num_samples: SamplesOption = 10_000,
    direction: DirectionOption = None,
    load_size: LoadSizeOption = None,
    crop_size: CropSizeOption = None,
    image_size: ImageSizeOption = None,
    attributes: AttributesOption = None,
    test_sets: TestSetOption = None,
    eval_mode: EvalOption = False,
    num_workers: WorkersOption = None,
    on_damaged: DamagedOption = None,
    out: Annotated[Path | None, typer.Option(help="Also write the scores as JSON.")] = None,
    seed: Annotated[int, typer.Option(**SEEDS, help="Of dcgan's latents.")] = 0,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
    config: ConfigOption = None,
) -> None:
    """Score a generator: Fréchet distance to the real pictures, and what else the task measures.

    Examples:
      gansparse eval dcgan --data ~/mnist --generator runs/compress/generator.safetensors
      gansparse eval srgan --data ~/DIV2K --generator netG.pth --test-set Set5 --test-set Set14
    """
    from gansparse import compress
    from gansparse.files import write_json
    from gansparse.progress import ProgressBars

    where = choose_device(device, threads)
    if out is not None:
        check_file(out)
    with ProgressBars() as bars:
        found = compress.evaluate(
            task.value,
            pictures(task, data),
            generator=generator,
            extractor=extractor,
            mode=mode,
            weights=weights,
            num_samples=num_samples,
            seed=seed,
            device=where,
            watcher=bars,
            direction=direction,
            load_size=load_size,
            crop_size=crop_size,
            image_size=image_size,
            attributes=attributes,
            test_sets=test_sets,
            live=False if eval_mode else None,
            num_workers=num_workers,
            on_damaged=on_damaged,
        )
    title = ", ".join(map(str, generator or ())) or "the shipped generator"
    if out is not None:
        write_json(out, found.to_dict())
    wide_console().print(_score_table(title, found))


def _score_table(title: str, found: Any) -> Table:
    table = Table(title=escape(title))
    for name in ("quantity", "value"):
        table.add_column(name)
    for view, score in found.scores.items():
        table.add_row(escape(f"FID {view}".rstrip()), f"{score.fid:.3f}")
        table.add_row("  extractor", score.extractor)
        table.add_row("  real / generated", f"{score.num_real} / {score.num_fake}")
        if score.confidence is not None and score.classes is not None:
            table.add_row("  mean confidence", f"{score.confidence:.4f}")
            shares = ", ".join(f"{digit}: {share:.1%}" for digit, share in enumerate(score.classes))
            table.add_row("  classes", shares)
    for name, value in found.measures.items():
        table.add_row(escape(name), f"{value:.4f}")
    return table
