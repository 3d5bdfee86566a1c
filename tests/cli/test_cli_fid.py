# SPDX-License-Identifier: Apache-2.0
"""`gansparse fid`: right numbers, files that others read, runs that go on, mistakes in a line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gansparse.data.folder import PictureFolder
from gansparse.files import save_tensors
from gansparse.metrics import frechet_distance_from_features
from gansparse.metrics.features import get_extractor
from gansparse.metrics.generated import GeneratedPictures
from gansparse.metrics.statistics import Statistics, load_statistics
from gansparse.models import DCGANGenerator

LENET = ("--extractor", "lenet-mnist", "--num-workers", 0, "--device", "cpu")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Folders `a` and `b` with pictures of mixed sizes, and a small generator's weights."""
    root = tmp_path_factory.mktemp("fid")
    rng = np.random.default_rng(0)
    for name, count, brightest in (("a", 13, 256), ("b", 9, 128)):
        (root / name).mkdir()
        for i in range(count):
            height, width = rng.integers(20, 50, 2)
            pixels = rng.integers(0, brightest, (height, width), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i:02}.png")
    torch.manual_seed(0)
    save_tensors(root / "g.safetensors", DCGANGenerator(nz=4, ngf=2, image_size=32).state_dict())
    return root


def features(pictures, **options):
    lenet = get_extractor("lenet-mnist")
    return torch.cat([lenet.of_prepared(x) for x in pictures.batches(50, prepare=lenet.prepare)])


def refused(done, *words):
    status, printed, errors = done
    assert status == 2, errors
    assert not printed
    line = errors.strip().splitlines()[-1]
    assert line.startswith("gansparse: error: "), errors
    assert "Traceback" not in errors
    for word in words:
        assert word in line, line


# ---- Numbers -------------------------------------------------------------------------------------


def test_two_folders(gansparse, places, tmp_path):
    a, b = (features(PictureFolder(places / name, channels=1)) for name in "ab")
    want = frechet_distance_from_features(a, b)
    for batch_size in (1, 4, 50):
        status, printed, errors = gansparse(
            "fid", places / "a", places / "b", *LENET, "--batch-size", batch_size
        )
        assert status == 0, errors
        label, number = printed.splitlines()[0].split()
        assert label == "FID:", "pytorch-fid's first line"
        # Convolutions of other batch sizes may sum in another order: features to 1e-6.
        assert float(number) == pytest.approx(want, rel=1e-5)
    facts = printed.splitlines()[1]
    for fact in ("lenet-mnist", "120 features", "weights ", "float32", "13 x ", "9 x "):
        assert fact in facts
    assert "note: 9 pictures for 120 features: FID is biased upwards" in errors
    assert "a: 13/13" in errors


def test_a_folder_against_itself_is_0(gansparse, places):
    _, printed, _ = gansparse("fid", places / "a", places / "a", *LENET, "--json")
    assert 0 <= json.loads(printed)["fid"] < 1e-9


def test_json_and_out(gansparse, places, tmp_path):
    out = tmp_path / "run"
    status, printed, _ = gansparse(
        "fid", places / "a", places / "b", *LENET, "--json", "--out", out
    )
    assert status == 0
    result = json.loads(printed)
    assert result == json.loads((out / "fid.json").read_text())
    assert result["extractor"] == get_extractor("lenet-mnist").describe()
    assert [side["count"] for side in result["sides"]] == [13, 9]
    assert [side["source"] for side in result["sides"]] == [str(places / n) for n in "ab"]


def test_saved_statistics_give_the_same_number(gansparse, places, tmp_path):
    path = tmp_path / "a.npz"
    status, printed, errors = gansparse("fid", places / "a", path, "--save-stats", *LENET)
    assert status == 0, errors
    assert str(path) in printed
    direct, stored = (
        json.loads(gansparse("fid", side, places / "b", *LENET, "--json")[1])
        for side in (places / "a", path)
    )
    assert stored["fid"] == direct["fid"]
    assert stored["sides"][0] == {"source": str(path), "count": 13}
    status, printed, errors = gansparse("fid", path, path)
    assert status == 0, "two files need no extractor"
    assert printed.startswith("FID:  ")
    assert "lenet-mnist" in printed
    refused(gansparse("fid", places / "a", path, "--save-stats", *LENET), "is there already")


