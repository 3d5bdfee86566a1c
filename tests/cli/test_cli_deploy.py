# SPDX-License-Identifier: Apache-2.0
"""`gansparse deploy`, `export` and `bench` on a small pruned generator."""

from __future__ import annotations

import csv
import re
from functools import partial

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from gansparse import runtimes
from gansparse.cli import app
from gansparse.errors import CheckpointError, InputError
from gansparse.files import save_tensors
from gansparse.models import DCGANGenerator, load_generator
from gansparse.sparsity import Pruner, filter_channels
from gansparse.testing import timing


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GANSPARSE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """How fast the machine is, and how quiet, is no question here."""
    monkeypatch.setattr(runtimes, "_PAUSE", 0.0)
    monkeypatch.setattr(runtimes, "memory_limits", partial(timing.memory_limits, items=1 << 16))


@pytest.fixture
def weights(tmp_path):
    """Half of the filters of a DCGAN for 16x16 pictures are gone."""
    torch.manual_seed(0)
    net = DCGANGenerator(nz=16, ngf=16, image_size=16).eval()
    channels = filter_channels(net, torch.randn(2, 16))
    Pruner(net, 0.5, "filter", channels=channels).prune_to(0.5)
    save_tensors(tmp_path / "g.safetensors", net.state_dict())
    return tmp_path / "g.safetensors"


def call(*arguments, columns=200):
    """Its output; errors that a user can mend are raised, as `main` gets them."""
    runner = CliRunner(env={"COLUMNS": str(columns), "NO_COLOR": "1"})
    done = runner.invoke(app, list(map(str, arguments)))
    if isinstance(done.exception, (InputError, CheckpointError)):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def test_deploy_writes_what_is_asked_for_and_explains(weights, tmp_path):
    out = tmp_path / "deployed"
    shown = call("deploy", weights, "--out", out, "--half", "--shrink", "--torch-export")
    assert {file.name for file in out.iterdir()} == {
        "packed.safetensors",
        "shrunk.safetensors",
        "generator.pt2",
    }
    z = torch.randn(3, 16)
    expected = load_generator(weights).eval()(z)
    small = load_generator(out / "shrunk.safetensors").eval()
    sizes = [sum(p.numel() for p in g.parameters()) for g in (small, load_generator(weights))]
    assert sizes[0] < 0.5 * sizes[1]
    torch.testing.assert_close(small(z), expected)
    halved = load_generator(out / "packed.safetensors").eval()(z)
    assert 0 < (halved - expected).abs().max() < 1e-2
    program = torch.export.load(out / "generator.pt2").module()
    torch.testing.assert_close(program(z[:, :, None, None]), expected)
    assert "main.3" in shown, "a row a layer"
    assert "before" in shown


def test_export_by_ending(weights, tmp_path):
    shown = call("export", weights, tmp_path / "small.safetensors")
    written = (tmp_path / "small.safetensors").stat().st_size
    assert f"{written:,} bytes" in shown
    assert written < 0.7 * weights.stat().st_size
    assert "batch×16×1×1" in call("export", weights, tmp_path / "g.pt2")
    for arguments, message in (
        ((weights, "g.tflite"), "g.tflite must end with .onnx, .pt2 or .safetensors"),
        ((weights, "g.pt2", "--half"), "--half is for .safetensors files, got g.pt2"),
        ((weights, "g.pt2", "--fixed"), "--fixed is for .onnx files, got g.pt2"),
        ((weights, tmp_path / "g.pt2", "--size", "32"), "takes latent vectors: no size to choose"),
    ):
        with pytest.raises(InputError, match=message):
            call("export", *arguments)
    with pytest.raises(CheckpointError, match="no weights file at"):
        call("export", tmp_path / "none.pth", "g.onnx")


