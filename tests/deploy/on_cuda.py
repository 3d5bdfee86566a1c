# SPDX-License-Identifier: Apache-2.0
"""What tests of CUDA share, with a GPU and without: families, a clock, and what is near enough."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from types import SimpleNamespace

import torch
from small_generators import GENERATORS, generator, without_dropout
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gansparse.deploy import cuda_graph

FAMILIES = ["dcgan", "unet-instance", "cyclegan", "stargan", "srgan"]


class Clock:
    """Stands for `measure.interleaved`: 1 ms for what begins so, 2 ms for all else."""

    def __init__(self, kernel: str = "", whole: str = cuda_graph.GRAPH) -> None:
        self.kernel, self.whole = kernel, whole
        self.asked: list[set[str]] = []

    def __call__(self, runs, rounds=3, seconds=0.0, *, device=None, whole=False, cold=False):
        self.asked.append(set(runs))
        for run in runs.values():
            run()
        if "copy" in runs:  # from one layout to the other
            return {"copy": 0.01}
        if whole:
            return {name: 1.0 if name == self.whole else 2.0 for name in runs}
        return {name: 1.0 if self.kernel and name.startswith(self.kernel) else 2.0 for name in runs}


@torch.no_grad()
def assert_near(compiled, network, *inputs):
    """No further from float64 than twice the generator is, or than its dtype rounds.

    That is, in the root of the mean square: the worst pixel of a bfloat16 picture is a matter of
    chance (2.2 times the generator's where the roots are 1.2), and may be four times as far.
    """
    want = copy.deepcopy(network).cpu().double()(*[x.cpu().double() for x in inputs])
    got, plain = compiled(*inputs), network(*inputs)
    assert (got.dtype, got.device, got.shape) == (plain.dtype, plain.device, plain.shape)
    scale = max(1.0, float(want.abs().max()))
    errors = [(y.cpu().double() - want) / scale for y in (got, plain)]
    rounding = max(1e-4, torch.finfo(got.dtype).eps)
    roots = [float(error.square().mean().sqrt()) for error in errors]
    assert roots[0] <= max(rounding, 2 * roots[1])
    worst = [float(error.abs().max()) for error in errors]
    assert worst[0] <= max(rounding, 4 * worst[1])


@torch.no_grad()
def pruned(name, pattern, dtype):
    """A family's small network without every second of four, or every second block of 16 x 8."""
    network = without_dropout(generator(name))
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            weight = layer.weight if isinstance(layer, nn.Conv2d) else layer.weight.transpose(0, 1)
            out, channels, *_, wide = weight.shape
            c, taps = torch.arange(channels)[:, None, None], torch.arange(wide)
            kept = (c + taps) % 4 < 2
            if pattern == "block":
                rows = torch.arange(out)[:, None, None, None] // 16
                kept = (rows + c // 8 + taps) % 2 == 0
            weight *= kept
    return network.to(dtype)


def inputs(name, dtype, number=1):
    return [x.to(dtype) for x in GENERATORS[name][number]()]


def kernels_of(compiled):
    return {row.layer: row.kernel for row in compiled.explain().rows if row.sparsity is not None}


class Recorded(TorchDispatchMode):
    """Stands for torch.cuda.CUDAGraph: the ops of a run, done again on the same tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple] = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        made = op(*args, **(kwargs or {}))
        self.calls.append((op, args, kwargs or {}, made))
        return made

    def replay(self) -> None:
        for op, args, kwargs, made in self.calls:
            again = op(*args, **kwargs)
            for old, new in zip(tree_leaves(made), tree_leaves(again), strict=True):
                if isinstance(old, Tensor):
                    old.copy_(new)


def record_graphs(monkeypatch) -> None:
    """torch.cuda's streams and graphs, on the CPU."""
    stream = SimpleNamespace(wait_stream=lambda other: None, wait_event=lambda event: None)
    for name, value in {
        "CUDAGraph": Recorded,
        "graph": lambda graph, stream, capture_error_mode: graph,
        "Event": lambda: SimpleNamespace(record=lambda stream: None),
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": lambda stream: nullcontext(),
        "device": lambda device: nullcontext(),
        "is_current_stream_capturing": lambda: False,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
