# SPDX-License-Identifier: Apache-2.0
"""The command line: help that teaches, one-line errors with status 2, results that are files."""

import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import typer

from gansparse.cli import app
from gansparse.cli.options import choose_device
from gansparse.compress import RECIPES
from gansparse.data.synthetic import KINDS
from gansparse.errors import InputError
from gansparse.files import load_tensors, save_tensors
from gansparse.models import DCGANDiscriminator, DCGANGenerator

COMMANDS = [
    "",
    "train",
    "train dcgan",
    "train lenet",
    "train pix2pix",
    "train cyclegan",
    "train stargan",
    "train srgan",
    "compress",
    "compare",
    "sweep",
    "eval",
    "fid",
    "deploy",
    "export",
    "bench",
    "data",
    "data check",
    "data synth",
    "report",
    "demo",
    "info",
]
ENVIRONMENT = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}


def process(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "gansparse", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=ENVIRONMENT,
    )


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """Forty digits and a small trained pair, as files."""
    folder = tmp_path_factory.mktemp("cli")
    rng = np.random.default_rng(0)
    digits = rng.integers(0, 256, (40, 28, 28), dtype=np.uint8)
    labels = np.arange(40, dtype=np.int64) % 10
    np.savez(folder / "mnist.npz", x_train=digits, y_train=labels, x_test=digits, y_test=labels)
    torch.manual_seed(0)
    nets = {
        "g": DCGANGenerator(nz=8, ngf=4, image_size=32),
        "d": DCGANDiscriminator(ndf=4, image_size=32),
    }
    for name, net in nets.items():
        save_tensors(folder / f"{name}.safetensors", net.state_dict())
    return folder


def pair(folder):
    g, d = folder / "g.safetensors", folder / "d.safetensors"
    return ("--data", folder / "mnist.npz", "--generator", g, "--discriminator", d)


def small(folder, out, *more):
    return (
        *("compress", "dcgan", *pair(folder), "--out", out),
        *("--steps", 4, "--batch-size", 4, "--device", "cpu", *more),
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command):
    from typer.testing import CliRunner

    shown = CliRunner(env={"COLUMNS": "120", "NO_COLOR": "1"}).invoke(
        app, [*command.split(), "--help"]
    )
    assert shown.exit_code == 0
    if command not in ("", "train", "data"):
        assert f"gansparse {command}" in shown.stdout, "an example shows how to call it"


def test_help_names_every_technique():
    shown = typer.main.get_command(app).commands["compress"].help
    for recipe in RECIPES.values():
        assert f"{recipe.key}  {recipe.technique}" in shown


def every_command(group, path=()):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from every_command(command, (*path, name))
        else:
            yield (*path, name), command


def examples_in(text):
    """Words of each example; lines that begin with an option belong to the one before."""
    for line in re.sub(r"\n\s+(?=--)", " ", text).splitlines():
        for found in re.findall(r"(?:^|\s)gansparse ([a-z].*?)(?=&&|$)", line):
            yield shlex.split(found.strip("` "), comments=True)


def test_every_example_names_what_there_is():
    commands = dict(every_command(typer.main.get_command(app)))
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"^```\n(.*?)^```", readme, re.M | re.S))
    examples = [e for c in commands.values() for e in examples_in(c.help or "")]
    assert len(examples) > 30
    for words in [*examples, *examples_in(blocks)]:
        path = next((p for p in (tuple(words[:2]), tuple(words[:1])) if p in commands), None)
        assert path, words
        known = {name for parameter in commands[path].params for name in parameter.opts}
        known |= {name for parameter in commands[path].params for name in parameter.secondary_opts}
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert options <= known, (words, options - known)
        if path == ("data", "synth"):
            assert words[2] in KINDS, words


