# SPDX-License-Identifier: Apache-2.0
"""What runs will take, before they are run: networks, work, and time and memory by a few steps."""

from __future__ import annotations

import copy
import resource
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import timedelta

import torch
from rich.markup import escape
from rich.table import Table
from torch import nn

from gansparse.compress.compare import Comparison, Entry
from gansparse.compress.config import TrainConfig
from gansparse.compress.quantize import plain
from gansparse.compress.trainer import Trainer
from gansparse.errors import InputError
from gansparse.sparsity import Layer, find_layers
from gansparse.tasks.gan import GANTask

_TIMED = 3  # cycles of one step of G, after one to warm up


@dataclass(frozen=True)
class Plan:
    """A run, as far as it can be known beforehand.

    Attributes:
        parameters: of G_O.
        parameters_left: of G_C, not zero.
        macs: multiply-adds of G_O for one sample of a batch; zeros are not left out.
        macs_left: of G_C without its zeros, as far as its layers are pruned.
        steps: of the run.
        seconds: expected, of all steps.
        memory: expected peak, bytes; of the device's allocator on CUDA, of the process on the CPU.
        notes: layers that can't reach their target, and why.
    """

    parameters: int
    parameters_left: int
    macs: int
    macs_left: int
    steps: int
    seconds: float
    memory: int
    notes: tuple[str, ...]

    def table(self) -> Table:
        """For people."""
        table = Table(
            title="plan (measured on a few steps; nothing was written)", show_header=False
        )
        rows = {
            "parameters": _shrinks(self.parameters, self.parameters_left),
            "multiply-adds a sample": _shrinks(self.macs, self.macs_left),
            "steps": f"{self.steps:,}",
            "time": f"{timedelta(seconds=round(self.seconds))}",
            "peak memory": _gib(self.memory),
            **{f"note {number}": note for number, note in enumerate(self.notes, 1)},
        }
        for name, value in rows.items():
            table.add_row(name, value)
        return table


def plan(task: GANTask, config: TrainConfig, device: str | torch.device = "cpu") -> Plan:
    """Runs a few steps of the training, writes nothing, and says what the whole would take.

    Raises:
        InputError: whatever the run itself would refuse.
    """
    trainer = Trainer(task, config, device=device)
    every = task.g_every if task.g_every <= config.steps else 1  # G never has its turn
    seconds = []
    for cycle in range(min(_TIMED + 1, max(config.steps // every, 1))):
        start = time.perf_counter()
        for turn in range(every):
            trainer.train_step(cycle * every + turn)
        seconds.append((time.perf_counter() - start) / every)
    parameters = sum(p.numel() for p in task.generator.parameters())
    left = sum(p.numel() for p in trainer.g_c.parameters())
    shares: dict[str, float] = {}
    if trainer.pruner is not None:
        shares = trainer.pruner.targets
        left -= sum(round(shares[x.name] * x.weight.numel()) for x in trainer.pruner.layers)
    macs = layer_macs(task, trainer.g_c, device)
    whole = layer_macs(task, task.generator.to(device), device)
    return Plan(
        parameters=parameters,
        parameters_left=left,
        macs=sum(whole.values()),
        macs_left=round(sum(n * (1.0 - shares.get(name, 0.0)) for name, n in macs.items())),
        steps=config.steps,
        seconds=statistics.median(seconds[1:] or seconds) * config.steps,
        memory=_peak(torch.device(device)),
        notes=tuple(trainer.pruner.notes) if trainer.pruner else (),
    )


def plan_runs(comparison: Comparison, entries: Iterable[Entry], processes: int = 1) -> Table:
    """A line for each run of a comparison, and what those that are left take together.

    Runs a few steps of each that is not done, and writes nothing. The time to score is left out.

    Args:
        comparison: what the runs belong to.
        entries: the runs.
        processes: runs at a time.
    """
    table = Table(
        title=f"plan of {escape(comparison.title)} (measured on a few steps; nothing was written)",
        caption="without the time to score",
    )
    for column in ("run", "parameters", "multiply-adds a sample", "steps", "time"):
        table.add_column(column, overflow="fold")
    known: dict[TrainConfig, Plan] = {}  # a seed changes nothing
    seconds, memory = 0.0, 0
    for entry in entries:
        config = replace(entry.config, seed=0)
        if comparison.finished(entry):
            table.add_row(entry.name, "", "", f"{config.steps:,}", "done")
            continue
        try:
            if config not in known:
                known[config] = plan(comparison.task(entry.config.seed), config, comparison.device)
        except InputError as error:
            table.add_row(entry.name, f"fails: {error}")
            continue
        found = known[config]
        seconds, memory = seconds + found.seconds, max(memory, found.memory)
        cells = (
            _shrinks(found.parameters, found.parameters_left),
            _shrinks(found.macs, found.macs_left),
            f"{found.steps:,}",
            f"{timedelta(seconds=round(found.seconds))}",
        )
        table.add_row(entry.name, *cells)
    table.add_section()
    took = f"{timedelta(seconds=round(seconds / processes))}"
    together = "together" if processes == 1 else f"together, {processes} at a time"
    table.add_row(together, f"peak memory {_gib(processes * memory)}", "", "", took)
    return table


def _shrinks(whole: int, left: int) -> str:
    return f"{whole:,} -> {left:,} ({left / max(whole, 1):.1%})"


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def layer_macs(
    task: GANTask, generator: nn.Module, device: str | torch.device = "cpu"
) -> dict[str, int]:
    """Multiply-adds for one sample of a batch, by layer name."""
    batch = {key: value.to(device) for key, value in task.batch(0).items()}
    samples = next(iter(batch.values())).shape[0]
    generator = plain(copy.deepcopy(generator)).eval()  # BatchNorms must not notice
    counts: dict[str, int] = {}
    hooks = [
        layer.module.register_forward_hook(_counter(layer, counts))
        for layer in find_layers(generator)
    ]
    try:
        with torch.no_grad():
            task.generate(generator, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: count // samples for name, count in counts.items()}


def _counter(layer: Layer, counts: dict[str, int]) -> Callable[..., None]:
    """A hook that adds a call's multiply-adds: what each output costs, if transposed each input."""

    def count(_module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        many = inputs[0] if layer.transposed else output
        each = layer.weight.numel() // max(layer.weight.shape[0], 1)
        counts[layer.name] = counts.get(layer.name, 0) + many.numel() * each

    return count


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
