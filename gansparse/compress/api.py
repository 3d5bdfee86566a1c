# SPDX-License-Identifier: Apache-2.0
"""The public functions: make a task, compress it, score it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gansparse.compress.compare import Silent, Watcher
from gansparse.compress.config import Reading, TrainConfig
from gansparse.compress.scoring import watched_real_moments
from gansparse.compress.trainer import Result, Trainer
from gansparse.errors import InputError
from gansparse.metrics.evaluation import Score, score_generator
from gansparse.metrics.features import get_extractor
from gansparse.tasks import GANTask
from gansparse.tasks.loading import Files
from gansparse.tasks.loading import load_task as load_task

SHARE_OF_TRAINING = 0.1  # Yu & Pool 2020, section 4: 1 % to 10 % of the original training


@dataclass(frozen=True)
class Evaluation:
    """What a generator scored.

    Attributes:
        scores: by name of the view: a domain, a direction, or "" where there is one kind.
        measures: the task's further figures, such as PSNR.
    """

    scores: dict[str, Score]
    measures: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; one view without a name stands at the top."""
        found: dict[str, Any] = {"measures": self.measures} if self.measures else {}
        if list(self.scores) == [""]:
            return self.scores[""].to_dict() | found
        return {"views": {name: s.to_dict() for name, s in self.scores.items()}} | found


def evaluate(
    name: str,
    data: str | Path,
    *,
    generator: Files = None,
    extractor: str | None = None,
    mode: str | None = None,
    weights: str | Path | None = None,
    num_samples: int = 10_000,
    seed: int = 0,
    device: str | torch.device = "cpu",
    watcher: Watcher | None = None,
    **options: Any,
) -> Evaluation:
    """Scores a generator against real pictures, in each domain that it makes.

    Args:
        name: of a task (`gansparse.tasks.loading.TASKS`).
        data: what the task's loader reads.
        generator: weights; default: dcgan's shipped generator.
        extractor: name of the feature network (`gansparse.metrics.features`); default: lenet-mnist
            for dcgan, else inception.
        mode: how inception's pictures are resized: pytorch-fid, clean or tf1.
        weights: the extractor's weights file, where it isn't at its usual place.
        num_samples: pictures to generate.
        seed: of dcgan's latents; other tasks score pictures of their test set.
        device: where to compute.
        watcher: gets told the progress.
        **options: as `load_task`.

    Raises:
        InputError: unreadable data, no such task, option or extractor.
        CheckpointError: unusable weights.
    """
    if name == "dcgan":
        options["evaluation_seed"] = seed
    task = load_task(name, data, generator=generator, scoring=True, **options)
    if not task.views:
        raise InputError(f"{data}: no pictures to score {name} with: it has no test set")
    given = {"mode": mode, "weights": weights}
    chosen = {key: value for key, value in given.items() if value is not None}
    network = get_extractor(extractor or default_extractor(name), device, **chosen)
    told = watcher or Silent()
    scores = {}
    for view in task.views:
        real = watched_real_moments(view, network, torch.device(device), told)
        told.start(f"scoring {name} {view.name}".rstrip(), view.most(num_samples))
        scores[view.name] = score_generator(
            view,
            task.generator.to(device),
            real,
            network,
            num_samples=num_samples,
            device=device,
            on_batch=told.advance,
        )
    measures = task.measures(task.generator) if task.measures else {}
    return Evaluation(scores, measures)


def default_extractor(task: str) -> str:
    """The feature network that scores a task's pictures, unless another is named."""
    return "lenet-mnist" if task == "dcgan" else "inception"


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
    generator: Files = None,
    discriminator: Files = None,
    reading: Reading | None = None,
    on_step: Callable[[dict[str, Any]], None] | None = None,
    **options: Any,
) -> Result:
    """Compresses a trained generator under the supervision of its own discriminator.

    Args:
        task: a `GANTask`, or the name of one that comes with the package.
        data: with a name: where its pictures are.
        sparsity: share of zeros in the pruned weights.
        granularity: ``element``, ``vector``, ``block``, ``kernel``, ``filter`` or ``2:4``.
        recipe: technique of Yu & Pool 2020, Table 1; ``b`` is the paper's own.
        steps: steps, of D where G has its turn every few of them (`GANTask.g_every`); default: a
            tenth of the original training where the generator's file tells how long that was, else
            one epoch.
        seed: of everything random.
        out: folder for checkpoints and the result; default: nothing is written.
        device: where to compute.
        resume: continue from the newest checkpoint in ``out``.
        generator: with a name: weights of G_O, as `load_task`; default for dcgan: the shipped ones.
        discriminator: with a name: weights of D_O, likewise.
        reading: the paper's open points; default: the reading that measured best.
        on_step: gets each step's row.
        **options: further fields of `TrainConfig`; with a name also options of `load_task`, such
            as ``direction="BtoA"``.

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
        >>> from gansparse.sparsity import sparsity_report
        >>> round(sparsity_report(result.generator).total.sparsity, 2)
        0.5
    """
    fields = {f.name for f in dataclasses.fields(TrainConfig)}
    others = {name: options.pop(name) for name in options.keys() - fields}
    if isinstance(task, str):
        if data is None:
            raise InputError(f"task {task!r} needs data: a folder of pictures, say")
        networks: dict[str, Any] = {"generator": generator, "discriminator": discriminator}
        task = load_task(task, data, seed=seed, **networks, **others)
    elif data is not None or generator is not None or discriminator is not None:
        raise InputError("a GANTask brings its own data and networks; give those to the task")
    elif others:
        raise InputError(f"TrainConfig has no field {', '.join(sorted(others))}")
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
