# SPDX-License-Identifier: Apache-2.0
"""The public functions: make a task, compress it. The command line calls nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gansparse.compress.config import Reading, TrainConfig
from gansparse.compress.trainer import Result, Trainer
from gansparse.data.digits import as_images, load_digits
from gansparse.errors import InputError
from gansparse.files import load_tensors
from gansparse.metrics.evaluation import Score, real_moments, score_generator
from gansparse.metrics.features import get_extractor
from gansparse.models import load_dcgan_discriminator, load_dcgan_generator, shipped
from gansparse.models.dcgan import DCGANGenerator
from gansparse.tasks import GANTask, dcgan_task

TASKS = ("dcgan",)
SHARE_OF_TRAINING = 0.1  # Yu & Pool 2020, section 4: 1 % to 10 % of the original training


def load_task(
    name: str,
    data: str | Path,
    *,
    generator: str | Path | None = None,
    discriminator: str | Path | None = None,
    batch_size: int = 64,
    seed: int = 0,
    **options: Any,
) -> GANTask:
    """A task by name, with trained networks and data.

    Args:
        name: ``dcgan``.
        data: what `gansparse.data.load_digits` reads.
        generator: weights file of G_O; default: the shipped one.
        discriminator: weights file of D_O; default: the shipped one. Give both or neither: a
            discriminator supervises only the generator it was trained with.
        batch_size: samples a step.
        seed: of batches and latents.
        **options: of `dcgan_task` (``lr``, ``r1``, ...): before the weights' header.

    Raises:
        InputError: no such task, unreadable data, or one of two weights files.
        CheckpointError: unusable weights.
    """
    if name not in TASKS:
        raise InputError(f"no task {name!r}; there are: {', '.join(TASKS)}")
    if (generator is None) != (discriminator is None):
        given, absent = ("--generator", "--discriminator")
        if generator is None:
            given, absent = absent, given
        raise InputError(
            f"{given} without {absent}: G and D must be the pair that was trained together"
        )
    g_path = shipped("dcgan_mnist_g.safetensors") if generator is None else Path(generator)
    d_path = shipped("dcgan_mnist_d.safetensors") if discriminator is None else Path(discriminator)
    net_g, net_d = load_dcgan_generator(g_path), load_dcgan_discriminator(d_path)
    images, source = _pictures_like(net_g, data, g_path)
    _, metadata = load_tensors(g_path)
    steps = metadata.get("trained_steps", "")
    options = {
        "r1": float(metadata.get("r1", "0")),
        "trained_steps": int(steps) if steps.isdigit() else None,
        "data_name": source,
    } | options
    return dcgan_task(
        images,
        generator=net_g,
        discriminator=net_d,
        nz=net_g.nz,
        batch_size=batch_size,
        seed=seed,
        **options,
    )


def _pictures_like(net: DCGANGenerator, data: str | Path, path: Path) -> tuple[torch.Tensor, str]:
    """The data's digits at the size of the generator's pictures, and where they came from."""
    with torch.no_grad():
        channels, size = net.eval()(torch.zeros(1, net.nz, 1, 1)).shape[1:3]
    if channels != 1:
        raise InputError(f"{path}: makes pictures of {channels} channels, but digits have 1")
    digits = load_digits(data)
    return as_images(digits, size), digits.source


def evaluate(
    data: str | Path,
    *,
    generator: str | Path | None = None,
    extractor: str = "lenet-mnist",
    num_samples: int = 10_000,
    device: str | torch.device = "cpu",
    on_batch: Callable[[int], None] | None = None,
) -> Score:
    """Scores a DCGAN generator against real pictures.

    Args:
        data: what `gansparse.data.load_digits` reads.
        generator: weights file; default: the shipped generator.
        extractor: name of the feature network.
        num_samples: pictures to generate.
        device: where to compute.
        on_batch: gets the number of pictures so far.

    Raises:
        InputError: unreadable data, no such extractor.
        CheckpointError: unusable weights.
    """
    path = shipped("dcgan_mnist_g.safetensors") if generator is None else Path(generator)
    net = load_dcgan_generator(path)
    images, source = _pictures_like(net, data, path)
    task = dcgan_task(images, generator=net, nz=net.nz, ndf=1, batch_size=1, data_name=source)
    network = get_extractor(extractor, device)
    real = real_moments(images, network, device=device)
    return score_generator(
        task.views[0],
        net.to(device),
        real,
        network,
        num_samples=num_samples,
        device=device,
        on_batch=on_batch,
    )


def default_steps(task: GANTask) -> int:
    """A tenth of the original training where its length is known, else one epoch."""
    if task.trained_steps is None:
        return task.steps_per_epoch
    return max(1, round(SHARE_OF_TRAINING * task.trained_steps))


def compress(
    task: GANTask | str,
    data: str | Path | None = None,
    *,
    sparsity: float = 0.75,
    granularity: str = "element",
    recipe: str = "b",
    steps: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    device: str | torch.device = "cpu",
    resume: bool = False,
    generator: str | Path | None = None,
    discriminator: str | Path | None = None,
    reading: Reading | None = None,
    on_step: Callable[[dict[str, Any]], None] | None = None,
    **options: Any,
) -> Result:
    """Compresses a trained generator under the supervision of its own discriminator.

    Args:
        task: a `GANTask`, or the name of one that comes with the package.
        data: with a name: where its pictures are.
        sparsity: share of zeros in the pruned weights.
        granularity: ``element``, ``vector``, ``kernel``, ``filter`` or ``2:4``.
        recipe: technique of Yu & Pool 2020, Table 1; ``b`` is the paper's own.
        steps: generator steps; default: a tenth of the original training.
        seed: of everything random.
        out: folder for checkpoints and the result; default: nothing is written.
        device: where to compute.
        resume: continue from the newest checkpoint in ``out``.
        generator: with a name: weights of G_O, default the shipped ones.
        discriminator: with a name: weights of D_O.
        reading: the paper's open points; default: the reading that measured best.
        on_step: gets each step's row.
        **options: further fields of `TrainConfig`.

    Returns:
        The compressed generator, an ordinary ``nn.Module`` whose weights hold zeros, with its
        masks and history.

    Raises:
        InputError: an argument breaks a rule.
        CheckpointError: unusable weights or checkpoint.
        TrainingError: a loss became NaN or infinite.

    Example:
        >>> import torch
        >>> from gansparse.models.dcgan import DCGANGenerator
        >>> from gansparse.tasks import dcgan_task
        >>> task = dcgan_task(torch.zeros(8, 1, 16, 16), nz=4, ngf=4, ndf=4, batch_size=4)
        >>> result = compress(task, sparsity=0.5, steps=2)
        >>> weight = result.generator.main[0].weight
        >>> float((weight == 0).float().mean())
        0.5
    """
    if isinstance(task, str):
        if data is None:
            raise InputError(f"task {task!r} needs data: a folder of pictures, say")
        task = load_task(task, data, generator=generator, discriminator=discriminator, seed=seed)
    elif data is not None or generator is not None or discriminator is not None:
        raise InputError("a GANTask brings its own data and networks; give those to the task")
    config = TrainConfig(
        recipe=recipe,
        steps=default_steps(task) if steps is None else steps,
        sparsity=sparsity,
        granularity=granularity,
        seed=seed,
        reading=Reading() if reading is None else reading,
        **options,
    )
    return Trainer(task, config, out=out, device=device, resume=resume).run(on_step)
