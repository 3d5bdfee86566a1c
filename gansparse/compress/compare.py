# SPDX-License-Identifier: Apache-2.0
"""Several techniques on one task, scored alike: the runs, and the document that reports read."""

from __future__ import annotations

import functools
import json
import platform
import shlex
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from gansparse import __version__
from gansparse.compress.config import TrainConfig
from gansparse.compress.origin import changes, digest, origin_of
from gansparse.compress.parallel import Row, rows_by_processes
from gansparse.compress.recipes import RECIPES
from gansparse.compress.samples import beside, save_samples
from gansparse.compress.scoring import Scorer, Silent, Watcher
from gansparse.compress.trainer import Trainer
from gansparse.errors import InputError, TrainingError
from gansparse.files import alone_in, read_json, write_json
from gansparse.metrics.features import Extractor, get_extractor
from gansparse.sparsity import sparsity_report
from gansparse.tasks.gan import GANTask

MakeExtractor = Callable[[torch.device], Extractor]


class TaskSource(Protocol):
    """Makes the task of a seed: ``functools.partial(load_task, "dcgan", data)``, say."""

    def __call__(self, *, seed: int) -> GANTask:
        """The seed decides the batches; the trained networks and what is scored stay the same."""
        ...


@dataclass(frozen=True)
class Entry:
    """One run of a comparison: a configuration and the name it has in tables."""

    config: TrainConfig
    label: str = ""

    @property
    def name(self) -> str:
        """Folder name; the same settings give the same name, so a finished run is found again."""
        c = self.config
        label = f"-{self.label.replace(' ', '_')}" if self.label else ""
        if RECIPES[c.recipe].quantizes and c.bits != TrainConfig.bits:
            label = f"-{c.bits}bits{label}"
        return f"{c.recipe}-{c.granularity.replace(':', '')}-{c.sparsity:g}-seed{c.seed}{label}"

    def identity(self) -> Row:
        """What a report tells it by."""
        c = self.config
        own = {
            "a": f"{c.steps:,} steps from random weights",
            "b": "ours",
            "m": "1 bit" if c.bits == 1 else f"{c.bits} bits",
        }
        return {
            "key": c.recipe,
            "technique": RECIPES[c.recipe].technique,
            "label": self.label or own.get(c.recipe, ""),
            "granularity": c.granularity,
            "sparsity": c.sparsity,
            "seed": c.seed,
        }


