# SPDX-License-Identifier: Apache-2.0
"""What a folder looks like to each task: which layouts it fits, and what is missing or damaged."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from gansparse.data.digits import load_digits, load_idx
from gansparse.data.folder import picture_size, read_image
from gansparse.data.labelled import AttributeFolder, ClassFolder, LabelledPictures
from gansparse.data.pairs import AlignedFolder, UnalignedFolder
from gansparse.data.plain import PictureSamples
from gansparse.data.super_resolution import SuperResolutionFolder
from gansparse.errors import InputError

Size = tuple[int, int]  # width, height

# Task, layout, what reads it: (path, phase) -> samples.
LAYOUTS: tuple[tuple[str, str, Callable[[Path, str], Any]], ...] = (
    ("dcgan", "pictures", lambda path, phase: PictureSamples(path)),
    ("dcgan", "digits (.npz, IDX)", load_digits),
    ("pix2pix", "A and B side by side", AlignedFolder),
    ("cyclegan", "trainA and trainB", UnalignedFolder),
    ("stargan", "attribute list", lambda path, phase: AttributeFolder(path, None, phase=phase)),
    ("stargan", "a folder a class", ClassFolder),
    ("stargan", "IDX with labels", lambda path, phase: LabelledPictures(*load_idx(path, phase))),
    ("srgan", "high resolution", SuperResolutionFolder),
)
PHASES = ("train", "val", "test")


@dataclass
class Fit:
    """What one layout makes of a folder.

    Attributes:
        task: the GAN.
        layout: how the data should lie.
        counts: pictures of each phase that has its own.
        labels: names of the labels' entries.
        sizes: width and height of every whole picture, smallest first.
        problem: why it doesn't fit, and what to do; empty where it fits.
        odd: one line for each picture that is damaged or can't be used.
    """

    task: str
    layout: str
    counts: dict[str, int] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    sizes: list[Size] = field(default_factory=list)
    problem: str = ""
    odd: list[str] = field(default_factory=list)


def check_folder(
    path: str | Path,
    *,
    decode: bool = False,
    threads: int = 2,
    on_file: Callable[[int, int], None] | None = None,
) -> list[Fit]:
    """Looks at a folder (or an .npz of digits) as every task would; one `Fit` a layout.

    Args:
        path: the folder.
        decode: decode every picture wholly, which finds all damage; else headers are read.
        threads: that read files.
        on_file: called with the numbers of pictures looked at, and in all.

    Raises:
        InputError: there is nothing at ``path``.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such folder")
    fits, found = [], []
    for task, layout, read in LAYOUTS:
        fit, sets = Fit(task, layout), {}
        try:
            sets = _phases(path, read)
        except InputError as error:
            fit.problem = str(error)
        fits.append(fit)
        found.append(sets)
    files = sorted({file for sets in found for each in sets.values() for file in _files(each)})
    facts: dict[Path, Size | str] = {}
    with ThreadPoolExecutor(threads) as pool:
        for file, fact in zip(files, pool.map(partial(_look, decode=decode), files), strict=True):
            facts[file] = fact
            if on_file is not None:
                on_file(len(facts), len(files))
    for fit, sets in zip(fits, found, strict=True):
        if sets:
            _fill(fit, sets, facts)
    return fits


def _phases(path: Path, read: Callable[[Path, str], Any]) -> dict[str, Any]:
    """The samples of each phase; training pictures there must be, and others may be the same."""
    if path.is_file() and read is not load_digits:
        raise InputError(f"{path}: is a file; this layout is a folder")
    sets = {"train": read(path, "train")}
    for phase in PHASES[1:]:
        try:
            other = read(path, phase)
        except InputError:
            continue
        if not _files(other) or all(_files(other) != _files(known) for known in sets.values()):
            sets[phase] = other
    return sets


def _files(samples: Any) -> list[Path]:
    files: list[Path] = getattr(samples, "files", [])
    return files


def _look(file: Path, decode: bool) -> Size | str:
    """A picture's size, or what is wrong with it."""
    try:
        return read_image(file).size if decode else picture_size(file)
    except InputError as error:
        return str(error)


def _fill(fit: Fit, sets: dict[str, Any], facts: dict[Path, Size | str]) -> None:
    usable = 0
    for phase, samples in sets.items():
        files = _files(samples)
        if not files:  # in memory
            fit.sizes += [(samples.images.shape[-1], samples.images.shape[-2])]
        for file in files:
            fact = facts[file]
            try:
                if isinstance(fact, str):
                    raise InputError(fact)
                fit.sizes.append(fact)
                samples.check(file, fact)
                usable += 1
            except InputError as error:
                fit.odd.append(str(error))
        fit.counts[phase] = len(files) or len(samples)
        fit.labels = getattr(samples, "label_names", ())
    fit.sizes.sort(key=lambda size: size[0] * size[1])
    wide = sum(width >= 1.5 * height for width, height in fit.sizes)
    if _files(sets["train"]) and not usable:
        fit.problem = f"no picture can be used: {fit.odd[0]}"
    elif fit.layout == "A and B side by side" and 2 * wide <= len(fit.sizes):
        fit.problem = "most pictures are not wider than high: A and B must stand side by side"
    elif fit.labels and len(fit.labels) < 2:
        fit.problem = f"one class only, {fit.labels[0]}: StarGAN needs two or more"
