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
from gansparse.models.checkpoint import load_dcgan_discriminator, load_dcgan_generator, shipped
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
    digits = load_digits(data)
    with torch.no_grad():
        channels, size = net_g.eval()(torch.zeros(1, net_g.nz, 1, 1)).shape[1:3]
    if channels != 1:
        raise InputError(f"{g_path}: makes pictures of {channels} channels, but digits have 1")
    images = as_images(digits, size)
    return dcgan_task(
        images,
        generator=net_g,
        discriminator=net_d,
        nz=net_g.nz,
        batch_size=batch_size,
        seed=seed,
        trained_steps=_trained_steps(g_path),
        data_name=digits.source,
    )


def _trained_steps(path: Path) -> int | None:
    _, metadata = load_tensors(path)
    steps = metadata.get("trained_steps", "")
    return int(steps) if steps.isdigit() else None


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
