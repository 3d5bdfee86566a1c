# SPDX-License-Identifier: Apache-2.0
"""The line-up of a generator with other runtimes, and what is made of it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from gansparse import runtimes
from gansparse.errors import InputError
from gansparse.models import SRGANGenerator, example_inputs
from gansparse.runtimes import (
    OURS,
    Row,
    break_even,
    line_up,
    pruned,
    slower_than_torch,
    work,
)
from gansparse.testing.timing import Measurement

ROOT = Path(__file__).parents[1]
ROW = Row(
    candidate=OURS, pattern="element", sparsity=0.5, median_ms=2.0, spread=0.1, times_best=1.0,
    times_best_iqr=0.1, best="torch", times_torch=1.0, times_compile=0.0, gflop=1.0, mbytes=20.0,
    share_of_peak=0.5, peak_gflops=200.0, copy_gbs=20.0, error=1e-7, rounds=3,
)  # fmt: skip


def small():
    """Two layers, the second without any filter to lose."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))
    return net, (torch.randn(1, 3, 12, 12),)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GANSPARSE_CACHE", str(tmp_path))


def test_everyone_computes_the_same_and_who_cannot_is_named(monkeypatch):
    def broken(job):
        raise RuntimeError("no such op\nand more")

    monkeypatch.setitem(runtimes._PEERS, "torch.compile", broken)
    monkeypatch.setitem(sys.modules, "openvino", None)
    net, inputs = small()
    said = []
    rows = line_up(
        net,
        inputs,
        variants=[("element", 0.0), ("element", 0.5), ("filter", 0.5)],
        peers=["torch.compile", "OpenVINO"],
        rounds=3,
        say=said.append,
    )
    assert said == [
        "torch.compile is left out: RuntimeError no such op",
        "OpenVINO is left out: openvino is not installed (pip install 'gansparse[bench]')",
    ]
    assert [(row.candidate, row.pattern, row.sparsity) for row in rows] == [
        ("torch", "", 0),
        ("torch channels_last", "", 0),
        (OURS, "element", 0),
        (OURS, "element", 0.5),
        (OURS, "filter", 0.5),
    ]
    assert all(row.error < 1e-5 for row in rows)
    assert all(row.median_ms > 0 and row.share_of_peak > 0 for row in rows)
    assert {row.best for row in rows} <= {"torch", "torch channels_last"}
    best = next(row for row in rows if row.candidate == row.best)
    assert best.times_best == best.times_torch == 1
    weights = 2 * 3 * 8 * 9 * 144  # multiply-adds
    assert rows[0].gflop == pytest.approx(2e-9 * weights)
    assert rows[3].gflop == rows[4].gflop == pytest.approx(1e-9 * weights)


def test_onnx_runtime_agrees_and_int8_is_no_peer():
    pytest.importorskip("onnxruntime", reason="lacks onnxruntime")
    net, inputs = small()
    said, peers = [], ["ONNX Runtime", "ONNX Runtime int8"]
    rows = line_up(net, inputs, variants=(), peers=peers, rounds=2, say=said.append)
    assert not said
    assert [row.candidate for row in rows[2:]] == peers
    assert rows[2].error < 1e-5 < rows[3].error < 0.1
    assert rows[2].share_of_peak > 0 == rows[3].share_of_peak
    assert all("int8" not in row.best for row in rows)


def test_work_is_of_weights_that_are_not_zero():
    net = nn.Sequential(nn.ConvTranspose2d(2, 4, 4, 2, 1, bias=False), nn.Conv2d(4, 1, 1))
    net[0].weight.data[0] = 0
    flops, moved = work(net, (torch.zeros(3, 2, 5, 5),))
    assert flops == 2 * 3 * (64 * 25 + 4 * 100)
    assert moved == 4 * ((64 + 150 + 1200) + (4 + 1200 + 300))