def test_a_file_of_pytorch_fid(gansparse, places, tmp_path):
    rows = features(PictureFolder(places / "a", channels=1)).double()
    path = tmp_path / "theirs.npz"
    np.savez_compressed(path, mu=rows.mean(0).numpy(), sigma=torch.cov(rows.T).numpy())
    want, got = (
        gansparse("fid", side, places / "b", *LENET, "--json") for side in (places / "a", path)
    )
    number, theirs = json.loads(want[1])["fid"], json.loads(got[1])
    assert theirs["fid"] == pytest.approx(number, rel=1e-5)
    assert theirs["sides"][0]["count"] is None
    assert "theirs.npz does not say which extractor made it" in got[2]
    _, printed, _ = gansparse("fid", path, path)
    assert "extractor unknown, 120 features, ? x " in printed


def test_a_generator(gansparse, places, tmp_path):
    weights = places / "g.safetensors"
    fake = features(GeneratedPictures(weights, 120, seed=5))
    real = features(PictureFolder(places / "a", channels=1))
    arguments = ("--generator", weights, "--num", 120, "--seed", 5, *LENET)
    status, printed, errors = gansparse("fid", places / "a", *arguments, "--json")
    assert status == 0, errors
    result = json.loads(printed)
    assert result["fid"] == pytest.approx(frechet_distance_from_features(real, fake), rel=1e-5)
    assert result["sides"][1] == {"source": f"{weights}, seed 5", "count": 120}
    path = tmp_path / "fake.npz"
    status, _, errors = gansparse("fid", path, "--save-stats", *arguments)
    assert status == 0, errors
    assert load_statistics(path).count == 120


def test_recursive(gansparse, places):
    refused(gansparse("fid", places, places / "b", *LENET), "holds no pictures", "recursive")
    status, printed, _ = gansparse("fid", places, places / "b", *LENET, "--recursive", "--json")
    assert status == 0
    assert json.loads(printed)["sides"][0]["count"] == 22


# ---- Going on ------------------------------------------------------------------------------------


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "gansparse", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def stop(process: subprocess.Popen[str], partial: Path, how: signal.Signals) -> tuple[str, str]:
    """Ends a run some while after it saved something new."""

    def written() -> int:
        return partial.stat().st_mtime_ns if partial.exists() else 0

    before, deadline = written(), time.monotonic() + 100
    while written() == before:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "nothing was saved"
        time.sleep(0.005)
    process.send_signal(how)
    return process.communicate(timeout=60)


def test_a_run_killed_twice_and_resumed_gives_the_same_bits(gansparse, places, tmp_path):
    arguments = (
        *("fid", places / "a", "--generator", places / "g.safetensors", "--num", 2500),
        *(*LENET, "--threads", 1, "--batch-size", 20, "--save-every", 20),
    )
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    partial = killed / "b.safetensors"
    stop(start(*arguments, "--out", killed), partial, signal.SIGKILL)
    refused(gansparse(*arguments, "--out", killed), "holds a run already: add --resume")
    _, errors = stop(start(*arguments, "--out", killed, "--resume"), partial, signal.SIGINT)
    assert "gansparse: stopped; --resume goes on" in errors
    assert not (killed / "fid.json").exists()
    assert gansparse(*arguments, "--out", killed, "--resume")[0] == 0
    assert gansparse(*arguments, "--out", undisturbed)[0] == 0
    assert (killed / "fid.json").read_text() == (undisturbed / "fid.json").read_text()
    for name in ("a.safetensors", "b.safetensors"):
        assert (killed / name).read_bytes() == (undisturbed / name).read_bytes()