def test_compress_eval_and_resume(gansparse, workplace, tmp_path):
    out = tmp_path / "run"
    done = gansparse(*small(workplace, out), "--set", "d_update=fixed", "--set", "lambda_=0.25")
    assert done.returncode == 0, done.stderr
    assert "4/4" in done.stderr
    chosen = json.loads((out / "config.json").read_text())
    assert (chosen["lambda_"], chosen["reading"]["d_update"]) == (0.25, "fixed")
    state, header = load_tensors(out / "generator.safetensors")
    kernels = [value for key, value in state.items() if value.ndim == 4]
    zeros = sum(int((k == 0).sum()) for k in kernels)
    assert zeros / sum(k.numel() for k in kernels) == pytest.approx(0.75, abs=0.01)
    assert json.loads(header["config"])["sparsity"] == 0.75
    rows = (out / "history.jsonl").read_text().splitlines()
    assert json.loads(rows[-1])["step"] == 3

    again = gansparse(*small(workplace, out))
    assert again.returncode == 2
    assert "holds a run already: add --resume" in again.stderr
    same = ("--set", "d_update=fixed", "--set", "lambda_=0.25")
    assert gansparse(*small(workplace, out, "--resume", *same)).returncode == 0

    scored = gansparse(
        *("eval", "dcgan", *pair(workplace)[:2], "--num-samples", 30, "--device", "cpu"),
        *("--generator", out / "generator.safetensors", "--out", tmp_path / "score.json"),
    )
    assert scored.returncode == 0, scored.stderr
    score = json.loads((tmp_path / "score.json").read_text())
    assert score["extractor"] == "lenet-mnist"
    assert score["num_fake"] == 30
    assert score["fid"] > 0
    assert sum(score["classes"]) == pytest.approx(1.0)

    def fid(seed):
        done = gansparse(
            *("eval", "dcgan", *pair(workplace)[:4], "--num-samples", 30, "--device", "cpu"),
            *("--seed", seed, "--out", tmp_path / "score.json"),
        )
        assert done.returncode == 0, done.stderr
        return json.loads((tmp_path / "score.json").read_text())["fid"]

    assert fid(1) == fid(1) != fid(0)


def test_train_dcgan_then_compress_what_it_wrote(gansparse, workplace, tmp_path):
    out = tmp_path / "trained"
    done = gansparse(
        *("train", "dcgan", "--data", workplace, "--out", out, "--epochs", 1, "--device", "cpu"),
        *("--batch-size", 10, "--nz", 8, "--ngf", 2, "--ndf", 2),
    )
    assert done.returncode == 0, done.stderr
    next_command = shlex.split(re.search(r"next: gansparse (.*)", done.stdout)[1])
    more = ("--steps", 2, "--batch-size", 4, "--out", tmp_path / "c", "--device", "cpu")
    assert gansparse(*next_command, *more).returncode == 0


def test_a_trained_pair_is_trained_further(gansparse, workplace, tmp_path):
    out = tmp_path / "further"
    done = gansparse(
        *("train", "dcgan", *pair(workplace), "--out", out, "--epochs", 1, "--device", "cpu"),
        *("--batch-size", 10, "--lr", 1e-9),
    )
    assert done.returncode == 0, done.stderr
    before, _ = load_tensors(workplace / "g.safetensors")
    after, _ = load_tensors(out / "generator.safetensors")
    torch.testing.assert_close(after["main.0.weight"], before["main.0.weight"], atol=1e-6, rtol=0)
    assert not torch.equal(after["main.0.weight"], before["main.0.weight"])


def test_tensorboard_log(gansparse, workplace, tmp_path):
    pytest.importorskip("tensorboard", reason="the extra 'tensorboard' is not installed")
    done = gansparse(*small(workplace, tmp_path / "run", "--tensorboard"))
    assert done.returncode == 0, done.stderr
    (log,) = (tmp_path / "run" / "tensorboard").iterdir()
    assert log.stat().st_size > 200


def test_info(gansparse):
    done = gansparse("info", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "masked_adam" in json.dumps(found)
    assert "feature_moments" in json.dumps(found)
    assert torch.__version__ in json.dumps(found)


def refused(done, *words):
    assert done.returncode == 2, (done.returncode, done.stderr)
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("gansparse: error: "), done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in line, line


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--sparsity", 1.5), ("sparsity must be 0 <= sparsity < 1, got 1.5",)),
        (("--granularity", "row"), ("row",)),
        (("--include", "encoder.*"), ("encoder.*", "main.0")),
        (("--recipe", "z"), ("a to o, got 'z'",)),
        (("--set", "lamda=1"), ("no setting 'lamda'", "lambda_")),
        (("--set", "lambda_=much"), ("lambda_ must be a number, got 'much'",)),
        (("--set", "d_update=never"), ("d_update must be one of", "'never'")),
        (("--set", "ema"), ("a setting is NAME=VALUE",)),
        (("--device", "quantum"), ("--device must be cpu",)),
        (("--device", "meta"), ("--device must be cpu",)),
        (("--scope", "galaxy"), ("galaxy",)),
        (("--batch-size", 100), ("batch size must be 1..40",)),
        (("--weight", "gen=nan"), ("--weight must be 0 or more, got 'gen=nan'",)),
        (("--image-size", 48), ("makes pictures of 32 x 32, not of 48",)),
    ],
)
def test_bad_settings(gansparse, workplace, tmp_path, more, words):
    refused(gansparse(*small(workplace, tmp_path / "out", *more)), *words)
    assert not (tmp_path / "out").exists(), "nothing is written before the settings are known good"


def test_a_cuda_device_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match="--device cuda:2: torch finds 2, from cuda:0 on"):
        choose_device("cuda:2", 0)