class Comparison:
    """Runs entries, in one process or several, and keeps ``report.json`` up to date after each.

    A run that was stopped goes on from its newest checkpoint; a finished one is not run again.

    Args:
        task: networks, data, losses; or a function that makes them for a seed, so that runs of
            different seeds see different batches. Several processes need a picklable function.
        extractor: feature network of the scores, or what several processes need: its name, or a
            picklable function that makes it on a device.
        out: folder; each run has one of its own in it.
        title: of the report.
        num_samples: pictures a generator is scored with.
        yardstick: a second dense generator, trained from another seed: how far its pictures are
            from the first one's tells which differences are but noise of training.
        device: where to compute.
        watcher: gets told the progress of the present piece of work.
        on_share: gets the share of the present run that is done.
        command: what the user typed, for the report.
    """

    def __init__(
        self,
        task: GANTask | TaskSource,
        extractor: Extractor | str | MakeExtractor,
        out: str | Path,
        *,
        title: str = "gansparse comparison",
        num_samples: int = 10_000,
        yardstick: nn.Module | None = None,
        device: str | torch.device = "cpu",
        watcher: Watcher | None = None,
        on_share: Callable[[float], None] | None = None,
        command: str | None = None,
    ) -> None:
        self.device, self.out = torch.device(device), Path(out)
        # What each of several processes makes its own of.
        self._make = functools.partial(Comparison, task, extractor, out, num_samples=num_samples)
        if isinstance(extractor, str):
            extractor = get_extractor(extractor, self.device)
        elif not isinstance(extractor, Extractor):
            extractor = extractor(self.device)
        self.extractor = extractor
        self.title, self.yardstick = title, yardstick
        self.watcher: Watcher = watcher or Silent()
        self.on_share = on_share or (lambda share: None)
        self.command = command or shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        self.scorer = Scorer(
            self.extractor, num_samples, self.out, device=self.device, watcher=self.watcher
        )
        self._source = task
        self._made: dict[int, GANTask] = {}

    def task(self, seed: int) -> GANTask:
        """The task of that seed.

        Raises:
            InputError: it has nothing to score.
        """
        if isinstance(self._source, GANTask):
            task = self._source
        else:
            if seed not in self._made:
                self._made.clear()  # frees the memory of the one before
                self._made[seed] = self._source(seed=seed)
            task = self._made[seed]
        if not task.views:
            raise InputError(f"task {task.name} has no pictures to score: give it pictures=")
        return task

    def run(
        self,
        entries: Sequence[Entry],
        *,
        devices: Sequence[torch.device] = (),
        threads: int = 0,
        watchers: Sequence[Watcher] = (),
        on_runs: Callable[[float, int], None] | None = None,
    ) -> Row:
        """Runs what is not done yet, scores it, and returns the report's document.

        A run that fails, because a loss became NaN, say, is listed under "failed" with the reason,
        and the others go on. The next call tries it again.

        Args:
            entries: the runs, in the order of the report.
            devices: as many processes, each on its device; none: all is done in this process.
            threads: CPU threads of each such process; 0: as torch chooses.
            watchers: get told the progress of each such process.
            on_runs: gets the number of runs done, with the shares of those under way, and of all.

        Raises:
            TrainingError: every run failed, or a process was killed.
            InputError: the folder is another comparison's, or one is at work in it.
            GansparseError: files that can't be read or written.
        """
        names = [entry.name for entry in entries]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise InputError(f"two runs are called {twice}: give their entries a label each")
        task = self.task(entries[0].config.seed)
        with alone_in(self.out):
            document = self._document(task, entries, max(1, len(devices)), threads)
            document["dense"] = self._dense(task)
            document |= self._yardstick(task)
            found = {i: row for i, entry in enumerate(entries) if (row := self.finished(entry))}
            todo = {i: entry for i, entry in enumerate(entries) if i not in found}
            before = len(found)

            def on_share(share: float) -> None:
                if on_runs is not None:
                    on_runs(before + share, len(entries))

            on_share(0.0)
            if devices:
                rows = rows_by_processes(
                    self._make,
                    todo,
                    devices=devices,
                    threads=threads,
                    watchers=watchers,
                    on_share=on_share,
                )
            else:
                rows = self._rows(todo, on_share)
            self._write(document, found)
            with closing(rows):  # ends the processes, whatever happens
                for index, row in rows:
                    found[index] = row
                    self._write(document, found)
        if not document["runs"]:
            raise TrainingError(f"every run failed; the first: {document['failed'][0]['reason']}")
        return document

    def _rows(
        self, todo: Mapping[int, Entry], on_share: Callable[[float], None]
    ) -> Generator[tuple[int, Row], None, None]:
        """Each entry in this process, one after another."""
        done = 0

        def on_run(share: float) -> None:
            on_share(done + share)

        self.on_share = on_run
        for index, entry in todo.items():
            row = self.attempt(entry)
            done += 1
            on_share(done)
            yield index, row

    def attempt(self, entry: Entry) -> Row:
        """Runs an entry and scores it; its row of the report, with "reason" if it failed."""
        try:
            return self._trained(entry)
        except (TrainingError, InputError, torch.OutOfMemoryError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            return entry.identity() | {"reason": reason}

    def finished(self, entry: Entry) -> Row | None:
        """The row of an entry that is done, with these settings and scored in this way."""
        path = self.out / entry.name / "result.json"
        if not path.exists():
            return None
        row: Row = read_json(path)
        same = (
            row.get("config") == _plain(entry.config) and row.get("scoring") == self.scorer.settings
        )
        return row if same else None

    def _trained(self, entry: Entry) -> Row:
        folder, config = self.out / entry.name, entry.config
        task = self.task(config.seed)
        label = f"{config.recipe} {config.granularity} {config.sparsity:.4g} seed {config.seed}"

        def on_step(row: dict[str, Any]) -> None:
            self.watcher.advance(row["step"] + 1)
            self.on_share((row["step"] + 1) / (config.steps + 1))  # the scores are still to come

        trainer = Trainer(task, config, out=folder, device=self.device, resume=True)
        self.watcher.start(f"{label}  {entry.label}".rstrip(), config.steps, trainer.step)
        result = trainer.run(on_step)
        samples = folder / "samples.safetensors"
        row = {
            **entry.identity(),
            **self.scorer.row(task, result.generator, f"{label}  scoring", samples),
            "achieved_sparsity": sparsity_report(result.generator).total.sparsity,
            "notes": result.notes,
            "parameters": sum(int(torch.count_nonzero(p)) for p in result.generator.parameters()),
            "seconds": result.seconds,
            "steps": config.steps,
            "share_of_training": config.steps / task.trained_steps if task.trained_steps else None,
            "history": f"{entry.name}/history.jsonl",
            "samples": f"{entry.name}/samples.safetensors",
            "config": _plain(config),
        }
        write_json(folder / "result.json", row)
        return row

    # The generators that all others are held against.

    def _dense(self, task: GANTask) -> Row:
        path = self.out / "dense.json"
        made_of = origin_of(task, task.batch(0))
        if path.exists():
            found: Row = read_json(path)
            if other := changes(found.get("made_of", {}), made_of):
                raise InputError(
                    f"{self.out} holds a comparison with another {other}; choose another --out"
                )
            if found["scoring"] == self.scorer.settings:
                return found
        generator = task.generator.to(self.device)
        samples = self.out / "samples_dense.safetensors"
        row = self.scorer.row(task, generator, "scoring the dense generator", samples)
        row |= {"made_of": made_of, "samples": samples.name}
        row["parameters"] = sum(p.numel() for p in generator.parameters())
        for name in ("input", "truth"):
            pictures = {view.name: beside(view, name, self.device) for view in task.views}
            if any(pictures.values()):
                row[name] = f"samples_{name}.safetensors"
                save_samples(self.out / row[name], {k: v for k, v in pictures.items() if v})
        write_json(path, row)
        return row

    def _yardstick(self, task: GANTask) -> Row:
        """The second dense generator's part of the document; empty where there is none."""
        if self.yardstick is None:
            return {}
        path = self.out / "yardstick.json"
        made_of = {"generator": digest(self.yardstick), "scoring": self.scorer.settings}
        if path.exists():
            found: Row = read_json(path)
            if found.get("made_of") == made_of:
                return {"yardstick": found}
        generator = self.yardstick.to(self.device)
        samples = self.out / "samples_yardstick.safetensors"
        row = self.scorer.row(task, generator, "scoring the second dense generator", samples)
        row |= {"made_of": made_of, "samples_b": samples.name}
        row["samples_a"] = "samples_dense.safetensors"
        write_json(path, row)
        return {"yardstick": row}

    # The document.

    def _document(
        self, task: GANTask, entries: Sequence[Entry], processes: int, threads: int
    ) -> Row:
        """All but what was measured."""
        own = {"processes": processes, "threads": threads or torch.get_num_threads()}
        return {
            "title": self.title,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": self.command,
            "seed": entries[0].config.seed,
            "machine": machine() | own,
            "versions": versions(),
            "task": task.name,
            "data": task.data_name,
        }

    def _write(self, document: Row, found: Mapping[int, Row]) -> None:
        """Puts the rows in, in the order of the entries; on disk once there is one to show."""
        dense = document["dense"]
        rows = [found[index] for index in sorted(found)]
        document["metric"] = {
            "name": "FID",
            "extractor": self.extractor.name,
            "mode": self.extractor.mode or "pictures as generated",
            "num_real": dense["num_real"],
            "num_fake": dense["num_fake"],
            "dtype": "float32 features, float64 statistics",
        }
        document["runs"] = [
            row | {"fid_ratio": row["fid"] / dense["fid"]} for row in rows if "reason" not in row
        ]
        document["failed"] = [row for row in rows if "reason" in row]
        if document["runs"]:
            write_json(self.out / "report.json", document)


def machine() -> dict[str, Any]:
    """What computed a result."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip()
            for line in info.read_text().splitlines()
            if line.startswith("model name")
        ]
        name = names[0] if names else name
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": name, "threads": torch.get_num_threads(), "gpu": gpu}


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    return {
        "gansparse": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _plain(config: TrainConfig) -> Any:
    """A configuration as it comes back from JSON."""
    return json.loads(json.dumps(config.to_dict()))


__all__ = ["Comparison", "Entry", "Silent", "TaskSource", "Watcher", "machine", "versions"]
