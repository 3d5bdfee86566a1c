# SPDX-License-Identifier: Apache-2.0
"""`cuda_graph.Graphed` without a GPU: its ops are recorded and done again on the same tensors."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from networks import picture
from on_cuda import record_graphs

from gansparse.deploy import cuda_graph


@pytest.fixture(autouse=True)
def recorded(monkeypatch):
    record_graphs(monkeypatch)


@torch.no_grad()
def test_a_graph_has_its_own_inputs_and_gives_copies():
    def run(x, scale, other):
        torch.relu_(other)
        return {"sum": x * scale + other, "input": x}

    x, other = picture(), picture()
    graph = cuda_graph.Graphed(run, (x, 2.0, other))
    assert torch.equal(other, picture())  # not written over by warming up
    first = graph(x, 2.0, other)
    kept = first["sum"].clone()
    last = (x + 1).contiguous(memory_format=torch.channels_last)
    second = graph(last, 2.0, -other)
    assert torch.equal(first["sum"], kept)
    assert torch.equal(kept, 2 * x + other.relu())
    assert torch.equal(second["sum"], 2 * last - other.clamp(max=0))
    assert torch.equal(first["input"], x)


def test_replays_wait_for_each_other(monkeypatch):
    """Whatever the stream: the event of the call before is awaited first, and recorded last."""
    graph = cuda_graph.Graphed(torch.relu, (picture(),))
    log = []
    monkeypatch.setattr(graph.done, "record", lambda stream: log.append("record"))
    monkeypatch.setattr(graph.graph, "replay", lambda: log.append("replay"))
    stream = torch.cuda.current_stream()
    monkeypatch.setattr(stream, "wait_event", lambda event: log.append(("wait", event)))
    graph(picture())
    assert log == [("wait", graph.done), "replay", "record"]


def test_after_a_capture_that_fails_all_is_as_before(monkeypatch):
    """The stream is the caller's; a capture has ended well: till then torch draws no numbers."""
    log, current, calls = [], torch.cuda.current_stream(), iter(range(9))
    current.device = "cpu"

    @contextmanager
    def logged(name):
        log.append(f"{name} begins")
        try:
            yield
        finally:
            log.append(f"{name} ends")

    def refuse(x):
        if next(calls) == 3:
            raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "graph", lambda graph, **_: logged("capture"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: logged("stream"))
    with pytest.raises(RuntimeError, match="not permitted"):
        cuda_graph.Graphed(refuse, (picture(),))
    captures = ["capture begins", "capture ends"] * 2
    assert log == ["stream begins", "stream ends", "stream begins", *captures, "stream ends"]


def test_within_another_capture_the_function_is_called(monkeypatch):
    graph = cuda_graph.Graphed(torch.relu, (picture(),))
    monkeypatch.setattr(graph.graph, "replay", lambda: pytest.fail("replayed"))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert torch.equal(graph(-picture()), torch.relu(-picture()))
