# SPDX-License-Identifier: Apache-2.0
"""Does loading keep up with training? Samples a second of each loader, and how long a step waits.

    python benchmarks/data/loading.py --data DATA                   # all tasks, 1 and 2 workers
    python benchmarks/data/loading.py --data DATA --tasks srgan --step-ms 35   # of a GPU, say

DATA holds `sr/BSD68` and `cifar10/cifar10_jpeg.zip`; towns and faces are drawn. The step is the
forward and backward pass of the task's own full-size generator alone, on the CPU, with two threads
beside the workers; a whole step of training takes longer still, so the share of waiting shown is an
upper bound. With --step-ms the trainer sleeps instead, as one whose device computes.
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

import torch
from torch import nn

from gansparse.data import (
    AlignedFolder,
    AttributeFolder,
    Batches,
    ClassFolder,
    Samples,
    SuperResolutionFolder,
    UnalignedFolder,
    write_synthetic,
)
from gansparse.models import ResNetGenerator, SRGANGenerator, StarGANGenerator, UNetGenerator

Batch = dict[str, torch.Tensor]


@dataclass
class Case:
    """A task's data and generator.

    Attributes:
        task: name of the task and its data.
        samples: the loader.
        batch_size: samples a step.
        generator: full size.
        forward: (generator, batch) -> pictures.
    """

    task: str
    samples: Samples
    batch_size: int
    generator: Callable[[], nn.Module]
    forward: Callable[[nn.Module, Batch], torch.Tensor]


def from_a(generator: nn.Module, batch: Batch) -> torch.Tensor:
    return generator(batch["a"])


def relabelled(generator: nn.Module, batch: Batch) -> torch.Tensor:
    return generator(batch["image"], batch["label"].flip(0))


def stargan(task: str, samples: Samples) -> Case:
    return Case(task, samples, 16, lambda: StarGANGenerator(c_dim=5), relabelled)


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
    hr = SuperResolutionFolder(data / "sr" / "BSD68")
    return {
        "pix2pix": Case(
            "pix2pix, towns 572x286 PNG", AlignedFolder(scratch / "towns"), 1, UNetGenerator, from_a
        ),
        "cyclegan": Case(
            "cyclegan, CIFAR-10 at 286/256", UnalignedFolder(scratch), 1, ResNetGenerator, from_a
        ),
        "stargan": stargan("stargan, faces 178x218 PNG", AttributeFolder(scratch / "faces")),
        "stargan-classes": stargan("stargan, CIFAR-10 at 128", ClassFolder(scratch / "cifar10")),
        "srgan": Case(
            "srgan, BSD68 481x321 PNG", hr, 64, SRGANGenerator, lambda net, batch: net(batch["lr"])
        ),
    }


def cost(case: Case, count: int = 100) -> float:
    """Milliseconds of one core that a sample takes, whatever else the machine does."""
    batches = Batches(case.samples, 1, seed=0)
    first = min(len(batches), 100)  # a small set is in memory after one epoch
    for step in range(first):
        batches(step)
    start = time.process_time()
    for step in range(first, first + count):
        batches(step)
    return 1e3 * (time.process_time() - start) / count


def loading_rate(case: Case, workers: int, seconds: float) -> float:
    """Samples a second when nothing else is done, workers being warm."""
    batches = Batches(case.samples, case.batch_size, seed=0, num_workers=workers)
    for step in range(4 * workers):
        batches(step)
    start, step = time.perf_counter(), 4 * workers
    while time.perf_counter() - start < seconds:
        batches(step)
        step += 1
    return (step - 4 * workers) * case.batch_size / (time.perf_counter() - start)


def waiting(
    case: Case, workers: int, steps: int, step_ms: float | None
) -> tuple[float, float]:  # milliseconds a step waits, and works; the median of the steps
    batches = Batches(case.samples, case.batch_size, seed=0, num_workers=workers)
    generator = case.generator().train() if step_ms is None else nn.Identity()
    waited, worked = [], []
    for step in range(steps + 2):  # the first two start the workers and torch
        start = time.perf_counter()
        batch = batches(step)
        loaded = time.perf_counter()
        if step_ms is None:
            case.forward(generator, batch).square().mean().backward()
        else:
            time.sleep(step_ms / 1e3)
        waited.append(1e3 * (loaded - start))
        worked.append(1e3 * (time.perf_counter() - loaded))
    return sorted(waited[2:])[steps // 2], sorted(worked[2:])[steps // 2]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=os.environ.get("GANSPARSE_DATA"))
    parser.add_argument("--tasks", nargs="*", help="default: all")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=9, help="measured a task")
    parser.add_argument("--seconds", type=float, default=5.0, help="of loading alone")
    parser.add_argument("--step-ms", type=float, help="a step's time, in place of a measured one")
    chosen = parser.parse_args()
    if chosen.data is None:
        parser.error("--data, or GANSPARSE_DATA, must name the folder of data sets")
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
