# SPDX-License-Identifier: Apache-2.0
"""Compiling for CUDA. Without a GPU the CPU stands for one, and references for its kernels."""

from __future__ import annotations

import argparse
import copy
import threading
from dataclasses import replace
from types import SimpleNamespace

import networks
import pytest
import torch
from networks import conv, picture, seeded
from on_cuda import Clock, assert_near, inputs, kernels_of, pruned, record_graphs
from torch import nn

from gansparse import _C, deploy
from gansparse.deploy import cuda, cuda_graph, measure
from gansparse.deploy.capture import capture
from gansparse.deploy.fuse import fuse
from gansparse.deploy.steps import ConvLayer
from gansparse.ops import sparse_conv2d_reference
from gansparse.testing.compare import close

HALF = (torch.float16, torch.bfloat16)
WAYS = (cuda_graph.AS_IT_WAS, cuda_graph.CHANNELS_LAST, cuda_graph.PLANNED, cuda_graph.GRAPH)


def tiles_in_float64(x, packed, bias, *, residual, activation, slope):
    """What the kernels compute: exact products, one rounding at the end."""
    assert x.dtype == packed.values.dtype
    assert bias is None or bias.dtype == torch.float32
    y = sparse_conv2d_reference(
        x.double(), packed, bias, activation=activation, slope=slope,
        residual=None if residual is None else residual.double(),
    )  # fmt: skip
    return y.to(x.dtype, memory_format=torch.channels_last)


@pytest.fixture
def clock(monkeypatch) -> Clock:
    """The CPU as a GPU."""
    fake = Clock()
    monkeypatch.setattr(measure, "interleaved", fake)
    monkeypatch.setattr(measure, "machine", lambda device: {"gpu": "none"})
    monkeypatch.setattr(cuda, "on_cuda", lambda device: device.type == "cpu")
    monkeypatch.setattr(cuda, "sparse_conv2d", tiles_in_float64)
    monkeypatch.setattr(cuda, "sparse_conv_transpose2d", tiles_in_float64)
    record_graphs(monkeypatch)
    return fake


# ---- A CPU in place of a GPU ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "fast", "dtype"),
    [
        ("dcgan", "2:4 x32", torch.bfloat16),
        ("dcgan", "block x16", torch.float16),
        ("unet-instance", "2:4 x64", torch.bfloat16),
        ("cyclegan", "2:4 x32", torch.float16),
        ("stargan", "2:4 x32", torch.bfloat16),
        ("stargan", "block x32", torch.bfloat16),
        ("srgan", "2:4 x64", torch.float16),
        ("srgan", "block x16", torch.bfloat16),
        ("srgan", "vector x16", torch.float16),
        ("stargan", "vector x16", torch.bfloat16),
        ("cyclegan", "vector x16", torch.bfloat16),
        ("srgan", "sparse", torch.float32),
    ],
)
def test_families_on_tiles_and_lists(clock, name, fast, dtype):
    clock.kernel = fast
    network = pruned(name, fast.partition(" ")[0], dtype)
    compiled = deploy.compile(network, tuple(inputs(name, dtype)), shrink=False)
    explained = compiled.explain()
    assert explained.verdict == "runs as planned, in a CUDA graph"
    assert any(kernel.startswith(fast) for kernel in kernels_of(compiled).values()), str(explained)
    assert_near(compiled, network, *inputs(name, dtype))
    assert_near(compiled, network, *inputs(name, dtype, 2))
    whole = [names for names in clock.asked if clock.whole in names]
    assert len(whole[0]) > 2
    assert whole[1:] == [{cuda_graph.AS_IT_WAS, clock.whole}]  # a new shape


def test_tiles_of_warpgroups_where_the_device_has_them(clock, monkeypatch):
    monkeypatch.setattr(cuda, "_has_warpgroups", lambda device: True)
    quads = (torch.arange(16) % 4 < 2).view(1, 16, 1, 1)
    assert names_of(layer(), quads) == [*DENSE, *TWO_OF_FOUR, "2:4 x128", *COLUMNS]
    clock.kernel = "2:4 x128"
    network = pruned("cyclegan", "2:4", torch.bfloat16)
    compiled = deploy.compile(network, tuple(inputs("cyclegan", torch.bfloat16)), shrink=False)
    assert "2:4 x128" in kernels_of(compiled).values()
    assert_near(compiled, network, *inputs("cyclegan", torch.bfloat16))


