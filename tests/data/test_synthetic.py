# SPDX-License-Identifier: Apache-2.0
"""Drawn sets: always the same, in their tasks' folders, and such that the task can be learnt."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from drawing import refused
from PIL import Image

from gansparse.data import (
    AlignedFolder,
    AttributeFolder,
    ClassFolder,
    SuperResolutionFolder,
    UnalignedFolder,
    write_synthetic,
)
from gansparse.data.labelled import CELEBA_ATTRIBUTES
from gansparse.data.synthetic import KINDS, draw_face, draw_town, face_attributes

LOADERS = {
    "aligned": AlignedFolder,
    "unaligned": UnalignedFolder,
    "attributes": AttributeFolder,
    "classes": ClassFolder,
    "hr": SuperResolutionFolder,
}


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}


@pytest.mark.parametrize("kind", KINDS)
def test_its_loader_reads_it_and_it_is_always_the_same(tmp_path, kind):
    told = []
    done = write_synthetic(
        kind, tmp_path / "one", count=4, size=32, on_picture=lambda *seen: told.append(seen)
    )
    assert told == [(i + 1, done) for i in range(done)]
    written = files(tmp_path / "one")
    assert len([name for name in written if name.endswith(".png")]) == done
    write_synthetic(kind, tmp_path / "two", count=4, size=32)
    assert files(tmp_path / "two") == written
    write_synthetic(kind, tmp_path / "other", count=4, size=32, seed=1)
    assert files(tmp_path / "other") != written
    options = {"crop_size": 32, "test_count": 1} if kind == "attributes" else {}
    phases = [LOADERS[kind](tmp_path / "one", phase=p, **options) for p in ("train", "test")]
    assert len(phases[0]) == (20 if kind == "classes" else 4)
    assert len(phases[1]) == (5 if kind == "classes" else 1)
    assert not set(phases[0].files) & set(phases[1].files)
    pixels = [np.asarray(Image.open(file)) for file in phases[0].files]
    assert len({p.tobytes() for p in pixels}) == len(pixels)
    if kind != "hr":  # its pictures are smaller here than the crop
        sample = phases[0].sample(0, torch.Generator())
        assert all(bool(value.isfinite().all()) for value in sample.values())


def test_a_larger_set_begins_with_the_smaller(tmp_path):
    for count in (2, 5):
        write_synthetic("aligned", tmp_path / str(count), count=count, size=16)
    few, many = (files(tmp_path / str(count) / "train") for count in (2, 5))
    assert few.items() <= many.items()


def test_the_map_tells_what_is_seen_from_the_air():
    """Where the map shows water, park or street, the air has a colour of its own."""
    colours = {}
    for number in range(6):
        air, plan = draw_town(64, seed=0, number=number)
        for name, colour in (("water", (164, 206, 232)), ("park", (197, 230, 178))):
            colours.setdefault(name, []).append(air[(plan == colour).all(-1)])
        colours.setdefault("street", []).append(air[(plan == 255).all(-1)])
    means = {name: np.concatenate(c).astype(float) for name, c in colours.items()}
    assert min(len(values) for values in means.values()) > 100
    for name, values in means.items():
        for other in means.keys() - {name}:
            gap = np.abs(values.mean(0) - means[other].mean(0)).max()
            error = np.hypot(*(means[n].std(0).max() / len(means[n]) ** 0.5 for n in (name, other)))
            assert gap > 10 * error, (name, other)


def test_a_plan_is_the_same_in_all_styles_and_sizes():
    """A twice larger picture reduced agrees with the small one but for noise and edges."""
    small, large = (draw_town(s, seed=2, number=0, styles=("map",))[0] for s in (64, 128))
    halved = np.asarray(Image.fromarray(large).reduce(2)).astype(float)
    assert np.median(np.abs(halved - small)) <= 1
    both = draw_town(64, seed=2, number=0, styles=("winter", "map"))
    assert np.array_equal(both[1], small)


def test_faces_show_their_attributes(tmp_path):
    write_synthetic("attributes", tmp_path / "faces", count=30, size=32)
    for phase in ("train", "test"):
        faces = AttributeFolder(tmp_path / "faces", phase=phase, crop_size=32)
        for file, label in zip(faces.files, faces.labels.tolist(), strict=True):
            want = face_attributes(0, int(file.stem) - 1)
            assert label == [float(has) for has in want]
            assert sum(want[:3]) == 1
    # The top of the hair has its colour: fair hair is the brightest, black the darkest.
    brightness = {name: [] for name in CELEBA_ATTRIBUTES[:3]}
    for number in range(40):
        hair = CELEBA_ATTRIBUTES[face_attributes(0, number).index(True)]
        brightness[hair].append(draw_face(64, seed=0, number=number)[18:22, 28:36].mean())
    black, blond, brown = (np.array(brightness[name]) for name in CELEBA_ATTRIBUTES[:3])
    assert black.max() < brown.min()
    assert brown.max() < blond.min()


def test_refusals(tmp_path):
    refused(
        lambda: write_synthetic("cats", tmp_path / "x"), "no synthetic set 'cats'; there are al"
    )
    refused(lambda: write_synthetic("hr", tmp_path / "x", size=8), "at least 1 and size 16, got")
    refused(lambda: write_synthetic("hr", tmp_path / "x", count=0), "got 0 and 256")
    (tmp_path / "kept").write_text("")
    refused(lambda: write_synthetic("hr", tmp_path), "is there already and not empty")
    refused(lambda: write_synthetic("hr", tmp_path / "kept"), "is there already and not empty")
