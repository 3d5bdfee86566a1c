# SPDX-License-Identifier: Apache-2.0
"""Compiling for CUDA, on a GPU: the same numbers whatever runs, on any stream, in a CUDA graph."""

from __future__ import annotations

import argparse
import json
import threading

import pytest
import torch
from networks import conv, picture, seeded
from on_cuda import FAMILIES, Clock, assert_near, inputs, kernels_of, pruned
from small_generators import GENERATORS, generator
from torch import nn

from gansparse import deploy
from gansparse.deploy import cuda, cuda_graph, measure
from gansparse.deploy.steps import Norm
from gansparse.testing.compare import close

pytestmark = pytest.mark.cuda
real_interleaved = measure.interleaved


@pytest.fixture(autouse=True)
def exact(monkeypatch) -> None:
    """float32 is that: cuDNN may take TF32 for one layout or size and not for another."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def clock(monkeypatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(measure, "interleaved", fake)
    return fake


def on_gpu(name, dtype, number=1):
    return tuple(x.cuda() for x in inputs(name, dtype, number))


@pytest.mark.parametrize(
    ("dtype", "fast"),
    [
        (torch.float32, "torch channels_last"),
        (torch.float32, "sparse"),
        (torch.bfloat16, "torch channels_last"),
        (torch.bfloat16, "2:4 x32"),
        (torch.bfloat16, "2:4 x64"),
        (torch.bfloat16, "2:4 x128"),
        (torch.bfloat16, "block x16"),
        (torch.float16, "block x32"),
        (torch.bfloat16, "vector x16"),
    ],
)
@pytest.mark.parametrize("name", FAMILIES)
def test_families_on_every_kernel_in_a_graph(clock, name, dtype, fast):
    """Replayed with other inputs, and for a second shape."""
    clock.kernel = fast
    network = pruned(name, fast.partition(" ")[0], dtype).cuda()
    compiled = deploy.compile(network, on_gpu(name, dtype), shrink=False)
    assert compiled.explain().verdict == f"runs {cuda_graph.GRAPH}", str(compiled.explain())
    offered = fast != "2:4 x128" or torch.cuda.get_device_capability() == (9, 0)
    assert any(k.startswith(fast) for k in kernels_of(compiled).values()) == offered
    for number, sign in ((1, 1), (1, -1), (2, 1), (1, 1), (2, -1)):
        x, *others = on_gpu(name, dtype, number)
        assert_near(compiled, network, sign * x, *others)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_by_the_real_clock_nothing_is_slower(monkeypatch, cache_folder, dtype):
    monkeypatch.setattr(measure, "interleaved", real_interleaved)
    network, x = pruned("cyclegan", "2:4", dtype).cuda(), on_gpu("cyclegan", dtype)
    before = torch.backends.cudnn.benchmark
    compiled = deploy.compile(network, x, shrink=False)
    assert torch.backends.cudnn.benchmark is before
    explained = compiled.explain()
    assert 0 < explained.after <= explained.before
    assert all(ms > 0 for row in explained.rows for ms in row.times.values())
    known = json.loads((cache_folder / "kernels.json").read_text())
    assert all(torch.cuda.get_device_name() in key for key in known)
    assert_near(compiled, network, *x)
    assert torch.backends.cudnn.benchmark is before


def test_times_are_the_devices_and_whole_ones_have_the_launches():
    a = torch.randn(2048, 2048, device="cuda")
    runs = {"one": lambda: a @ a, "four": lambda: [a @ a for _ in range(4)]}
    alone = real_interleaved(runs, device=a.device)
    assert 2 < alone["four"] / alone["one"] < 8
    tiny = {"tiny": lambda: [a[:1, :1] + 1 for _ in range(20)]}
    whole = real_interleaved(tiny, device=a.device, whole=True)
    assert whole["tiny"] > real_interleaved(tiny, device=a.device)["tiny"]


def graphed(dtype=torch.float32):
    network = seeded(nn.Sequential(conv(3, 64), nn.ReLU(), conv(64, 3))).cuda().to(dtype)
    return network, cuda_graph.Graphed(network, (picture(2, 3, 64, 64).cuda().to(dtype),))


@torch.no_grad()
def test_streams_take_turns():
    network, run = graphed()
    streams = [torch.cuda.Stream() for _ in range(2)]
    given = [picture(2, 3, 64, 64).cuda() * (i + 1) for i in range(2)]
    want = [network(x) for x in given]
    torch.cuda.synchronize()
    got = [[], []]
    for _ in range(50):
        for i, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                got[i].append(run(given[i]))
    torch.cuda.synchronize()
    for i in range(2):
        assert all(torch.equal(y, got[i][0]) for y in got[i])
        assert float((got[i][0] - want[i]).abs().max()) <= 1e-2 * float(want[i].abs().max())


@torch.no_grad()
def test_threads_take_turns():
    _, run = graphed()
    given = [picture(2, 3, 64, 64).cuda() * (i + 1) for i in range(4)]
    want, wrong = [run(x) for x in given], []

    @torch.no_grad()
    def work(i):
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(50):
                if not torch.equal(run(given[i]), want[i]):
                    wrong.append(i)

    torch.cuda.synchronize()
    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@torch.no_grad()
def test_outputs_are_the_callers():
    _, run = graphed()
    x = picture(2, 3, 64, 64).cuda()
    first = run(x)
    kept = first.clone()
    second = run(-x)
    assert torch.equal(first, kept)
    assert not torch.equal(first, second)
    last = x.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        assert torch.equal(run(last), kept)


@torch.no_grad()
def test_within_another_capture_the_function_is_called():
    _, run = graphed()
    x = picture(2, 3, 64, 64).cuda()
    want, outer = run(x), torch.cuda.CUDAGraph()
    with torch.cuda.graph(outer):
        made = run(x)
    x.zero_()
    outer.replay()
    assert torch.equal(made, run(x))
    assert not torch.equal(made, want)


@torch.no_grad()
def test_what_reads_numbers_cant_be_captured_and_does_no_harm():
    x, before = picture().cuda(), torch.cuda.current_stream()
    with pytest.raises(RuntimeError):
        cuda_graph.Graphed(lambda x: x + x.sum().item(), (x,))
    assert torch.cuda.current_stream() == before
    assert torch.rand(9, device="cuda").std() > 0
    _, run = graphed()
    assert torch.isfinite(run(picture(2, 3, 64, 64).cuda())).all()


def test_live_dropout_draws_anew_in_a_graph(clock):
    network, (x,) = generator("unet").cuda(), GENERATORS["unet"][1]()
    compiled = deploy.compile(network, x.cuda())
    assert compiled.explain().verdict == f"runs {cuda_graph.GRAPH}"
    assert not torch.equal(compiled(x.cuda()), compiled(x.cuda()))


@pytest.mark.parametrize("dtype", cuda.DTYPES)
@torch.no_grad()
def test_norms_keep_channels_last(dtype):
    x = (picture(3, 16, 32, 32) * 2 + 1).cuda().to(dtype, memory_format=torch.channels_last)
    y = cuda.ChannelsLastNorm(Norm(None, None, 1e-5, fused=[]))(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    close(y, nn.functional.instance_norm(x.double()), terms=16)


def test_a_generator_that_moves_is_measured_again(clock):
    network = seeded(nn.Sequential(conv(), nn.ReLU()))
    compiled = deploy.compile(network.cuda(), picture().cuda()).cpu()
    assert_near(compiled, network.cpu(), picture())
    assert "in a CUDA graph" not in compiled.explain().verdict


def test_the_benchmark_lines_up_its_candidates(monkeypatch):
    from benchmarks import harness
    from benchmarks.end_to_end import generators_cuda

    monkeypatch.setattr(measure, "interleaved", real_interleaved)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    chosen = argparse.Namespace(size=None, peers="cudnn.*", explain=True)
    rows = harness.run_case(generators_cuda.case("dcgan", 1, "bfloat16", chosen), 4)
    assert [row["candidate"] for row in rows] == ["gansparse", "cudnn", "cudnn channels_last"]
    ours, torchs = (float(row["error"]) for row in rows[:2])
    assert ours <= 2 * torchs
