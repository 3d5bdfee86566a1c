# SPDX-License-Identifier: Apache-2.0
"""Measured times, the file they are kept in, and the layouts that follow from them."""

from __future__ import annotations

import itertools
import json
import time

import pytest
import torch
from networks import conv, picture, seeded
from torch import fx, nn
from torch.overrides import TorchFunctionMode

from gansparse import _C, deploy
from gansparse.deploy import layout, measure
from gansparse.info import cpu_name

real_interleaved = measure.interleaved


def network():
    return seeded(nn.Sequential(conv(), nn.ReLU(), conv(3, 5)))


def test_what_was_measured_is_not_measured_again(timer, cache_folder):
    deploy.compile(network(), picture())
    assert timer.layers == 2
    assert len(json.loads((cache_folder / "kernels.json").read_text())) >= 2
    deploy.compile(network(), picture())
    assert timer.layers == 2


def test_times_of_the_file_decide(timer, cache_folder):
    deploy.compile(network(), picture())
    file = cache_folder / "kernels.json"
    known = json.loads(file.read_text())
    for times in known.values():
        times.update((name, 0.5) for name in times if name == "torch")
    file.write_text(json.dumps(known))
    compiled = deploy.compile(network(), picture())
    assert {row.kernel for row in compiled.explain().rows} == {"torch"}


def test_other_shapes_zeros_and_threads_are_measured(timer):
    deploy.compile(network(), picture())
    deploy.compile(network(), picture(1, 3, 8, 10))
    assert timer.layers == 4
    deploy.compile(seeded(nn.Sequential(conv(), nn.ReLU(), conv(3, 5)), zeros=0.2), picture())
    assert timer.layers == 6
    torch.set_num_threads(2)
    deploy.compile(network(), picture())
    assert timer.layers == 8
    before = _C.simd_level()
    try:
        _C.set_simd_level("plain")
        deploy.compile(network(), picture())
    finally:
        _C.set_simd_level(before)
    assert timer.layers == (8 if before == "plain" else 10)


def test_times_are_kept_by_machine_and_layer(timer, cache_folder):
    net = network()
    deploy.compile(net, picture())
    keys = [json.loads(key) for key in json.loads((cache_folder / "kernels.json").read_text())]
    first = next(key for key in keys if key.get("weight") == [3, 3, 3, 3])
    zeros = round(float((net[0].weight == 0).double().mean()), 2)
    expected = {"input": [2, 3, 8, 10], "threads": 1, "processor": cpu_name(), "zeros": zeros}
    assert expected.items() <= first.items()
    assert _C.simd_level() in first["isa"]


class Reads(TorchFunctionMode):
    """Writes down the bytes of every tensor that is summed up."""

    def __init__(self, log):
        super().__init__()
        self.log = log

    def __torch_function__(self, function, _, args=(), kwargs=None):
        if function is torch.Tensor.sum:
            self.log.append(args[0].nbytes)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("cold", "bytes_read"), [(True, 64 << 20), (False, 0)])
def test_before_each_cold_run_other_memory_is_read(cold, bytes_read):
    log = []
    with Reads(log):
        real_interleaved({"a": lambda: log.append("a")}, rounds=4, seconds=0.0, cold=cold)
    assert log == ["a", *[bytes_read, "a"] * 4]


def test_a_cold_run_takes_longer():
    """256 KB from the second cache, and from wherever they are when that has read 64 MB."""
    x = torch.ones(1 << 16)
    warm, cold = (real_interleaved({"sum": x.sum}, rounds=20, cold=c)["sum"] for c in (False, True))
    assert cold > 1.2 * warm


def test_layers_of_a_megabyte_are_measured_cold(timer, cache_folder):
    large, small = conv(512, 512, 1), conv(512, 511, 1)
    deploy.compile(seeded(nn.Sequential(large, nn.ReLU(), small)), picture(1, 512, 4, 4))
    layers = [c for names, c in zip(timer.asked, timer.cold, strict=True) if "onednn" in names]
    assert layers == [True, False]
    keys = [json.loads(key) for key in json.loads((cache_folder / "kernels.json").read_text())]
    assert {k["weight"][0]: k["cold"] for k in keys if "weight" in k} == {512: True, 511: False}


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"a": 1}', '{"a": {"torch": "fast"}}', "\x00\xff", ""]
)
def test_a_damaged_cache_is_measured_again_with_a_warning(timer, cache_folder, text):
    (cache_folder / "kernels.json").write_text(text)
    with pytest.warns(UserWarning, match="kernels are measured again"):
        deploy.compile(network(), picture())
    assert timer.layers == 2
    deploy.compile(network(), picture())
    assert timer.layers == 2


