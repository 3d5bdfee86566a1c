# SPDX-License-Identifier: Apache-2.0
"""From pictures to 2048 features of Inception, against the programs that the modes come from."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import OURS, Candidate, Case
from benchmarks.peers import fidelity_network, pytorch_fid_network, random_inception
from gansparse.metrics.inception import InceptionV3

BATCHES = (1, 16)
Network = Callable[[Tensor], Tensor]


def cases(threads: list[int], device: str) -> Iterator[Case]:
    """A single picture and a batch, against pytorch-fid and against torch-fidelity."""
    for mode, make in {"pytorch-fid": pytorch_fid, "tf1": torch_fidelity}.items():
        for batch in BATCHES:
            for count in threads if device == "cpu" else [1]:
                yield Case(
                    "inception",
                    f"{mode}, batch {batch}",
                    partial(candidates, mode, make, batch, device),
                    threads=count,
                    flops=batch * flops_a_picture(),
                    device=device,
                    errors=partial(errors, mode, make),
                )


def candidates(
    mode: str, make: Callable[[Path], tuple[str, nn.Module, Network]], batch: int, device: str
) -> dict[str, Candidate]:
    """Both on the same bytes, of Inception's size."""
    images = draw(batch).to(device)
    name, net, run = make(weights())
    net.to(device)
    ours = InceptionV3.from_file(weights(), mode).to(device)
    calls: dict[str, Network] = {OURS: ours, name: run}
    return {name: partial(torch.no_grad()(call), images) for name, call in calls.items()}


def errors(mode: str, make: Callable[[Path], tuple[str, nn.Module, Network]]) -> dict[str, float]:
    """How far both are from the peer's network in float64, relative to the features' norm."""
    name, net, run = make(weights())
    images = draw(2)
    with torch.no_grad():
        found = {OURS: InceptionV3.from_file(weights(), mode)(images), name: run(images)}
        net.double()
        net.feature_extractor_internal_dtype = torch.float64  # torch-fidelity looks at it
        exact = run(images)
    return {name: float((got - exact).norm() / exact.norm()) for name, got in found.items()}


def pytorch_fid(path: Path) -> tuple[str, nn.Module, Network]:
    net = pytorch_fid_network(path)

    def run(images: Tensor) -> Tensor:
        dtype = next(net.parameters()).dtype
        maps: Tensor = net(images.to(dtype) / 255)[0]
        return maps.flatten(1)

    return "pytorch-fid", net, run


def torch_fidelity(path: Path) -> tuple[str, nn.Module, Network]:
    net = fidelity_network(path)
    return "torch-fidelity", net, lambda images: net(images)[0]


@functools.cache
def weights() -> Path:
    """Random ones, in a file that goes when the run ends."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    torch.save(random_inception(), folder / "random.pth")
    return folder / "random.pth"


def draw(batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, 3, 299, 299), dtype=torch.uint8, generator=generator)


@functools.cache
def flops_a_picture() -> int:
    """Convolutions alone; a multiply-add counts two."""
    net = InceptionV3()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(draw(1))
    return int(counter.get_total_flops())
