# SPDX-License-Identifier: Apache-2.0
"""Kernels' own memory comes from torch's caching allocator, and its errors are told once."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from gansparse import _C
from gansparse.ops import instance_norm

pytestmark = pytest.mark.cuda


def picture() -> Tensor:
    """Of several tiles, so that the op needs sums of its own."""
    x = torch.randn(2, 16, 64, 64, device="cuda", dtype=torch.bfloat16)
    return x.contiguous(memory_format=torch.channels_last)


def test_memory_comes_from_torch_and_goes_back() -> None:
    x = picture()
    y = instance_norm(x)
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()
    y = instance_norm(x)
    after = torch.cuda.memory_stats()
    allocations = "allocation.all.allocated"
    assert after[allocations] - before[allocations] == 2  # the output, and the sums
    assert after["allocated_bytes.all.current"] - before["allocated_bytes.all.current"] == 0
    assert bool(y.isfinite().all())


def test_without_memory_there_is_torchs_error_and_then_none() -> None:
    x = picture()
    want = instance_norm(x)

    def take(size: int, device: int, stream: int) -> int:
        raise torch.OutOfMemoryError(f"no {size} bytes on device {device}")

    allocator = (torch.cuda.caching_allocator_alloc, torch.cuda.caching_allocator_delete)
    _C.set_device_memory_source(take, allocator[1])
    try:
        with pytest.raises(torch.OutOfMemoryError, match=r"no \d+ bytes on device 0"):
            instance_norm(x)
    finally:
        _C.set_device_memory_source(*allocator)
    assert torch.equal(instance_norm(x), want)


FIRST_CALL = """
import torch
from gansparse.ops import instance_norm
x = torch.randn(2, 16, 64, 64, device="cuda", dtype=torch.bfloat16)
x = x.contiguous(memory_format=torch.channels_last)
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    y = instance_norm(x)
x.copy_(torch.randn_like(x))
graph.replay()
torch.cuda.synchronize()
print(float((y.float() - instance_norm(x).float()).abs().max()))
"""


def test_the_first_call_of_a_process_can_be_captured() -> None:
    command = [sys.executable, "-c", FIRST_CALL]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == 0
