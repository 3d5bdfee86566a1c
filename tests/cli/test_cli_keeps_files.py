# SPDX-License-Identifier: Apache-2.0
"""What a user has is not written over, and what was done is not lost."""

from __future__ import annotations

import hashlib
import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import typer

from gansparse.cli.options import run_with_bar
from gansparse.compress.checkpointing import latest_checkpoint
from gansparse.data import write_synthetic
from gansparse.files import alone_in, save_tensors
from gansparse.models import DCGANDiscriminator, DCGANGenerator


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty digits and a pair, in a folder whose name looks like markup."""
    folder = tmp_path_factory.mktemp("a") / "b [" / "x]"
    folder.mkdir(parents=True)
    digits = np.random.default_rng(0).integers(0, 256, (40, 28, 28), dtype=np.uint8)
    labels = np.arange(40, dtype=np.int64) % 10
    np.savez(folder / "mnist.npz", x_train=digits, y_train=labels, x_test=digits, y_test=labels)
    torch.manual_seed(0)
    nets = {"generator": DCGANGenerator(4, 4, 1, 16), "d": DCGANDiscriminator(4, 1, 16)}
    for name, net in nets.items():
        save_tensors(folder / f"{name}.safetensors", net.state_dict())
    return folder


def small(workplace, out, *more):
    return (
        *("compress", "dcgan", "--data", workplace / "mnist.npz", "--out", out, "--steps", 2),
        *("--generator", workplace / "generator.safetensors", "--device", "cpu"),
        *("--discriminator", workplace / "d.safetensors", "--batch-size", 10, *more),
    )


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_run_does_not_write_over_its_own_weights(gansparse, workplace):
    before = digest(workplace / "generator.safetensors")
    for more in ((), ("--resume",)):
        done = gansparse(*small(workplace, workplace, *more))
        assert done.returncode == 2
        assert "lies where the run's own weights go; choose another --out" in done.stderr
    assert digest(workplace / "generator.safetensors") == before


def test_a_run_does_not_write_over_other_weights(gansparse, workplace, tmp_path):
    save_tensors(tmp_path / "generator.safetensors", {"w": torch.zeros(1)})
    done = gansparse(*small(workplace, tmp_path))
    assert done.returncode == 2
    assert "generator.safetensors would be overwritten: choose another --out" in done.stderr


def test_an_export_does_not_write_over_its_source(gansparse, workplace):
    file = workplace / "generator.safetensors"
    before = digest(file)
    done = gansparse("export", file, file, "--half")
    assert done.returncode == 2
    assert "is the generator's own file; choose another place" in done.stderr
    assert digest(file) == before


def test_brackets_in_paths_are_no_markup(gansparse, workplace, tmp_path):
    done = gansparse(
        *("eval", "dcgan", "--data", workplace / "mnist.npz", "--num-samples", 10),
        *("--generator", workplace / "generator.safetensors", "--out", tmp_path / "e.json"),
        *("--device", "cpu"),
    )
    assert done.returncode == 0, done.stderr
    assert "x]/generator.safetensors" in done.stdout.replace("\n", "")
    assert json.loads((tmp_path / "e.json").read_text())["num_fake"] == 10


def test_a_random_pair_is_not_compressed(gansparse, tmp_path):
    write_synthetic("aligned", tmp_path / "data", count=4, size=32)
    done = gansparse(
        *("compress", "pix2pix", "--data", tmp_path / "data", "--steps", 1, "--batch-size", 1),
        *("--load-size", 32, "--crop-size", 32, "--out", tmp_path / "run", "--device", "cpu"),
    )
    assert done.returncode == 2
    assert "compress pix2pix needs the trained pair: --generator and" in done.stderr


class Steps:
    """A trainer of so many steps, in the second of which Ctrl-C is pressed."""

    class config:
        steps = 9

    def __init__(self, presses: int) -> None:
        self.out, self.step, self.presses, self.saved_at = None, 0, presses, 0

    def run(self, on_step):
        while self.step < self.config.steps:
            if self.step == 1:
                for _ in range(self.presses):
                    signal.raise_signal(signal.SIGINT)
            self.step += 1
            on_step({"step": self.step - 1})
        return "result"

    def save(self) -> None:
        self.saved_at = self.step


@pytest.mark.parametrize(("presses", "step", "saved_at"), [(0, 9, 0), (1, 2, 2), (2, 1, 0)])
def test_ctrl_c_ends_the_step_and_keeps_it(presses, step, saved_at):
    """Pressed once; pressed again it stops at once."""
    trainer, before = Steps(presses), signal.getsignal(signal.SIGINT)
    if presses:
        with pytest.raises(typer.Exit) as left:
            run_with_bar(trainer, "training", False)
        assert left.value.exit_code == 130
    else:
        assert run_with_bar(trainer, "training", False) == "result"
    assert (trainer.step, trainer.saved_at) == (step, saved_at)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_run_that_was_stopped_has_a_checkpoint(gansparse, workplace, tmp_path, monkeypatch):
    from gansparse.compress import Trainer

    step = Trainer.train_step

    def pressed(self, number):
        if number == 1:
            signal.raise_signal(signal.SIGINT)
        return step(self, number)

    monkeypatch.setattr(Trainer, "train_step", pressed)
    done = gansparse(*small(workplace, tmp_path / "run", "--save-every", 0, "--steps", 5))
    assert done.returncode == 130
    assert "stopped; --resume goes on from the newest checkpoint" in done.stderr
    assert latest_checkpoint(tmp_path / "run" / "checkpoints").name == "step-000002"


def test_what_does_not_fit_into_memory_is_one_line(gansparse, workplace):
    file = workplace / "generator.safetensors"
    done = gansparse("export", file, workplace / "big.onnx", "--batch", 10**12)
    assert done.returncode == 2
    assert "out of memory: smaller pictures or batches may fit" in done.stderr


def test_two_runs_into_one_folder_are_refused(gansparse, workplace, tmp_path):
    with alone_in(tmp_path):
        done = gansparse(*small(workplace, tmp_path))
    assert done.returncode == 2
    assert "another run is at work in it; wait for it, or choose another --out" in done.stderr
    assert not list(tmp_path.glob("generator*"))
    assert gansparse(*small(workplace, tmp_path)).returncode == 0


def test_places_are_looked_at_before_the_work(gansparse, workplace, tmp_path):
    (tmp_path / "file").write_text("")
    inside, folder = tmp_path / "file" / "x.safetensors", tmp_path / "folder.npz"
    folder.mkdir()
    digits = ("--data", workplace / "mnist.npz")
    weights = workplace / "generator.safetensors"
    for words in (
        ("train", "lenet", *digits, "--out", inside),
        ("fid", workplace, "--generator", weights, "--out", inside),
        ("fid", workplace, tmp_path / "file" / "a.npz", "--save-stats"),
        ("bench", "--generator", weights, "--out", inside),
        ("bench", "--generator", weights, "--out", folder),
        ("export", weights, inside),
        ("deploy", weights, "--out", inside),
    ):
        done = gansparse(*words)
        assert done.returncode == 2, words
        assert "no folder that may be written to" in done.stderr or "is a folder" in done.stderr