def test_bench_of_a_dense_pth_prunes_it_and_cuts_no_figure(tmp_path):
    net, weights, table = (
        DCGANGenerator(nz=16, ngf=8, image_size=16),
        "mine.pth",
        tmp_path / "t.csv",
    )
    torch.save(net.state_dict(), tmp_path / weights)
    asked = ("--pattern", "element", "--pattern", "vector", "--sparsity", 0, "--sparsity", 0.75)
    shown = call(
        *("bench", "--generator", tmp_path / weights, "--peer", "torch", "--rounds", 2),
        *(*asked, "--out", table),
        columns=60,
    )
    with table.open() as file:
        ours = [row for row in csv.DictReader(file) if row["candidate"] == "gansparse"]
    kinds = [(row["pattern"], row["sparsity"]) for row in ours]
    assert kinds == [("element", "0"), ("element", "0.75"), ("vector", "0.75")]
    assert "…" not in shown
    for row in ours:
        assert f"{float(row['median_ms']):.2f}" in shown
    assert "break-even  vector" in shown


def test_bench_measures_a_pruned_generator_as_it_is(weights, tmp_path):
    table = tmp_path / "table.csv"
    shown = call(
        *("bench", "--generator", weights, "--peer", "torch", "--rounds", 2, "--out", table)
    )
    assert "DCGANGenerator  1×16×1×1  1 thread" in shown
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["candidate"] for row in rows] == ["torch", "torch channels_last", "gansparse"]
    assert {row["threads"] for row in rows} == {"1"}
    zeros = {float(row["sparsity"]) for row in rows}
    assert len(zeros) == 1
    assert 0.4 < zeros.pop() < 0.6
    with pytest.raises(InputError, match="no runtime 'TensorRT' known here"):
        call("bench", "--generator", weights, "--peer", "TensorRT")


@pytest.fixture
def own_network(tmp_path, monkeypatch):
    """A user's module in the folder where the command runs, and its weights, half of them zero."""
    code = """from torch import nn
def Generator():
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))
number = 3
"""
    (tmp_path / "networks_of_mine.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))
    Pruner(net, 0.5).prune_to(0.5)
    torch.save(net.state_dict(), "own.pth")
    return ["--network", "networks_of_mine:Generator", "--input", "1x3x16x16"]


def test_a_network_of_ones_own(own_network, tmp_path):
    peer = ["--peer", "ONNX Runtime", "--rounds", 2]
    assert "Sequential  1×3×16×16" in call("bench", "--generator", "own.pth", *own_network, *peer)
    assert "50.0% zeros" in call("deploy", "own.pth", *own_network, "--out", "deployed")
    call("export", "own.pth", "G.pt2", *own_network)
    x = torch.rand(2, 3, 16, 16)
    net = torch.export.load("G.pt2").module()
    assert net(x).shape == x.shape


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--network", "networks_of_mine:Nope"], "networks_of_mine' has no attribute 'Nope'"),
        (["--network", "nowhere_at_all:G"], "No module named 'nowhere_at_all'"),
        (["--network", "networks_of_mine:number"], "'int' object is not callable"),
        (
            ["--network", "networks_of_mine:Generator", "--input", "3xA"],
            "is a shape as 1x3x256x256",
        ),
        (["--network", "networks_of_mine:Generator"], "--network needs --input"),
        (["--input", "1x3x8x8"], "--input goes with --network"),
        (["--network", "networks_of_mine:nn.Conv2d"], "--network networks_of_mine:nn.Conv2d"),
    ],
)
def test_mistakes_in_a_network_of_ones_own(own_network, words, message):
    needs = [] if "--input" in words or message.startswith("--network needs") else own_network[2:]
    with pytest.raises(InputError, match=re.escape(message)):
        call("deploy", "own.pth", *words, *needs)


def test_weights_that_are_not_its_own(own_network):
    torch.save({"0.weight": torch.zeros(8, 3, 3, 3)}, "odd.pth")
    with pytest.raises(CheckpointError, match=r"odd.pth: not the weights of networks_of_mine:Gen"):
        call("deploy", "odd.pth", *own_network)
