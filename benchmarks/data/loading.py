# SPDX-License-Identifier: Apache-2.0
"""Does loading keep up with training? Samples a second of each loader, and how long a step waits.

    python benchmarks/data/loading.py --data DATA                   # all tasks, 1 and 2 workers
    python benchmarks/data/loading.py --data DATA --tasks srgan --step-ms 35   # of a GPU, say
    python benchmarks/data/loading.py --data DATA --threads 1 --workers 0   # loading and step apart

DATA holds `sr/BSD68` and `cifar10/cifar10_jpeg.zip`; towns and faces are drawn. The step is one of
the task's own training (technique a) at the original's sizes, of D alone where G does not take part
in each. With --step-ms the trainer sleeps instead, as one whose device computes. Without workers
and with one thread processor time is taken, whatever else the machine does.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gansparse.compress import TrainConfig, Trainer
from gansparse.data import (
    AlignedFolder,
    AttributeFolder,
    Batches,
    ClassFolder,
    PictureSamples,
    Samples,
    SuperResolutionFolder,
    UnalignedFolder,
    write_synthetic,
)
from gansparse.tasks import (
    GANTask,
    cyclegan_task,
    dcgan_task,
    pix2pix_task,
    srgan_task,
    stargan_task,
)


@dataclass
class Case:
    """A task and its data.

    Attributes:
        task: name of the task and its data.
        samples: the loader.
        batch_size: samples a step.
        make: (samples or their batches, options) -> the task with new networks of full size.
        options: of it.
    """

    task: str
    samples: Samples
    batch_size: int
    make: Callable[..., GANTask]
    options: dict[str, Any]

    def batches(self, batch_size: int, workers: int = 0) -> Batches:
        return Batches(self.samples, batch_size, seed=0, num_workers=workers)

    def trained(self, workers: int) -> GANTask:
        if self.make is dcgan_task:
            return dcgan_task(self.samples, batch_size=self.batch_size, num_workers=workers)
        return self.make(self.batches(self.batch_size, workers), **self.options)


def cases(data: Path, scratch: Path) -> dict[str, Case]:
    write_synthetic("aligned", scratch / "towns", count=80, size=286)
    write_synthetic("attributes", scratch / "faces", count=300)
    animals = ("bird", "cat", "deer", "dog", "horse")
    with zipfile.ZipFile(data / "cifar10" / "cifar10_jpeg.zip") as archive:
        for name in archive.namelist():
            if name.startswith(tuple(f"train/{animal}/" for animal in animals)):
                archive.extract(name, scratch / "cifar10")
    for side, animal in (("trainA", "horse"), ("trainB", "deer")):
        (scratch / side).symlink_to(scratch / "cifar10" / "train" / animal)
    faces, hr = scratch / "faces", SuperResolutionFolder(data / "sr" / "BSD68")
    towns, animals_at_128 = AlignedFolder(scratch / "towns"), ClassFolder(scratch / "cifar10")
    rows = {
        "dcgan": ("faces 178x218 PNG at 64", PictureSamples(faces), 64, dcgan_task),
        "pix2pix": ("towns 572x286 PNG", towns, 1, pix2pix_task),
        "cyclegan": ("CIFAR-10 at 286/256", UnalignedFolder(scratch), 1, cyclegan_task),
        "stargan": ("faces 178x218 PNG", AttributeFolder(faces), 16, stargan_task),
        "stargan-classes": ("CIFAR-10 at 128", animals_at_128, 16, stargan_task),
        "srgan": ("BSD68 481x321 PNG", hr, 64, srgan_task),
    }
    options = {"srgan": {"perceptual": "none"}, "stargan": {"classes": False}}
    return {
        name: Case(f"{name.partition('-')[0]}, {told}", *row, options.get(name, {}))
        for name, (told, *row) in rows.items()
    }


def clock(workers: int) -> Callable[[], float]:
    alone = workers == 0 and torch.get_num_threads() == 1
    return time.process_time if alone else time.perf_counter


def cost(case: Case, count: int = 100) -> float:
    """Milliseconds of one core that a sample takes, whatever else the machine does."""
    batches = case.batches(1)
    first = min(len(batches), 100)  # a small set is in memory after one epoch
    for step in range(first):
        batches(step)
    start = time.process_time()
    for step in range(first, first + count):
        batches(step)
    return 1e3 * (time.process_time() - start) / count


def loading_rate(case: Case, workers: int, seconds: float) -> float:
    """Samples a second when nothing else is done, workers being warm."""
    batches = case.batches(case.batch_size, workers)
    for step in range(4 * workers):
        batches(step)
    now, step = clock(workers), 4 * workers
    start = now()
    while now() - start < seconds:
        batches(step)
        step += 1
    return (step - 4 * workers) * case.batch_size / (now() - start)


def waiting(
    case: Case, workers: int, steps: int, step_ms: float | None
) -> tuple[float, float]:  # milliseconds a step waits, and works; the median of the steps
    task, waits, now = case.trained(workers), [], clock(workers)

    def timed(step: int) -> Any:
        start = now()
        batch = load(step)
        waits.append(1e3 * (now() - start))
        return batch

    load, task.batch = task.batch, timed
    trainer = Trainer(task, TrainConfig(recipe="a", steps=steps + 2, sparsity=0.0, save_every=0))
    waits.clear()
    worked = []
    for step in range(steps + 2):  # the first two start the workers and torch
        start = now()
        if step_ms is None:
            trainer.train_step(step)
        else:
            timed(step)
            time.sleep(step_ms / 1e3)
        worked.append(1e3 * (now() - start) - waits[-1])
    return sorted(waits[2:])[steps // 2], sorted(worked[2:])[steps // 2]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=os.environ.get("GANSPARSE_DATA"))
    parser.add_argument("--tasks", nargs="*", help="default: all")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--threads", type=int, help="of the trainer; default: torch's")
    parser.add_argument("--steps", type=int, default=9, help="measured a task")
    parser.add_argument("--seconds", type=float, default=5.0, help="of loading alone")
    parser.add_argument("--step-ms", type=float, help="a step's time, in place of a measured one")
    chosen = parser.parse_args()
    if chosen.data is None:
        parser.error("--data, or GANSPARSE_DATA, must name the folder of data sets")
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, load {os.getloadavg()}")
    print(f"{'data':32}core ms  workers  loads/s  uses/s  step ms  waits ms  waiting")
    with tempfile.TemporaryDirectory() as scratch:
        found = cases(chosen.data, Path(scratch))
        for case in (found[name] for name in chosen.tasks or found):
            core = cost(case)
            for workers in chosen.workers:
                rate = loading_rate(case, workers, chosen.seconds)
                waited, worked = waiting(case, workers, chosen.steps, chosen.step_ms)
                used = 1e3 * case.batch_size / worked
                share = waited / (waited + worked)
                print(
                    f"{case.task:32}{core:7.2f}{workers:9}{rate:9.1f}{used:8.1f}{worked:9.0f}{waited:10.2f}"
                    f"{share:9.1%}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
