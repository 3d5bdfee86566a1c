# SPDX-License-Identifier: Apache-2.0
"""How a comparison scores generators: all in the same way, against the same real pictures."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from gansparse.compress.samples import samples, save_samples
from gansparse.files import load_tensors, save_tensors
from gansparse.metrics.evaluation import Score, real_moments, score_generator
from gansparse.metrics.features import Extractor
from gansparse.metrics.moments import FeatureMoments
from gansparse.tasks.gan import GANTask, View


class Watcher(Protocol):
    """Gets told how far a comparison is (the command line draws bars from it)."""

    def start(self, label: str, total: int, found: int = 0) -> None:
        """A piece of work of ``total`` steps begins, of which some were done before."""

    def advance(self, done: int) -> None:
        """``done`` of its steps are done."""


class Silent:
    """Watches nothing."""

    def start(self, label: str, total: int, found: int = 0) -> None:
        """Does nothing."""

    def advance(self, done: int) -> None:
        """Does nothing."""


def watched_real_moments(
    view: View, extractor: Extractor, device: torch.device, watcher: Watcher
) -> FeatureMoments:
    """Statistics of a view's real pictures; a bar counts them where their number is known."""
    count = view.num_pictures
    watcher.start(f"features of the real pictures {view.name}".rstrip(), count or 1)
    on_batch = watcher.advance if count else None
    moments = real_moments(view.pictures, extractor, device=device, on_batch=on_batch)
    if not count:
        watcher.advance(1)
    return moments


class Scorer:
    """Scores the generators of one comparison.

    Args:
        extractor: feature network.
        num_samples: pictures a generator is scored with; fewer where a view has no inputs for them.
        out: the comparison's folder, where the real pictures' statistics are kept.
        device: where to compute.
        watcher: gets told the progress.
    """

    def __init__(
        self,
        extractor: Extractor,
        num_samples: int,
        out: Path,
        *,
        device: torch.device,
        watcher: Watcher,
    ) -> None:
        self.extractor, self.num_samples, self.out = extractor, num_samples, out
        self.device, self.watcher = device, watcher
        #: What a score depends on besides the pictures.
        self.settings = {"num_samples": num_samples, **extractor.describe()}
        self._real: dict[int, FeatureMoments] = {}

    def row(
        self, task: GANTask, generator: nn.Module, label: str, path: Path
    ) -> dict[str, Any]:  # JSON values
        """Scores a generator and keeps some of its pictures.

        Args:
            task: what the generator is to make.
            generator: in its final form; put into eval mode.
            label: for the progress.
            path: file for the pictures.

        Returns:
            ``fid``, the mean over the task's views, with each one's in ``views`` where there are
            several; the task's ``measures``; what the first view's score depends on.
        """
        scores = {
            view.name: self._score(task, index, generator, label)
            for index, view in enumerate(task.views)
        }
        first = next(iter(scores.values()))
        row = first.to_dict() | {"fid": statistics.fmean(s.fid for s in scores.values())}
        if len(scores) > 1:
            row["views"] = {name: score.fid for name, score in scores.items()}
        if task.measures is not None:
            row["measures"] = task.measures(generator)
        save_samples(
            path, {view.name: samples(view, generator, self.device) for view in task.views}
        )
        return row | {"scoring": self.settings}

    def _score(self, task: GANTask, index: int, generator: nn.Module, label: str) -> Score:
        view = task.views[index]
        if index not in self._real:
            self._real[index] = self._real_moments(task, index, view)
        self.watcher.start(f"{label} {view.name}".rstrip(), view.most(self.num_samples))
        return score_generator(
            view,
            generator,
            self._real[index],
            self.extractor,
            num_samples=self.num_samples,
            device=self.device,
            on_batch=self.watcher.advance,
        )

    def _real_moments(self, task: GANTask, index: int, view: View) -> FeatureMoments:
        """Statistics of a view's real pictures, from the folder where they are there already."""
        path = self.out / f"real_{index}.safetensors"
        made_of = {"task": task.name, "data": task.data_name, "view": view.name}
        key = json.dumps(made_of | self.extractor.describe())
        if path.exists():
            state, header = load_tensors(path)
            if header.get("key") == key:
                moments = FeatureMoments(self.extractor.num_features)
                moments.load_state_dict({k: value.to(self.device) for k, value in state.items()})
                return moments
        moments = watched_real_moments(view, self.extractor, self.device, self.watcher)
        save_tensors(path, moments.state_dict(), {"key": key})
        return moments