@pytest.mark.parametrize(("capability", "there"), [((8, 0), 0), ((9, 0), 1), ((10, 0), 0)])
def test_which_device_has_warpgroups(monkeypatch, capability, there):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert cuda._has_warpgroups(torch.device("cuda", 0)) == bool(there)
    assert not cuda._has_warpgroups(torch.device("cpu"))


@pytest.mark.parametrize(("kilobytes", "channels"), [(227, 64), (99, 32)])
def test_vector_tiles_have_the_lists_that_shared_memory_has_room_for(
    monkeypatch, kilobytes, channels
):
    found = layer(out=160, channels=64)
    sizes = SimpleNamespace(shared_memory_per_block_optin=kilobytes << 10)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: sizes)
    assert cuda._has_room(torch.device("cuda", 0)) == (channels == 64)
    monkeypatch.setattr(cuda, "_has_room", lambda device: channels == 64)
    assert cuda.Tiles(found, "vector", 16).packed.geometry.block == channels


def layer(dtype=torch.bfloat16, out=32, channels=16, **settings):
    weight = torch.randn(out, channels, 3, 3, generator=torch.Generator().manual_seed(0))
    given = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
    return ConvLayer(weight.to(dtype), None, **(given | settings))


DENSE = ["torch", "torch channels_last"]
TWO_OF_FOUR = ["2:4 x32", "2:4 x64"]
BLOCKS = ["block x16", "block x32"]
COLUMNS = ["vector x16"]  # whole input channels are missing


def names_of(found, kept=None):
    if kept is not None:
        found = replace(found, weight=found.weight * kept)
    return list(cuda.kernels(found, (1, found.weight.shape[1], 8, 8)))


def test_candidates():
    quads = (torch.arange(16) % 4 < 2).view(1, 16, 1, 1)
    blocks = (torch.arange(16) < 8).view(1, 16, 1, 1)
    for dtype in HALF:
        assert names_of(layer(dtype)) == DENSE
        assert names_of(layer(dtype), quads) == DENSE + TWO_OF_FOUR + COLUMNS
        assert names_of(layer(dtype), blocks) == DENSE + BLOCKS + COLUMNS
        assert names_of(layer(dtype), quads & blocks) == DENSE + TWO_OF_FOUR + BLOCKS + COLUMNS
        each = torch.rand(32, 4, 4, generator=torch.Generator().manual_seed(0)).argsort(2) < 2
        assert names_of(layer(dtype), each.view(32, 16, 1, 1)) == DENSE + TWO_OF_FOUR
        columns = torch.rand(1, 16, 3, 3, generator=torch.Generator().manual_seed(0)) < 0.5
        assert names_of(layer(dtype), columns) == DENSE + COLUMNS
        transposed = replace(layer(dtype), transposed=True, weight=layer(dtype).weight * quads)
        assert names_of(transposed) == DENSE  # 2:4 goes along its first dimension
        for refused in ({"stride": (2, 1)}, {"dilation": (2, 2)}, {"channels": 12}):
            assert names_of(layer(dtype, **refused), quads[:, : refused.get("channels")]) == DENSE
    random = torch.rand(32, 16, 3, 3) > 0.9
    assert names_of(layer(torch.float32), random) == [*DENSE, "sparse"]