def test_pruned_leaves_the_network_as_it_was():
    net = SRGANGenerator(2, 8, 1)
    inputs = example_inputs(net, 8)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    assert (pruned(net, inputs, "vector", 0.5).block2.conv1.weight == 0).sum() == 8 * 8 * 9 / 2
    empty = pruned(net, inputs, "filter", 0.5).block2.conv1.weight.flatten(1).eq(0).all(1)
    assert int(empty.sum()) == 4
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    with pytest.raises(InputError, match="pattern must be one of element, vector, filter, got '2:"):
        pruned(net, inputs, "2:4", 0.5)


def test_ratios_are_those_of_the_same_round():
    measured = Measurement({"a": [1.0, 10.0, 2.0], "b": [2.0, 20.0, 4.0]})
    assert measured.ratio("b", to="a") == (2, 0)
    assert measured.median("a") == 2


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ({0: 0.5, 0.5: 0.9, 0.75: 1.1}, "62%"),
        ({0: 1.2, 0.5: 1.5}, "0%"),
        ({0.25: 1.2, 0.5: 1.5}, "below 25%"),
        ({0: 0.5, 0.9: 0.8}, "not up to 90%"),
        ({0: 0.5, 0.5: 1.0, 0.75: 0.9}, "50%"),
        ({}, "not measured"),
    ],
)
def test_break_even(times, expected):
    rows = [replace(ROW, sparsity=s, times_best=t) for s, t in times.items()]
    rows += [replace(ROW, candidate="torch", pattern="", times_best=9.0)]
    rows += [replace(ROW, pattern="vector", sparsity=0.1, times_best=9.0)]
    assert break_even(rows, "element") == expected


def test_where_torch_is_faster_is_told():
    rows = [
        replace(ROW, times_torch=0.5, candidate="torch"),
        replace(ROW, times_torch=1.2, times_compile=0.9),
        replace(ROW, times_torch=0.8, pattern="filter"),
        replace(ROW, times_torch=1.0),
    ]
    told = ["element 50%: 0.90x torch.compile", "filter 50%: 0.80x torch"]
    assert slower_than_torch(rows) == told


def test_line_up_refuses():
    net, inputs = small()
    for arguments, message in (
        (dict(peers=["TensorRT"]), "no runtime 'TensorRT' known here; there are: torch, "),
        (dict(rounds=1), "rounds must be at least 2, got 1"),
        (dict(peers=[], variants=[("element", 1.5)]), "sparsity must be"),
    ):
        with pytest.raises(InputError, match=message):
            line_up(net, inputs, **arguments)


def test_the_roofline_is_drawn_from_the_csv(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import harness
    from benchmarks.end_to_end import generators

    case = {"family": "srgan", "batch": "1", "threads": "1"}
    path, picture = tmp_path / "g.csv", tmp_path / "images" / "roofline.png"
    generators.save([{**case, **ROW.texts()}], path)
    generators.save([{**case, **replace(ROW, median_ms=1.0).texts()}], path)
    generators.save([{**case, **replace(ROW, sparsity=0.9).texts()}], path)
    rows = harness.read_results(path)
    assert [(row["sparsity"], row["median_ms"]) for row in rows] == [("0.5", "1"), ("0.9", "2")]
    generators.roofline(rows, picture)
    from PIL import Image

    with Image.open(picture) as image:
        assert image.size == (960, 600)
        assert len(image.convert("RGB").getcolors(1 << 20)) > 20
    with pytest.raises(InputError, match="no row to draw"):
        generators.roofline([], picture)


def test_single_layers_are_those_of_the_samples(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.end_to_end import generators

    assert {layer.transposed for layer in generators.LAYERS.values()} == {False, True}
    for layer in generators.LAYERS.values():
        network, (x,) = generators.single(layer)
        with torch.no_grad():
            expected = layer.convolve(x, network[0].weight, network[0].bias)
            assert torch.equal(network(x), expected), layer.name
