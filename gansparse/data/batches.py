# SPDX-License-Identifier: Apache-2.0
"""Batches of samples from files, read ahead by worker processes, the same whatever their number.

The batch of a step is a function of (seed, step) alone, so that a run stopped anywhere and resumed
sees the same batches, with any number of workers. Steps that follow one another are read ahead; one
out of turn starts the workers anew.
"""

from __future__ import annotations

import itertools
import warnings
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from gansparse.data.folder import worker_death_named
from gansparse.data.sampling import generator_for
from gansparse.data.transforms import check_at_least
from gansparse.errors import InputError

Batch = dict[str, torch.Tensor]


class Samples(Protocol):
    """What batches are made of: every loader of this package, or a class of one's own.

    With workers it must be picklable where processes don't fork, as on macOS.
    """

    def __len__(self) -> int:
        """How many."""
        ...

    def sample(self, index: int, rng: torch.Generator) -> Batch:
        """Sample number ``index``; whatever is random in it comes from ``rng``.

        Raises:
            InputError: it can't be read or used; names the file.
        """
        ...


class _Ahead:
    """The batches of steps 0, 1, 2, ...; those to come are made by workers, if there are any."""

    def __init__(self, steps: _Steps, num_workers: int) -> None:
        check_at_least(0, num_workers=num_workers)
        self.steps, self.num_workers = steps, num_workers
        self.skipped: list[str] = []  # one line for each sample that was passed over
        self._coming: list[Iterator[_Made]] = []  # one, as soon as workers are started
        self._next = -1
        # Workers that go with cyclic garbage lose their queues before they are told to end, and
        # then each is waited for 5 seconds. These end just before.
        weakref.finalize(self, self._coming.clear).atexit = False

    def __call__(self, step: int) -> Batch:
        """The batch of a step.

        Raises:
            InputError: a damaged picture, samples of different sizes, or a worker that was ended.
        """
        check_at_least(0, step=step)
        batch, skipped, error = self._made(step)
        for line in skipped:
            if line not in self.skipped:
                self.skipped.append(line)
                warnings.warn(f"{line}; skipped, the next takes its place", stacklevel=2)
        if batch is None:
            raise InputError(error)
        return batch

    def _made(self, step: int) -> _Made:
        if not self.num_workers:
            return self.steps[step]
        name = getattr(self.steps.samples, "name", type(self.steps.samples).__name__)
        with worker_death_named(name):
            if step != self._next:
                self._coming[:] = [self._from(step)]
            self._next = -1  # an error below leaves no half-used workers
            made = next(self._coming[0])
        self._next = step + 1
        return made

    def _from(self, step: int) -> Iterator[_Made]:
        return iter(
            DataLoader(
                self.steps,
                batch_size=None,
                sampler=_CountFrom(step),
                num_workers=self.num_workers,
                collate_fn=_as_it_is,
                generator=torch.Generator(),  # else it would draw from the global one
            )
        )


class Batches(_Ahead):
    """Shuffled batches for training: a new permutation each epoch, last part dropped.

    Args:
        samples: where the samples come from.
        batch_size: samples a batch; at most ``len(samples)``.
        seed: of the permutations and augmentations.
        num_workers: processes that read ahead; 0 reads in this one.
        on_damaged: ``raise`` an error that names the file, or ``skip`` it: a warning names it once,
            and the sample after it takes its place. ``skipped`` has these lines.
        shuffle: False keeps the samples' order.

    Raises:
        InputError: a batch size or choice that doesn't fit.

    Example:
        >>> from gansparse.data.labelled import LabelledPictures
        >>> images = torch.arange(10, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
        >>> samples = LabelledPictures(images, torch.arange(10))
        >>> batches = Batches(samples, 4, seed=0)
        >>> len(batches), batches(5)["image"].shape
        (2, torch.Size([4, 1, 2, 2]))
        >>> bool((batches(5)["image"] == batches(5)["image"]).all())
        True
    """

    def __init__(
        self,
        samples: Samples,
        batch_size: int,
        seed: int,
        *,
        num_workers: int = 0,
        on_damaged: str = "raise",
        shuffle: bool = True,
    ) -> None:
        steps = _Steps(samples, batch_size, seed=seed, on_damaged=on_damaged, shuffle=shuffle)
        super().__init__(steps, num_workers)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self.steps.samples) // self.steps.batch_size


