# SPDX-License-Identifier: Apache-2.0
"""Several techniques on one task, scored alike: the runs, and the document that reports read."""

from __future__ import annotations

import json
import platform
import shlex
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from gansparse import __version__
from gansparse.compress.config import TrainConfig
from gansparse.compress.recipes import RECIPES
from gansparse.compress.trainer import Trainer
from gansparse.errors import InputError
from gansparse.files import read_json, save_tensors, write_json
from gansparse.metrics.evaluation import Score, generated, real_moments, score_generator
from gansparse.metrics.features import Extractor
from gansparse.metrics.moments import FeatureMoments
from gansparse.sparsity import sparsity_report
from gansparse.tasks.gan import GANTask, View

SHOWN_PICTURES = 64


class Watcher(Protocol):
    """Gets told how far a comparison is (the command line draws bars from it)."""

    def start(self, label: str, total: int) -> None:
        """A piece of work of ``total`` steps begins."""

    def advance(self, done: int) -> None:
        """``done`` of its steps are done."""


class Silent:
    """Watches nothing."""

    def start(self, label: str, total: int) -> None:
        """Does nothing."""

    def advance(self, done: int) -> None:
        """Does nothing."""


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
        return f"{c.recipe}-{c.granularity.replace(':', '')}-{c.sparsity:g}-seed{c.seed}{label}"


class Comparison:
    """Runs entries one after another and keeps ``report.json`` up to date after each.

    Args:
        task: networks, data, losses.
        extractor: feature network of the scores.
        out: folder; each run has one of its own in it.
        title: of the report.
        num_samples: pictures a generator is scored with.
        device: where to compute.
        watcher: gets told the progress.
        command: what the user typed, for the report.
    """

    def __init__(
        self,
        task: GANTask,
        extractor: Extractor,
        out: str | Path,
        *,
        title: str = "gansparse comparison",
        num_samples: int = 10_000,
        device: str | torch.device = "cpu",
        watcher: Watcher | None = None,
        command: str | None = None,
    ) -> None:
        self.task, self.extractor, self.out = task, extractor, Path(out)
        self.num_samples, self.device = num_samples, torch.device(device)
        self.watcher: Watcher = watcher or Silent()
        self.title = title
        self.command = command or shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        self._real: dict[str, FeatureMoments] = {}
        if not task.views:
            raise InputError(f"task {task.name} has no pictures to score: give it pictures=")

    def run(self, entries: Sequence[Entry]) -> dict[str, Any]:
        """Runs what is not done yet, scores it, and returns the report's document.

        Raises:
            GansparseError: as the trainer; runs finished before are kept.
        """
        dense = self._dense()
        runs = []
        for entry in entries:
            runs.append(self._entry(entry, dense))
            document = self._document(dense, runs)
            write_json(self.out / "report.json", document)
        return document

    def _dense(self) -> dict[str, Any]:
        path = self.out / "dense.json"
        key = {"num_samples": self.num_samples, "extractor": self.extractor.name}
        if path.exists():
            found: dict[str, Any] = read_json(path)
            if found.get("key") == key:
                return found
        generator = self.task.generator.to(self.device)
        scores = self._scores(generator, "scoring the dense generator")
        self._save_samples(generator, self.out / "samples_dense.safetensors")
        result = {**scores, "key": key, "samples": "samples_dense.safetensors"}
        result["parameters"] = sum(p.numel() for p in generator.parameters())
        write_json(path, result)
        return result

    def _entry(self, entry: Entry, dense: dict[str, Any]) -> dict[str, Any]:
        folder, config = self.out / entry.name, entry.config
        settings = json.loads(json.dumps(config.to_dict()))
        path = folder / "result.json"
        if path.exists():
            done: dict[str, Any] = read_json(path)
            if done["config"] == settings and done["num_fake"] == dense["num_fake"]:
                return done
        recipe = RECIPES[config.recipe]
        self.watcher.start(f"{config.recipe}  {recipe.technique}", config.steps)
        trainer = Trainer(self.task, config, out=folder, device=self.device, resume=True)
        result = trainer.run(lambda row: self.watcher.advance(row["step"] + 1))
        scores = self._scores(result.generator, f"{config.recipe}  scoring")
        self._save_samples(result.generator, folder / "samples.safetensors")
        report = sparsity_report(result.generator)
        trained = self.task.trained_steps
        row = {
            "key": config.recipe,
            "technique": recipe.technique,
            "label": entry.label or ("ours" if config.recipe == "b" else ""),
            "sparsity": config.sparsity,
            "achieved_sparsity": report.total.sparsity,
            "notes": result.notes,
            "granularity": config.granularity,
            "seed": config.seed,
            **scores,
            "fid_ratio": scores["fid"] / dense["fid"],
            "parameters": _nonzeros(result.generator),
            "seconds": result.seconds,
            "steps": config.steps,
            "share_of_training": config.steps / trained if trained else None,
            "history": f"{entry.name}/history.jsonl",
            "samples": f"{entry.name}/samples.safetensors",
            "config": settings,
        }
        write_json(path, row)
        return row

    def _scores(self, generator: nn.Module, label: str) -> dict[str, Any]:
        """The mean over the task's views, where there are several with each one's FID."""
        scores = {view.name: self._score(view, generator, label) for view in self.task.views}
        first = next(iter(scores.values()))
        row = first.to_dict() | {"fid": statistics.fmean(s.fid for s in scores.values())}
        if len(scores) > 1:
            row["views"] = {name: score.fid for name, score in scores.items()}
        if self.task.measures is not None:
            row["measures"] = self.task.measures(generator)
        return row

    def _score(self, view: View, generator: nn.Module, label: str) -> Score:
        label = f"{label} {view.name}".rstrip()
        if view.name not in self._real:
            self.watcher.start(f"features of the real pictures {view.name}".rstrip(), 1)
            self._real[view.name] = real_moments(view.pictures, self.extractor, device=self.device)
            self.watcher.advance(1)
        self.watcher.start(label, self.num_samples)
        return score_generator(
            view,
            generator,
            self._real[view.name],
            self.extractor,
            num_samples=self.num_samples,
            device=self.device,
            on_batch=self.watcher.advance,
        )

    def _save_samples(self, generator: nn.Module, path: Path) -> None:
        """The first view's as "images", the others' by their names."""
        generator.eval()
        samples = {}
        for index, view in enumerate(self.task.views):
            count = min(SHOWN_PICTURES, view.num_samples or SHOWN_PICTURES)
            made = torch.cat(list(generated(view, generator, count, self.device)))
            samples["images" if index == 0 else view.name] = made
        save_tensors(path, samples)

    def _document(self, dense: dict[str, Any], runs: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "title": self.title,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": self.command,
            "seed": runs[0]["seed"],
            "machine": machine(),
            "versions": versions(),
            "task": self.task.name,
            "data": self.task.data_name,
            "metric": {
                "name": "FID",
                "extractor": self.extractor.name,
                "mode": "pictures as generated",
                "num_real": dense["num_real"],
                "num_fake": dense["num_fake"],
                "dtype": "float32 features, float64 statistics",
            },
            "dense": dense,
            "runs": runs,
        }


def with_recipe(base: TrainConfig, recipe: str, **changes: Any) -> TrainConfig:
    """The configuration for another technique; all else equal."""
    return replace(base, recipe=recipe, **changes)


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


def _nonzeros(module: nn.Module) -> int:
    return sum(int(torch.count_nonzero(p)) for p in module.parameters())


__all__ = ["Comparison", "Entry", "Silent", "Watcher", "machine", "versions", "with_recipe"]