@pytest.mark.parametrize(
    "words",
    [
        "train pix2pix --data x --ngf 0",
        "train pix2pix --data x --n-layers-d -1",
        "train cyclegan --data x --pool-size -1",
        "train stargan --data x --n-critic 0",
        "train stargan --data x --image-size 2",
        "compress dcgan --threads -1",
        "compress dcgan --threads 5000",
        "compress dcgan --seed -1",
        "train lenet --seed 4294967296",
        "compress dcgan --image-size -16",
        "compress cyclegan --identity -1",
    ],
)
def test_numbers_out_of_range(gansparse, words):
    refused(gansparse(*words.split()), f"Invalid value for '{words.split()[-2]}'")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("compress --sparsty 0.5", ("No such option: --sparsty", "--sparsity)")),
        ("compress --lr 6e-4", ("No such option: --lr; say --set lr=VALUE",)),
        ("sweep --lambda=1", ("No such option: --lambda; say --set lambda_=VALUE",)),
        ("compress --sparsity much", ("Invalid value for '--sparsity'",)),
        ("compress dcgn", ("'dcgn'", "dcgan")),
        ("frobnicate", ("No such command 'frobnicate'",)),
        ("deploy", ("Missing argument",)),
    ],
)
def test_words_that_say_nothing(gansparse, words, told):
    done = gansparse(*words.split())
    refused(done, *told, " --help")
    assert len(done.stderr.splitlines()) == 1
    assert not done.stdout


@pytest.mark.parametrize("words", [(), ("train",)])
def test_a_group_alone_shows_its_help(gansparse, words):
    done = gansparse(*words)
    assert done.returncode == 2
    assert (done.stdout + done.stderr).count("dcgan" if words else "compress ") == 1


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("gansparse.compress.load_task", "gansparse: stopped"),
        (
            "gansparse.compress.Trainer.run",
            "gansparse: stopped; --resume goes on from the newest checkpoint",
        ),
    ],
)
def test_ctrl_c(gansparse, workplace, tmp_path, monkeypatch, place, said):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(place, interrupt)
    done = gansparse(*small(workplace, tmp_path / "out"))
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1] == said


def test_bad_files(gansparse, workplace, tmp_path):
    out = tmp_path / "out"
    command = list(small(workplace, out))
    where = command.index("--generator") + 1
    truncated = tmp_path / "cut.safetensors"
    truncated.write_bytes((workplace / "g.safetensors").read_bytes()[:2000])
    good, _ = load_tensors(workplace / "g.safetensors")
    save_tensors(tmp_path / "ints.safetensors", {k: v.to(torch.int32) for k, v in good.items()})
    save_tensors(tmp_path / "shape.safetensors", good | {"main.1.weight": torch.ones(5)})
    nan = good["main.0.weight"].clone().fill_(torch.nan)
    save_tensors(tmp_path / "nan.safetensors", good | {"main.0.weight": nan})
    torch.save([torch.ones(1)], tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "no_state.pth")
    torch.save({"layer.weight": torch.ones(1)}, tmp_path / "other.pth")
    cases = {
        tmp_path / "absent.pth": ("no weights file at", "absent.pth", "give a .safetensors"),
        truncated: ("cut.safetensors", "copy it again"),
        tmp_path / "list.pth": ("not a state_dict but a list", "save the module's state_dict()"),
        tmp_path / "no_state.pth": ("not a state_dict", "no_state.pth", "save the module's"),
        tmp_path / "other.pth": ("not a DCGAN generator", "layer.weight"),
        tmp_path / "ints.safetensors": ("main.0.weight must be floating point, got torch.int32",),
        tmp_path / "shape.safetensors": ("main.1.weight must have shape [16], got [5]",),
        tmp_path / "nan.safetensors": ("main.0.weight holds NaN", "use an older checkpoint"),
        workplace / "d.safetensors": ("not the weights of a DCGAN generator", "d.safetensors"),
    }
    for path, words in cases.items():
        command[where] = path
        refused(gansparse(*command), *words)
    assert not out.exists()


