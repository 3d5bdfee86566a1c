# SPDX-License-Identifier: Apache-2.0
"""One process of test_processes.py: short compressions, each with its history in a folder."""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from tiny import normless_task, tiny_task

from gansparse.compress import Reading, TrainConfig, Trainer, distributed, load_task
from gansparse.tasks import GANTask

SMALL = {
    "pix2pix": {"batch_size": 2, "load_size": 36, "crop_size": 32, "ngf": 4, "num_downs": 5},
    "cyclegan": {"batch_size": 2, "load_size": 36, "crop_size": 32, "ngf": 4, "num_blocks": 1},
    "stargan": {"batch_size": 4, "image_size": 32, "conv_dim": 4, "g_repeat_num": 1},
}


def task_of(family: str, data: Path) -> GANTask:
    """Of each family a small one; ``normless`` has norms that see one picture only."""
    if family == "normless":
        return normless_task()
    if family == "dcgan":
        return tiny_task()
    task = load_task(family, data / family, num_workers=0, **SMALL[family])
    if family == "cyclegan":
        return replace(task, pool_size=3)  # soon full
    return replace(task, g_every=2) if family == "stargan" else task


if __name__ == "__main__":
    out, data, *cases = sys.argv[1:]
    torch.set_num_threads(1)
    distributed.start(torch.device("cpu"))
    for case in cases:
        family, recipe, reduction, *more = case.split("-")
        config = TrainConfig(
            recipe=recipe,
            steps=8,
            sparsity=0.5,
            log_every=1,
            save_every=4,
            precision="bf16" if "bf16" in more else "fp32",
            reading=Reading(reduction=reduction, feature_weight=1.0),
        )
        if "ordered" in more:  # the other process has no time for the search
            seconds = 60.0 if distributed.rank() == 0 else 0.0
            ordered = {"granularity": "2:4", "order": "searched", "order_seconds": seconds}
            config = replace(config, **ordered)
        task = task_of(family, Path(data))
        if "moved" in more:  # as rounding might
            torch.manual_seed(0)
            for weight in task.generator.parameters():
                weight.data *= 1 + 1e-7 * torch.randn_like(weight)
        trainer = Trainer(task, config, out=Path(out, case))
        trainer.run()
        own = [net.state_dict() for net in (trainer.g_c, trainer.d) if net is not None]
        torch.save(own, Path(out, case, f"rank{distributed.rank()}.pt"))