class EvaluationBatches(_Ahead):
    """All samples in order and as they are, for scoring; the last batch may be smaller.

    An index past the end is refused: to score a picture twice would be a silent error.

    Args:
        samples: built with ``augment=False``.
        batch_size: samples a batch.
        num_workers: processes that read ahead; 0 reads in this one.
        on_damaged: ``raise`` or ``skip``, see `Batches`.

    Raises:
        InputError: samples that are augmented, or a choice that doesn't fit.
    """

    def __init__(
        self,
        samples: Samples,
        batch_size: int,
        *,
        num_workers: int = 0,
        on_damaged: str = "raise",
    ) -> None:
        if getattr(samples, "augment", False):
            raise InputError("evaluation needs samples as they are: build them with augment=False")
        size = min(batch_size, len(samples))
        super().__init__(_Steps(samples, size, on_damaged=on_damaged), num_workers)

    def __len__(self) -> int:
        """Batches that hold all samples once."""
        return len(self.steps)

    def __call__(self, index: int) -> Batch:
        """Batch number ``index``, counted from 0."""
        if index >= len(self):
            raise InputError(
                f"evaluation batch {index} asked for, but {len(self.steps.samples)} samples make "
                f"only {len(self)}: score at most {len(self.steps.samples)}"
            )
        return super().__call__(index)


_Made = tuple[Batch | None, list[str], str]  # batch, lines of what was skipped, error


def check_on_damaged(value: str) -> None:
    """Refuses all but ``raise`` and ``skip``.

    Raises:
        InputError: anything else.
    """
    if value not in ("raise", "skip"):
        raise InputError(f"on_damaged must be 'raise' or 'skip', got {value!r}")


class _Steps(Dataset[_Made]):
    """Batch by step; without a seed all samples once, in order.

    Errors are values: raised in a worker they would arrive as a traceback.
    """

    def __init__(
        self,
        samples: Samples,
        batch_size: int,
        *,
        seed: int | None = None,
        on_damaged: str = "raise",
        shuffle: bool = False,
    ) -> None:
        if not 1 <= batch_size <= len(samples):
            raise InputError(
                f"batch size must be 1..{len(samples)} (the number of samples), got {batch_size}"
            )
        check_on_damaged(on_damaged)
        self.samples, self.batch_size, self.seed = samples, batch_size, seed
        self.skip, self.shuffle = on_damaged == "skip", shuffle
        self._epoch, self._order = -1, torch.arange(len(samples))

    def __len__(self) -> int:
        return -(-len(self.samples) // self.batch_size)

    def __getitem__(self, step: int) -> _Made:
        skipped: list[str] = []
        try:
            drawn = self._indices(step)
            samples = [
                self._sample(index, step * self.batch_size + place, skipped)
                for place, index in enumerate(drawn)
            ]
            return _stacked(samples), skipped, ""
        except InputError as error:
            return None, skipped, str(error)

    def _indices(self, step: int) -> Sequence[int]:
        epoch, position = 0, step
        if self.seed is not None:
            epoch, position = divmod(step, len(self.samples) // self.batch_size)
        if self.shuffle and epoch != self._epoch:
            rng = generator_for(self.seed or 0, "data", epoch)
            self._order, self._epoch = torch.randperm(len(self.samples), generator=rng), epoch
        indices: list[int] = self._order[position * self.batch_size :][: self.batch_size].tolist()
        return indices

    def _sample(self, index: int, number: int, skipped: list[str]) -> Batch:
        rng = generator_for(self.seed or 0, "augment", number)
        for further in range(len(self.samples)):
            try:
                return self.samples.sample((index + further) % len(self.samples), rng)
            except InputError as error:
                if not self.skip:
                    raise
                skipped.append(str(error))
        raise InputError(f"none of the samples can be used; the last: {skipped[-1]}")


def _stacked(samples: list[Batch]) -> Batch:
    for key, value in samples[0].items():
        odd = next((s[key].shape for s in samples if s[key].shape != value.shape), None)
        if odd is not None:
            raise InputError(
                f"a batch has {key!r} of {list(value.shape)} and {list(odd)}: samples of several "
                "sizes need batches of one"
            )
    return {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}


class _CountFrom:
    """Steps without end, as a DataLoader's sampler."""

    def __init__(self, first: int) -> None:
        self.first = first

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.first)


def _as_it_is(made: Any) -> Any:
    return made