def test_bad_pictures(gansparse, workplace, tmp_path):
    out = tmp_path / "out"
    command = list(small(workplace, out))
    with np.load(workplace / "mnist.npz") as archive:
        digits, labels = archive["x_train"], archive["y_train"]
    nan = digits / np.float32(255)
    nan[3, 4, 5] = np.nan
    cases = {
        "nan.npz": (nan, ("images hold NaN or infinite pixels", "mend the file")),
        "float.npz": (digits / 255, ("images must be uint8 0..255, got float64",)),
        "small.npz": (digits[:, 8:], ("images must have shape [N, 28, 28], got [40, 20, 28]",)),
    }
    for name, (images, words) in cases.items():
        np.savez(tmp_path / name, x_train=images, y_train=labels)
        command[command.index("--data") + 1] = tmp_path / name
        refused(gansparse(*command), name, *words)
    command[command.index("--data") + 1] = tmp_path / "nowhere"
    refused(gansparse(*command), "no digits at", "nowhere", "give an .npz")
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image_size": 64}, "does not take the real pictures: "),
        ({"nc": 3}, "to have 3 channels, but got 1"),
        ({"image_size": 16}, "must give one logit a picture, got 100 of pictures [4, 1, 32, 32]"),
    ],
)
def test_networks_that_are_no_pair(gansparse, workplace, tmp_path, options, words):
    other = DCGANDiscriminator(**{"ndf": 4, "image_size": 32, **options})
    save_tensors(tmp_path / "d.safetensors", other.state_dict())
    command = list(small(workplace, tmp_path / "out"))
    command[command.index("--discriminator") + 1] = tmp_path / "d.safetensors"
    refused(gansparse(*command), "task dcgan: the discriminator", words, "trained")
    assert not (tmp_path / "out").exists()


@contextmanager
def room_for(bytes_):
    """A limit of this process's files stands for a disk that is nearly full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk(gansparse, workplace, tmp_path):
    """The run stops in one line, leaves nothing half-written, and goes on when there is room."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert gansparse(*small(workplace, whole, "--save-every", 2)).returncode == 0
    with room_for(20_000):  # a checkpoint takes more
        done = gansparse(*small(workplace, out, "--save-every", 2))
    refused(done, "could not write", "step-000002: ", "free space, or choose another place")
    assert done.stderr.count("could not write") == 1
    assert sorted(p.name for p in out.rglob("*")) == [".lock", "checkpoints", "history.jsonl"]

    shutil.rmtree(out)
    shutil.copytree(whole, out)
    shutil.rmtree(out / "checkpoints" / "step-000004")
    kept = {path: path.read_bytes() for path in out.rglob("*.safetensors")}
    with room_for(20_000):
        done = gansparse(*small(workplace, out, "--save-every", 2, "--resume"))
    refused(done, "could not write", "step-000004: ")
    assert {path: path.read_bytes() for path in out.rglob("*.safetensors")} == kept
    assert gansparse(*small(workplace, out, "--save-every", 2, "--resume")).returncode == 0
    for name in ("generator", "discriminator"):
        ours, theirs = (load_tensors(at / f"{name}.safetensors")[0] for at in (out, whole))
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def test_one_network_without_the_other(gansparse, workplace, tmp_path):
    g = ("--generator", workplace / "g.safetensors", "--data", workplace)
    done = gansparse("compress", "dcgan", *g, "--out", tmp_path / "o")
    refused(done, "--generator without --discriminator")


def test_an_unwritable_place(gansparse, workplace, tmp_path):
    (tmp_path / "file").write_text("")
    done = gansparse(*small(workplace, tmp_path / "file" / "run"))
    refused(done, "could not write")
    assert "4/4" not in done.stderr, "told before hours of training, not after"
    scores = ("eval", "dcgan", *pair(workplace)[:4], "--out", tmp_path)
    refused(gansparse(*scores), "is a folder: name the file")
    compared = ("compare", *pair(workplace), "--out", tmp_path / "file")
    refused(gansparse(*compared), "could not write to")
    refused(gansparse("demo", "--out", tmp_path / "file" / "demo"), "could not write to")


def test_a_truncated_checkpoint(gansparse, workplace, tmp_path):
    out = tmp_path / "run"
    assert gansparse(*small(workplace, out, "--save-every", 2)).returncode == 0
    newest = sorted((out / "checkpoints").iterdir())[-1] / "state.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    again = small(workplace, out, "--save-every", 2, "--resume")
    refused(gansparse(*again), "state.safetensors", "step-000004: damaged; delete it to resume")
    shutil.rmtree(newest.parent)
    assert gansparse(*again).returncode == 0
    (out / "history.jsonl").write_text('{"step": ')
    refused(gansparse(*again), "history.jsonl", "put it back")
    (out / "history.jsonl").unlink()
    refused(gansparse(*again), "history.jsonl", "No such file")


def test_report_without_a_comparison(tmp_path):
    refused(process("report", tmp_path), "report.json")
    refused(process("report", tmp_path, "--out", tmp_path), "is a folder: name the file")
    page = tmp_path / "report.json"
    refused(process("report", tmp_path, "--out", page), "its name must end in .html")
    assert not page.exists()


def test_python_m_and_the_script_are_the_same():
    script = Path(sys.executable).with_name("gansparse")
    shown = subprocess.run(
        [script, "--help"], capture_output=True, text=True, check=True, env=ENVIRONMENT
    )
    assert "discriminator" in shown.stdout