def test_a_cache_that_cant_be_written_is_a_warning(cache_folder, monkeypatch):
    (cache_folder / "file").write_text("")
    monkeypatch.setenv("GANSPARSE_CACHE", str(cache_folder / "file"))
    with pytest.warns(UserWarning, match="measured times are not kept"):
        compiled = deploy.compile(network(), picture())
    assert compiled.explain().verdict == "runs as planned"


def test_where_the_cache_is(monkeypatch, tmp_path):
    assert measure.cache_file() == tmp_path / "kernels.json"
    monkeypatch.delenv("GANSPARSE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert measure.cache_file() == tmp_path / "xdg" / "gansparse" / "kernels.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert measure.cache_file() == tmp_path / ".cache" / "gansparse" / "kernels.json"


def test_processes_add_to_one_file(cache_folder):
    first, second = measure.Cache(), measure.Cache()
    for cache, name in ((first, "a"), (second, "b")):
        cache.times({"what": name}, {"torch": lambda: lambda: None})
        cache.save()
    assert len(measure.Cache().known) == 2


def test_interleaved_runs_in_turns_and_drops_the_hopeless():
    ran: list[str] = []

    def run(name: str, seconds: float) -> None:
        ran.append(name)
        end = time.thread_time() + seconds
        while time.thread_time() < end:
            pass

    times = real_interleaved({n: lambda n=n, s=s: run(n, s) for n, s in (("a", 2e-3), ("b", 2e-2))})
    assert ran[:4] == ["a", "b", "a", "b"]
    assert ran.count("b") == 1 + 3
    assert 2 <= times["a"] < times["b"]
    ran.clear()
    real_interleaved(
        {n: lambda n=n, s=s: run(n, s) for n, s in (("a", 2e-3), ("b", 2e-2))}, seconds=0.03
    )
    assert ran.count("b") == 1 + 2


def test_one_disturbed_run_does_not_rule_a_candidate_out():
    ran: list[float] = []

    def disturbed() -> None:  # by whoever has the core in the first timed run
        ran.append(0.02 if len(ran) == 1 else 0.001)
        end = time.thread_time() + ran[-1]
        while time.thread_time() < end:
            pass

    def slower() -> None:
        end = time.thread_time() + 0.003
        while time.thread_time() < end:
            pass

    times = real_interleaved({"slower": slower, "disturbed": disturbed})
    assert times["disturbed"] < times["slower"]
    assert len(ran) > 4  # and it took its turns


def chain(steps: int) -> fx.Graph:
    graph = fx.Graph()
    node = graph.placeholder("x")
    nodes = [node]
    for i in range(steps):
        read = (node, nodes[i - 2]) if i % 3 == 2 else (node,)
        node = graph.call_function(torch.add, read)
        nodes.append(node)
    graph.output(node)
    for node in nodes:
        node.meta["value"] = torch.zeros(1, 2, 3, 4)
    return graph


@pytest.mark.parametrize("seed", range(5))
def test_layouts_are_the_cheapest_of_all(seed):
    graph = chain(7)
    source = torch.Generator().manual_seed(seed)
    inner = [n for n in graph.nodes if n.op == "call_function"]
    costs = {}
    for node in inner:
        times = torch.rand(2, generator=source).tolist()
        costs[node] = dict(zip(("NCHW", "channels_last"), times, strict=True))
    costs[inner[3]].pop("channels_last")
    price = {"NCHW": 0.3, "channels_last": 0.2}

    def total(layouts):
        ms = sum(costs[n].get(layouts[n], float("inf")) for n in inner)
        for node in graph.nodes:
            for read in node.all_input_nodes:
                wanted = layouts.get(node, "NCHW")
                ms += price[wanted] * (layouts.get(read, "NCHW") != wanted)
        return ms

    best = min(
        total(dict(zip(inner, chosen, strict=True)))
        for chosen in itertools.product(("NCHW", "channels_last"), repeat=len(inner))
    )
    found = layout.choose_layouts(graph, costs, lambda value, wanted: price[wanted])
    assert total(found) == pytest.approx(best)
    assert found[next(iter(graph.nodes))] == "NCHW"