def test_resume_needs_the_same_run(gansparse, places, tmp_path):
    run = ("fid", places / "a", places / "b", *LENET, "--out", tmp_path / "run")
    assert gansparse(*run)[0] == 0
    refused(gansparse(*run, "--resume", "--batch-size", 3), "another run (batch_size, save_every")
    refused(gansparse(*run[:-2], "--resume"), "--resume needs --out")


# ---- Mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--extractor", "resnet"), ("no extractor 'resnet'", "lenet-mnist")),
        (("--dims", 64), ("lenet-mnist has no option 'dims'",)),
        (("--mode", "clean"), ("lenet-mnist has no option 'mode'",)),
        (("--weights", "no.pth"), ("no weights file at no.pth",)),
        (("--device", "quantum"), ("--device must be cpu",)),
        (("--generator", "g.pth"), ("fid compares two sides",)),
        (("--save-stats",), ("is there already",)),
    ],
)
def test_bad_arguments(gansparse, places, more, words):
    refused(gansparse("fid", places / "a", places / "b", *LENET, *more), *words)


def test_one_side_or_none_that_can_be_read(gansparse, places, tmp_path):
    a = places / "a"
    refused(gansparse("fid", a, *LENET), "fid compares two sides")
    refused(gansparse("fid", a, tmp_path / "no", *LENET), "no is neither a folder of pictures nor")
    refused(gansparse("fid", a, places / "g.safetensors", *LENET), "neither a folder of pictures")
    refused(gansparse("fid", a, tmp_path / "no.npz", *LENET), "no.npz: no such file")
    refused(gansparse("fid", a, tmp_path, *LENET), "holds no pictures")
    refused(gansparse("fid", a, tmp_path / "out.txt", "--save-stats", *LENET), "must end in .npz")
    refused(gansparse("fid", a, "--generator", tmp_path / "g.pth", *LENET), "no weights file at")
    torch.save({"weight": torch.ones(1)}, tmp_path / "other.pth")
    other = ("--generator", tmp_path / "other.pth")
    refused(gansparse("fid", a, *other, *LENET), "other.pth: no generator known here")


def test_files_that_do_not_fit(gansparse, places, tmp_path):
    np.savez(tmp_path / "wide.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    other = get_extractor("lenet-mnist").describe() | {"weights": "01234567"}
    Statistics(torch.zeros(120), torch.eye(120), "", other, 9).save(tmp_path / "other.npz")
    for name in ("cut.png", "other.png"):
        (tmp_path / name).write_text("found out only when it is read, which is too late")
    for name, message in (
        ("wide", "wide.npz and this run can't be compared: 2048 features against 120"),
        ("other", "extractor's weights is '01234567' in the first, "),
    ):
        refused(gansparse("fid", tmp_path, tmp_path / f"{name}.npz", *LENET), message)
    refused(
        gansparse("fid", tmp_path / "wide.npz", tmp_path / "wide.npz", "--mode", "clean"),
        "--mode has no effect",
    )


def test_one_picture_and_a_truncated_one(gansparse, places, tmp_path):
    picture = tmp_path / "photo.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)).save(picture)
    few = (places / "a", tmp_path)
    refused(gansparse("fid", *few, *LENET), "at least 2 pictures, got 1")
    # Before any work: not even the extractor's weights were looked for.
    refused(gansparse("fid", *few, "--weights", "no.pth"), "at least 2 pictures, got 1")
    (tmp_path / "other.jpg").write_bytes(picture.read_bytes())
    picture.write_bytes(picture.read_bytes()[:1000])
    for workers in (0, 1):
        refused(
            gansparse("fid", places / "a", tmp_path, *LENET[:2], "--num-workers", workers),
            "photo.jpg: damaged or truncated",
        )


def test_a_place_that_cannot_be_written(gansparse, places, tmp_path):
    (tmp_path / "file").write_text("")
    run = ("fid", places / "a", places / "b", *LENET)
    refused(gansparse(*run, "--out", tmp_path / "file" / "run"), "could not write")