def test_rows_of_a_block_decide_which_tiles_may_win():
    kept = (torch.arange(32) // 16 + torch.arange(16)[:, None] // 8).T.view(32, 16, 1, 1) % 2
    found = replace(layer(), weight=layer().weight * kept)
    assert cuda.kept_blocks(found, 16) == 0.5
    assert cuda.kept_blocks(found, 32) == 1.0
    assert names_of(found) == [*DENSE, "block x16", "vector x16"]
    assert cuda.kept_blocks(found, 16, 1) == 0.5
    assert cuda.kept_blocks(layer(out=20, channels=12), 16) == 1.0


def test_each_pattern_of_zeros_is_measured(clock):
    """The same shape and share of zeros: times of one say nothing of the other."""
    channels = torch.arange(32).view(1, 32, 1, 1)
    quads, half, most = channels % 4 < 2, channels < 16, (channels < 24) & (channels % 3 < 2)
    for kept in (quads, torch.rand(32, 32, 3, 3) > 0.5, half, most):  # blocks: 1, 1, 0.5, 0.75
        network = nn.Sequential(nn.Conv2d(32, 32, 3)).bfloat16()
        network[0].weight.data *= kept
        before = len(clock.asked)
        deploy.compile(network, picture(1, 32, 8, 8).bfloat16(), shrink=False)
        assert any("torch" in names for names in clock.asked[before:])


@pytest.mark.parametrize("whole", WAYS)
def test_the_fastest_whole_runs(clock, whole):
    clock.whole = whole
    network = seeded(nn.Sequential(conv(), nn.InstanceNorm2d(3), nn.ReLU())).bfloat16()
    x = picture().bfloat16()
    compiled = deploy.compile(network, x)
    explained = compiled.explain()
    assert explained.verdict.startswith(f"runs {whole}")
    assert bool(explained.rows) == (whole != WAYS[1])
    assert (explained.before, explained.after) == (2.0 if whole != WAYS[0] else 1.0, 1.0)
    if whole != cuda_graph.AS_IT_WAS:
        assert f"{whole}: 1.000 ms" in str(explained)
    for shape in ((2, 3, 8, 10), (1, 3, 12, 6), (2, 3, 8, 10)):
        assert_near(compiled, network, picture(*shape).bfloat16())
    if whole == cuda_graph.AS_IT_WAS:
        assert torch.equal(compiled(x), network(x))
    assert sum(set(WAYS) == names for names in clock.asked) == 1  # new shapes keep the way


def test_a_graph_can_be_had_in_any_case_or_never(clock):
    network, x = seeded(nn.Sequential(conv(), nn.ReLU())).half(), picture().half()
    clock.whole = cuda_graph.PLANNED
    assert deploy.compile(network, x).explain().verdict == f"runs {cuda_graph.PLANNED}"
    always = deploy.compile(network, x, cuda_graph=True)
    assert cuda_graph.PLANNED not in clock.asked[-1]
    assert always.explain().before == 2.0
    clock.whole = cuda_graph.GRAPH
    never = deploy.compile(network, x, cuda_graph=False)
    assert cuda_graph.GRAPH not in clock.asked[-1]
    assert_near(never, network, x)


def test_where_the_capture_fails_the_plan_runs(clock, monkeypatch):
    def refuse(run, inputs):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    network, x = seeded(nn.Sequential(conv(), nn.ReLU())).half(), picture().half()
    compiled = deploy.compile(network, x)
    monkeypatch.setattr(cuda_graph, "Graphed", refuse)
    clock.whole = cuda_graph.PLANNED
    failed = deploy.compile(network, x)
    assert failed.explain().verdict == f"runs {cuda_graph.PLANNED}"
    reason = "in a CUDA graph: operation not permitted when stream is capturing"
    assert reason in failed.explain().notes[0]
    for shape in ((2, 3, 8, 10), (1, 3, 12, 6)):  # the second: only when a new shape comes
        assert_near(compiled, network, picture(*shape).half())


def test_what_may_read_numbers_is_not_captured(clock):
    clock.whole = cuda_graph.PLANNED
    network = seeded(networks.Around(networks.Branch())).bfloat16()
    compiled = deploy.compile(network, picture().bfloat16())
    assert "no CUDA graph: inner runs as it was" in str(compiled.explain())
    assert all(cuda_graph.GRAPH not in names for names in clock.asked)
    for sign in (1, -1):
        assert_near(compiled, network, sign * picture().bfloat16())


def test_a_graph_on_the_cpu_is_told_to_be_none(timer):
    compiled = deploy.compile(seeded(nn.Sequential(conv())), picture(), cuda_graph=True)
    assert "no CUDA graph: the generator is not on CUDA" in str(compiled.explain())
    assert compiled.explain().verdict == "runs as planned"


def test_a_kernel_that_deviates_is_refused(clock, monkeypatch):
    def wrong(x, *args, **kwargs):
        return tiles_in_float64(x, *args, **kwargs) * 1.05

    monkeypatch.setattr(cuda, "sparse_conv2d", wrong)
    clock.kernel, dtype = "2:4", torch.bfloat16
    network = pruned("stargan", "2:4", dtype)
    compiled = deploy.compile(network, tuple(inputs("stargan", dtype)), shrink=False)
    refused = [row for row in compiled.explain().rows if "2:4 x32: differs from" in row.why]
    assert len(refused) > 3
    assert all(row.kernel in DENSE for row in refused)
    assert_near(compiled, network, *inputs("stargan", dtype))


def test_a_kernel_that_fails_is_no_candidate(clock, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no kernel image is available for execution on the device")

    monkeypatch.setattr(cuda, "sparse_conv2d", fail)
    clock.kernel, dtype = "2:4", torch.float16
    network = pruned("srgan", "2:4", dtype)
    compiled = deploy.compile(network, tuple(inputs("srgan", dtype)), shrink=False)
    assert set(kernels_of(compiled).values()) <= set(DENSE)
    assert_near(compiled, network, *inputs("srgan", dtype))


def test_a_kernel_may_refuse_a_new_shape(clock, monkeypatch):
    """Tiles of many tiny pictures may not fit into shared memory."""

    def small(x, *args, **kwargs):
        if x.shape[2] < 8:
            raise ValueError("sparse_conv2d: no arrangement fits")
        return tiles_in_float64(x, *args, **kwargs)

    monkeypatch.setattr(cuda, "sparse_conv2d", small)
    clock.kernel, network = "2:4", nn.Sequential(nn.Conv2d(8, 8, 3, padding=1)).bfloat16()
    network[0].weight.data[:, 2:6] = 0
    compiled = deploy.compile(network, picture(1, 8, 9, 9).bfloat16(), shrink=False)
    assert kernels_of(compiled) == {"0": "2:4 x32"}
    for shape in ((1, 8, 9, 9), (4, 8, 2, 2), (1, 8, 12, 9)):
        assert_near(compiled, network, picture(*shape).bfloat16())


# ---- Parts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", cuda.DTYPES)
@pytest.mark.parametrize("activation", ["none", "tanh", "prelu"])
@torch.no_grad()
def test_rounding_is_tolerated_and_an_error_is_not(dtype, activation):
    """Every rounding at its worst is inside; a lost weight of average size is not."""
    source = torch.Generator().manual_seed(0)
    x, residual = (torch.randn(2, 16, 12, 12, generator=source).to(dtype) for _ in range(2))
    found = layer(dtype, out=16)
    slope = torch.full((16,), 0.3, dtype=dtype) if activation == "prelu" else 0.0
    found.weight, found.activation, found.slope = found.weight / 12, activation, slope
    rounded = cuda.Conv(found)(x, residual)
    exact, most = cuda.truth(found, (x, residual), rounded)
    assert exact.dtype == torch.float64
    assert 0 < float((rounded - exact).abs().max()) <= most
    sums = float(cuda.Conv(replace(found, activation="none"))(x, residual).abs().max())
    assert most <= cuda.tolerance(dtype, 144) * (sums + float(residual.abs().max())) * 1.01
    found.weight[3, 3, 1, 1] = 0.5  # so that it is large beside bfloat16's rounding, too
    want, _ = cuda.truth(found, (x, residual), rounded)
    found.weight[3, 3, 1, 1] = 0.0
    lost = cuda.Conv(found)(x, residual)
    assert float((lost - want).abs().max()) > most


def test_tolerance_follows_dtype_terms_and_settings(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    strict = cuda.tolerance(torch.float32, 1)
    assert strict == 3 * torch.finfo(torch.float32).eps
    assert strict < cuda.tolerance(torch.float32, 10_000) < 2e-5
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert cuda.tolerance(torch.float32, 1) == strict + 2**-10
    assert cuda.tolerance(torch.float16, 1) == pytest.approx(2**-9, rel=1e-3)
    assert cuda.tolerance(torch.bfloat16, 1) == pytest.approx(2**-6, rel=1e-3)


def test_a_norm_goes_with_its_neighbours(clock):
    clock.kernel, dtype = "torch channels_last", torch.bfloat16
    network = pruned("cyclegan", "2:4", dtype)
    compiled = deploy.compile(network, tuple(inputs("cyclegan", dtype)), shrink=False)
    norms = [row for row in compiled.explain().rows if "InstanceNorm" in row.why]
    assert {row.kernel for row in norms} == {"torch channels_last"}
    assert {frozenset(row.times) for row in norms} == {frozenset(DENSE)}
    assert set(kernels_of(compiled).values()) == {"torch channels_last"}
    assert_near(compiled, network, *inputs("cyclegan", dtype, 2))


@pytest.mark.parametrize("before", [False, True])
def test_the_users_setting_of_cudnn_comes_back(before, monkeypatch):
    cudnn = torch.backends.cudnn
    monkeypatch.setattr(cudnn, "benchmark", before)
    inside, leave = threading.Event(), threading.Event()

    def other():
        with cuda.searching():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with cuda.searching():
        thread.start()
        inside.wait(10)
        with cuda.no_search():
            assert not cudnn.benchmark
        assert cudnn.benchmark
    assert cudnn.benchmark  # the other's
    leave.set()
    thread.join()
    assert cudnn.benchmark is before
    with pytest.raises(ValueError, match="x"), cuda.searching():
        raise ValueError("x")
    assert cudnn.benchmark is before


def test_compiling_on_the_cpu_leaves_cudnns_setting_alone(monkeypatch):
    seen = []

    class Watching(nn.Module):
        def forward(self, x):
            seen.append(torch.backends.cudnn.benchmark)
            return x + 1

    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    deploy.compile(Watching(), picture())
    assert seen
    assert not any(seen)


def test_times_belong_to_a_gpu_its_driver_and_settings(monkeypatch, cache_folder):
    gpu = {"name": "NVIDIA H200", "major": 9, "minor": 0, "multi_processor_count": 132}
    found = type("Properties", (), dict(gpu))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
    monkeypatch.setattr(_C, "cuda_devices", lambda: {"driver": 13000})
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91200)
    monkeypatch.setattr(measure, "interleaved", lambda runs, **_: dict.fromkeys(runs, 1.0))
    device = torch.device("cuda", 0)

    def measured():
        cache, asked = measure.Cache(device), []
        cache.times({"what": "layer"}, {"torch": lambda: asked.append(1) or (lambda: None)})
        cache.save()
        return bool(asked)

    assert measured()
    assert not measured()
    text = (cache_folder / "kernels.json").read_text()
    assert all(word in text for word in ("NVIDIA H200", "9, 0", "13000", "13.0", "91200"))
    for where, name, value in (
        (found, "name", "NVIDIA H100"),
        (found, "minor", 1),
        (_C, "cuda_devices", lambda: {"driver": 13010}),
        (torch.version, "cuda", "13.1"),
        (torch.backends.cudnn, "version", lambda: 91300),
        (torch.backends.cudnn, "allow_tf32", not torch.backends.cudnn.allow_tf32),
        (torch.backends.cudnn, "deterministic", True),
    ):
        monkeypatch.setattr(where, name, value)
        assert measured(), name
    assert measure.Cache().machine.keys() >= {"processor", "isa", "threads"}


def test_what_no_kernel_takes_runs_as_it_was(clock):
    network = seeded(nn.Sequential(conv(), nn.BatchNorm2d(3)))
    cases = (
        (
            copy.deepcopy(network).double(),
            picture().double(),
            "float64; the kernels take float32, ",
        ),
        (copy.deepcopy(network).half(), picture(), "input 0 is float32, and others are float16"),
    )
    for each, x, reason in cases:
        each.forward = lambda x, each=each: x + 1  # it need not run
        assert reason in deploy.compile(each, x).explain().verdict
    elsewhere = deploy.compile(network.to("meta"), picture().to("meta"))
    assert "is on meta; the kernels run on the CPU and on CUDA" in elsewhere.explain().verdict


def test_another_dtype_is_measured_again(clock):
    clock.kernel, clock.whole = "torch channels_last", cuda_graph.PLANNED
    network = seeded(nn.Sequential(conv(), nn.ReLU(), conv())).half()
    compiled = deploy.compile(network, picture().half())
    count = len(clock.asked)
    compiled.bfloat16()
    assert_near(compiled, copy.deepcopy(network).bfloat16(), picture().bfloat16())
    assert compiled.explain().verdict == f"runs {cuda_graph.PLANNED}"
    assert len(clock.asked) > count


LAYERS = {
    "conv": nn.Conv2d(8, 16, 3, 2, 1),
    "reflect": nn.Conv2d(8, 16, 3, padding=1, padding_mode="reflect"),
    "no bias": nn.Conv2d(8, 16, 5, padding=2, bias=False),
    "transposed": nn.ConvTranspose2d(8, 16, 4, 2, 1),
    "output padding": nn.ConvTranspose2d(8, 16, 3, 2, 1, output_padding=1),
}
TAILS = {
    "prelu": lambda: [nn.PReLU(16)],
    "shuffle": lambda: [nn.PixelShuffle(2), nn.LeakyReLU(0.3)],
    "shuffle each": lambda: [nn.PixelShuffle(2), nn.PReLU(4)],
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("tail", TAILS)
@torch.no_grad()
def test_every_kernel_computes_the_layer(clock, kind, tail):
    network = seeded(nn.Sequential(copy.deepcopy(LAYERS[kind]), *TAILS[tail]()), zeros=0.0)
    weight = network[0].weight
    filters = weight.transpose(0, 1) if isinstance(network[0], nn.ConvTranspose2d) else weight
    filters[:, [1, 2, 4, 7]] = 0  # two of each four
    filters[:, :, 0] = 0  # and some blocks
    filters[4:8] = 0  # dense kernels leave these out
    x = picture(2, 8, 8, 10)
    for dtype in (torch.float32, torch.bfloat16):
        half, read = copy.deepcopy(network).to(dtype), x.to(dtype)
        captured, _ = capture(half, (read,))
        fuse(captured)
        (step,) = (part for part in captured.children() if isinstance(part, cuda.Conv))
        found = cuda.kernels(step.layer, tuple(x.shape))
        lists = {name for name in found if name.startswith("sparse")}
        assert lists if dtype == torch.float32 else {*TWO_OF_FOUR, *BLOCKS} <= found.keys()
        exact, most = cuda.truth(step.layer, (read, None), step(read, None))
        want = copy.deepcopy(half).double()(read.double())
        for name, way in found.items():
            for given in (read, read.contiguous(memory_format=torch.channels_last)):
                made = way.make()(given, None)
                assert made.dtype == dtype
                assert float((made - exact).abs().max()) <= most, name
        close(exact, want, terms=200)


def test_the_benchmark_lines_up_its_candidates(monkeypatch, capsys, timer):
    """On the CPU: bfloat16 runs there as it was."""
    from benchmarks import harness
    from benchmarks.end_to_end import generators_cuda

    monkeypatch.setattr(generators_cuda, "DEVICE", "cpu")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    chosen = argparse.Namespace(size=None, peers="cudnn.*", explain=True)
    rows = harness.run_case(generators_cuda.case("dcgan", 1, "bfloat16", chosen), 4)
    assert [row["candidate"] for row in rows] == ["gansparse", "cudnn", "cudnn channels_last"]
    assert {row["case"] for row in rows} == {"dcgan b1 bfloat16 2:4"}
    assert 0 < float(rows[0]["error"]) < 0.1
    assert "weight is bfloat16; the kernels take float32" in capsys.readouterr().out
