# SPDX-License-Identifier: Apache-2.0
"""What an op asks of CuPy's and torch's streams, where there is neither CuPy nor a GPU.

A module stands for CuPy (its names are those of 14.2.0), whose arrays lie on the CPU, and functions
for those of torch.cuda. That real streams then wait for one another test_arrays.py shows on a GPU.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gansparse.errors import InputError
from gansparse.ops import masked_adam, pack_sparse_conv2d, sparse_conv2d
from gansparse.ops._arrays import takes_arrays
from gansparse.testing.samples import masked_adam as adam

HERE = 1  # the arrays' device; CuPy's current one is 0


class Streams:
    """Handles of the current ones, and what was asked of them.

    Args:
        theirs: CuPy's on the arrays' device.
        ours: torch's there.
    """

    def __init__(self, theirs: int, ours: int) -> None:
        self.log: list[str] = []
        self.theirs, self.ours = {0: 70, HERE: theirs}, {0: 90, HERE: ours}
        self.device = 0

    def stream(self, handle: int, device: torch.device) -> Any:
        assert device == torch.device("cuda", HERE)

        def wait(other: Any) -> None:
            self.log.append(f"{handle} waits for {other.cuda_stream}")

        return SimpleNamespace(cuda_stream=handle, wait_stream=wait)

    def external(self, handle: int, device: torch.device) -> Any:
        assert handle != 0, "torch takes 0 for a wish for a new one"
        return self.stream(handle, device)

    @contextmanager
    def current(self, stream: Any) -> Iterator[None]:
        self.log.append(f"on {stream.cuda_stream}")
        try:
            yield
        finally:
            self.log.append("off")


class Device:
    def __init__(self, streams: Streams) -> None:
        self.id, self.streams = HERE, streams

    def __enter__(self) -> None:
        self.streams.device = HERE

    def __exit__(self, *_: object) -> None:
        self.streams.device = 0


class Array:
    """CuPy's, on a device as it says, on the CPU where torch looks."""

    def __init__(self, values: Any, streams: Streams) -> None:
        self.values, self.streams, self.device = torch.as_tensor(values), streams, Device(streams)

    def __dlpack__(self, **options: Any) -> object:
        self.streams.log.append("shared")
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.values.__dlpack_device__()


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Any:
    def begin(theirs: int, ours: int) -> Streams:
        streams = Streams(theirs, ours)

        def now() -> Any:
            return SimpleNamespace(ptr=streams.theirs[streams.device])

        cupy = SimpleNamespace(ndarray=Array, cuda=SimpleNamespace(get_current_stream=now))
        monkeypatch.setitem(sys.modules, "cupy", cupy)
        for name, function in {
            "is_available": lambda: True,
            "current_stream": lambda d: streams.stream(streams.ours[d.index], d),
            "default_stream": lambda d: streams.stream(0, d),
            "ExternalStream": streams.external,
            "stream": streams.current,
        }.items():
            monkeypatch.setattr(torch.cuda, name, function)

        def record(made: Tensor, stream: Any) -> None:
            streams.log.append(f"{tuple(made.shape)} stays for {stream.cuda_stream}")

        monkeypatch.setattr(Tensor, "record_stream", record)
        return streams

    return begin


def op_of(streams: Streams, result: Any = None) -> Any:
    @takes_arrays
    def op(x: Tensor) -> Any:
        assert isinstance(x, Tensor)
        streams.log.append("op")
        if isinstance(result, Exception):
            raise result
        return result

    return op


# 0 is the default stream, 2 CUDA's of this thread.
@pytest.mark.parametrize(("theirs", "ours"), [(0, 9), (5, 0), (5, 9), (2, 0)])
def test_streams_wait_for_one_another(theirs: int, ours: int, start: Any) -> None:
    streams = start(theirs, ours)
    result = (torch.zeros(2), "no tensor", torch.zeros(3))
    assert op_of(streams, result)(Array(np.ones(4), streams)) is result
    assert streams.log == [
        f"{theirs} waits for {ours}", f"on {theirs}", "shared", "op",
        f"(2,) stays for {ours}", f"(3,) stays for {ours}",
        "off", f"{ours} waits for {theirs}",
    ]  # fmt: skip
    assert streams.device == 0


@pytest.mark.parametrize("handle", [0, 5])
def test_one_stream_of_both_costs_nothing(handle: int, start: Any) -> None:
    streams = start(handle, handle)
    op_of(streams, torch.zeros(2))(Array(np.ones(4), streams))
    assert streams.log == ["shared", "op"]


def test_other_arrays_ask_nothing(start: Any) -> None:
    streams = start(5, 9)
    op_of(streams)(np.ones(4))
    assert streams.log == ["op"]


def test_an_op_that_fails_leaves_nothing_unordered(start: Any) -> None:
    """What it has begun runs on CuPy's stream."""
    streams = start(5, 9)
    with pytest.raises(InputError, match="no"):
        op_of(streams, InputError("no"))(Array(np.ones(4), streams))
    assert streams.log[-2:] == ["off", "9 waits for 5"]


def test_ops_write_into_lists_of_arrays(start: Any) -> None:
    streams = start(5, 9)
    want, got = (adam.samples("tiny")[0].arguments() for _ in range(2))
    lists = {
        name: [Array(tensor, streams) for tensor in value] if isinstance(value, list) else value
        for name, value in got.items()
    }
    masked_adam(**want)
    masked_adam(**lists)
    for one, two in zip(want["params"], got["params"], strict=True):
        assert torch.equal(one, two)
    assert (streams.log[:2], streams.log[-1]) == (["5 waits for 9", "on 5"], "9 waits for 5")


def test_what_ops_return_stays_for_torch(start: Any) -> None:
    streams = start(5, 9)
    x, packed = torch.randn(1, 3, 6, 5), pack_sparse_conv2d(torch.randn(4, 3, 3, 3), padding=1)
    got = sparse_conv2d(Array(x, streams), packed)
    assert torch.equal(got, sparse_conv2d(x, packed))
    assert "(1, 4, 6, 5) stays for 9" in streams.log


def test_torch_without_cuda_is_told(monkeypatch: pytest.MonkeyPatch, start: Any) -> None:
    streams = start(0, 0)

    def missing(*_: object) -> None:
        raise AssertionError("Torch not compiled with CUDA enabled")

    class OnDevice(Array):
        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, HERE

    monkeypatch.setattr(torch.cuda, "current_stream", missing)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="op: x cannot be shared through DLPack: Torch not comp"):
        op_of(streams)(OnDevice(np.ones(4), streams))
    assert "op" not in streams.log
